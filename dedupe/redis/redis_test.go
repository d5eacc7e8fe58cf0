package redis

import (
	"context"
	"strconv"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/dedupe/storetest"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

func TestDuplicateOnAnotherInstanceIsAnswered(t *testing.T) {
	server := redistest.Start(t)
	a, b := newInstance(t, config(server)), newInstance(t, config(server))
	deliver(t, a, arrival("a", 1))
	expect(t, b, arrival("a", 1), dedupe.Delivered)
	expect(t, b, arrival("a", 2), dedupe.Conflicting)
}

func TestEachOperationIsOneRoundTrip(t *testing.T) {
	server := redistest.Start(t)
	s := newInstance(t, config(server))
	deliver(t, s, arrival("first", 1)) // so that the server knows the scripts
	for what, operation := range map[string]func(){
		"a claim, and its failure,": func() { settle(t, s, expect(t, s, arrival("a", 1), dedupe.Claimed), false) },
		"a claim, and its success,": func() { deliver(t, s, arrival("b", 1)) },
		"a duplicate and a conflict": func() {
			expect(t, s, arrival("first", 1), dedupe.Delivered)
			expect(t, s, arrival("first", 2), dedupe.Conflicting)
		},
	} {
		before := calls(server, "evalsha") + calls(server, "eval")
		operation()
		if got := calls(server, "evalsha") + calls(server, "eval") - before; got != 2 {
			t.Errorf("%s took %d round trips, want 2", what, got)
		}
	}
}

func TestKeysCarryPrefixScopeAndExpiry(t *testing.T) {
	server := redistest.Start(t)
	s := newInstance(t, config(server, "key_prefix", "test:"))
	deliver(t, s, arrival("an id that is longer than its fixed-size form", 1))
	expect(t, s, arrival("in flight", 1), dedupe.Claimed)
	waitFor(t, "no other keys", func() bool { return len(strings.Fields(server.Do("KEYS", "*"))) == 2 })
	for _, key := range strings.Fields(server.Do("KEYS", "*")) {
		if !strings.HasPrefix(key, "test:") || !strings.HasSuffix(key, "}scope") || len(key) > 40 {
			t.Errorf("there is a key %q", key)
		}
		if ttl, err := strconv.Atoi(server.Do("PTTL", key)); err != nil || ttl <= 0 {
			t.Errorf("the key %q has no expiry: %v", key, err)
		}
	}
}

// A reload may change the settings while Redis is down.
func TestReloadWithOtherSettingsKeepsPendingOutcomes(t *testing.T) {
	server := redistest.Start(t)
	server.Kill()
	old := mustLoad(t, config(server, "timeout", "200ms"))
	inFlight := expect(t, old, arrival("in flight", 1), dedupe.Claimed)
	_ = old.Settle(context.Background(), expect(t, old, arrival("a", 1), dedupe.Claimed), true)
	reloaded := mustLoad(t, config(server, "timeout", "300ms"))
	expect(t, reloaded, arrival("a", 1), dedupe.Delivered)
	expect(t, reloaded, arrival("in flight", 1), dedupe.ErrInFlight)
	cleanUp(t, old)
	_ = old.Settle(context.Background(), inFlight, true)
	expect(t, reloaded, arrival("in flight", 1), dedupe.Delivered)
	server.Restart()
	waitFor(t, "the outcomes to be recorded", func() bool { return reloaded.pendingOutcomes() == 0 })
	other := newInstance(t, config(server))
	expect(t, other, arrival("a", 1), dedupe.Delivered)
	expect(t, other, arrival("in flight", 1), dedupe.Delivered)
}

// Requests can outlive the configuration that they arrived under.
func TestConnectionLastsUntilTheLastClaimIsSettled(t *testing.T) {
	server := redistest.Start(t)
	s := mustLoad(t, config(server))
	c := expect(t, s, arrival("a", 1), dedupe.Claimed)
	failed := expect(t, s, arrival("b", 1), dedupe.Claimed)
	cleanUp(t, s)
	for range 2 { // the second time has no effect
		settle(t, s, c, true)
		settle(t, s, failed, false)
	}
	waitFor(t, "the connection to be released", func() bool {
		_, held := connections.References(s.settings.fingerprint)
		return !held
	})
	expect(t, s, arrival("a", 1), dedupe.Delivered) // a late request
	if _, held := connections.References(s.settings.fingerprint); held {
		t.Error("a late request keeps the connection")
	}
}

func TestStore(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	storetest.Test(t, storetest.Config{
		Open:   func(t testing.TB) dedupe.Store { return newInstance(t, config(server)) },
		Shared: true,
	})
}
