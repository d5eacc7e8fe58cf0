package caddytest

import (
	"fmt"
	"net"
	"sync"
	"testing"
)

// Ports are from a block that belongs to the process, below those that systems give to
// clients. Otherwise the tests of two packages, which run at the same time, may get the
// same one: Caddy listens with SO_REUSEPORT, so both would, and share the requests.
// No port is 10000 above another: there a node of a Redis Cluster listens, too.
const firstPort, blockSize, blocks = 10_000, 250, 40

var block struct {
	sync.Mutex
	reservation net.Listener // at the first port, until the process ends
	first, used int
}

// FreeAddress returns an address on loopback that nobody listens at.
func FreeAddress(t testing.TB) string {
	t.Helper()
	return loopback(FreePort(t))
}

// FreePort returns a port on loopback that nobody listens at, over TCP and, for
// HTTP/3, over UDP. It returns the same port again only after all others of the block.
func FreePort(t testing.TB) int {
	t.Helper()
	block.Lock()
	defer block.Unlock()
	for n := 0; block.reservation == nil; n++ {
		if n == blocks {
			t.Fatal("other processes have all ports for tests")
		}
		block.first = firstPort + n*blockSize
		block.reservation, _ = net.Listen("tcp", loopback(block.first))
	}
	for range blockSize {
		block.used++
		if port := block.first + 1 + block.used%(blockSize-1); isFree(port) {
			return port
		}
	}
	t.Fatalf("no port from %d to %d is free for both TCP and UDP", block.first, block.first+blockSize-1)
	return 0
}

func isFree(port int) bool {
	tcp, err := net.Listen("tcp", loopback(port))
	if err != nil {
		return false
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", loopback(port))
	if err != nil {
		return false
	}
	udp.Close()
	return true
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
