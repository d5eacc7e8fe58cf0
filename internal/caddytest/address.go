package caddytest

import (
	"fmt"
	"net"
	"sync"
	"testing"
)

// given has the ports that FreePort has returned: who asked for one may not listen yet.
var given sync.Map

// FreeAddress returns an address on loopback that nobody listens at.
func FreeAddress(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", FreePort(t))
}

// FreePort returns a port on loopback that nobody listens at, over TCP and, for
// HTTP/3, over UDP. It returns each port once.
func FreePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().(*net.TCPAddr)
		l.Close()
		if l, err := net.ListenPacket("udp", address.String()); err == nil {
			l.Close()
			if _, before := given.LoadOrStore(address.Port, true); !before {
				return address.Port
			}
		}
	}
	t.Fatal("no port is free for both TCP and UDP")
	return 0
}
