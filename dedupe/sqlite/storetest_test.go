package sqlite

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/goleak"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/dedupe/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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

func newPath(t testing.TB) string {
	// not below a path that is a symbolic link
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "webhook.db")
}

// load makes a store from its JSON configuration, as Caddy does.
func load(t testing.TB, config string) (*Store, error) {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	t.Cleanup(cancel)
	module, err := ctx.LoadModuleByID("http.buzzbip_webhook.stores.sqlite", json.RawMessage(config))
	if err != nil {
		return nil, err
	}
	return module.(*Store), nil
}

func at(path string) string { return fmt.Sprintf(`{"path":%q}`, path) }

// start loads and starts a store. Its file is closed when the test ends.
func start(t testing.TB, path string) *Store {
	t.Helper()
	s, err := load(t, at(path))
	if err == nil {
		err = s.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}
