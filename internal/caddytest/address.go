package caddytest

import (
	"fmt"
	"net"
	"testing"
)

// FreeAddress returns an address on loopback that nobody listens at.
func FreeAddress(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", FreePort(t))
}

// FreePort returns a port on loopback that nobody listens at, over TCP and, for
// HTTP/3, over UDP.
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
			return address.Port
		}
	}
	t.Fatal("no port is free for both TCP and UDP")
	return 0
}
