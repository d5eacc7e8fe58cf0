package redis

import (
	"testing"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/dedupe/storetest"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

func TestStore(t *testing.T) {
	server := redistest.Start(t)
	storetest.Test(t, storetest.Config{
		Open:   func(t testing.TB) dedupe.Store { return newInstance(t, config(server)) },
		Shared: true,
	})
}
