package storetest

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// Load makes a store of type M from its JSON configuration, as Caddy does. Caddy's
// context, which cleans the store up, ends with the test. M may be any module.
func Load[M any](t testing.TB, id, config string) (store M, err error) {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	t.Cleanup(cancel)
	module, err := ctx.LoadModuleByID(id, json.RawMessage(config))
	if err != nil {
		return store, err
	}
	return module.(M), nil
}
