package sqlite

import (
	"testing"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/dedupe/storetest"
)

func TestStore(t *testing.T) {
	path := newPath(t)
	t.Cleanup(func() { // the suite leaves claims behind
		for _, held := states.References(path); held; _, held = states.References(path) {
			if _, err := states.Delete(path); err != nil {
				t.Error(err)
			}
		}
	})
	storetest.Test(t, storetest.Config{Open: func(testing.TB) dedupe.Store { return start(t, path) }})
}
