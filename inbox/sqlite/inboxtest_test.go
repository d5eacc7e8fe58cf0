package sqlite

import (
	"testing"

	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/inbox/inboxtest"
)

func TestStore(t *testing.T) {
	current := make(map[string]*Store) // by path
	inboxtest.Test(t, inboxtest.Config{
		Open: func(t testing.TB) inbox.Store {
			path := newPath(t)
			current[path] = start(t, path)
			t.Cleanup(func() { consistent(t, current[path]) })
			return current[path]
		},
		Reopen: func(t testing.TB, s inbox.Store) inbox.Store {
			path := s.(*Store).path
			consistent(t, current[path])
			stop(t, current[path])
			current[path] = start(t, path)
			return current[path]
		},
	})
}
