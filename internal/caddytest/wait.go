package caddytest

import (
	"testing"
	"time"
)

// Patience is how long a test waits for what must happen; it never decides
// whether a test passes on a slow machine.
const Patience = 30 * time.Second

// WaitFor waits until a condition holds.
func WaitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

// Receive returns the next value of a channel, or the zero value once it is
// closed.
func Receive[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(Patience):
		t.Fatalf("timed out waiting for %s", what)
		panic("unreachable")
	}
}
