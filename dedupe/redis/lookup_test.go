package redis

import (
	"context"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

func TestLookupAndForget(t *testing.T) {
	server := redistest.Start(t)
	a, b := newInstance(t, config(server)), newInstance(t, config(server))
	deliver(t, a, arrival("a", 7))
	status, err := b.Lookup(t.Context(), "scope", dedupe.KeyOf("a"))
	if left := time.Until(status.Expires); err != nil || !status.Delivered || status.Digest != 7 || status.InFlight || left <= 0 || left > time.Hour {
		t.Errorf("got %+v and error %v", status, err)
	}
	if forgotten, err := b.Forget(t.Context(), "scope", dedupe.KeyOf("a")); err != nil || !forgotten {
		t.Errorf("forgotten: %v, error %v", forgotten, err)
	}
	expect(t, a, arrival("a", 7), dedupe.Claimed)
}

func TestForgetWhileRedisIsDown(t *testing.T) {
	server := redistest.Start(t)
	s := newInstance(t, config(server, "timeout", "200ms"))
	server.Kill()
	r := arrival("a", 1)
	_ = s.Settle(context.Background(), expect(t, s, r, dedupe.Claimed), true)
	expect(t, s, r, dedupe.Delivered)
	if forgotten, err := s.Forget(t.Context(), r.Scope, r.Key); !forgotten || err == nil {
		t.Errorf("forgotten: %v, error %v; want true and an error", forgotten, err)
	}
	expect(t, s, r, dedupe.Claimed)
}
