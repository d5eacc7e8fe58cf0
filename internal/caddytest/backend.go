package caddytest

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
)

// Backend counts the bodies that it gets and answers 200, or as its handler
// does.
type Backend struct {
	*httptest.Server
	mu    sync.Mutex
	calls map[string]int // by body
}

// NewBackend starts a backend.
func NewBackend(t testing.TB, handler http.HandlerFunc) *Backend {
	b := &Backend{calls: make(map[string]int)}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // its Caddy was killed
		}
		b.mu.Lock()
		b.calls[string(body)]++
		b.mu.Unlock()
		if handler != nil {
			handler(w, r)
		}
	}))
	t.Cleanup(b.Close)
	return b
}

// Address is where it listens.
func (b *Backend) Address() string { return b.Listener.Addr().String() }

// Count returns how often a body arrived.
func (b *Backend) Count(body string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls[body]
}
