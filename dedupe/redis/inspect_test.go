package redis

import (
	"slices"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

const (
	warnsOfEviction    = "Redis drops IDs when its memory is full"
	warnsOfPersistence = "Redis has no persistence"
	warnsOfChannel     = "the ACL of Redis does not permit the channel"
)

func TestSettingsThatLoseEventsAreWarnedOf(t *testing.T) {
	for name, c := range map[string]struct {
		args string
		want []string
	}{
		"nothing wrong":                   {"--appendonly yes --maxmemory 100mb --maxmemory-policy noeviction", nil},
		"snapshots only":                  {"--save 3600 1 --maxmemory-policy noeviction", nil},
		"a policy, but no limit":          {"--appendonly yes --maxmemory 0 --maxmemory-policy allkeys-lru", nil},
		"evicts what expires":             {"--appendonly yes --maxmemory 100mb --maxmemory-policy volatile-ttl", []string{warnsOfEviction}},
		"evicts, and has no persistence":  {"--maxmemory 100mb --maxmemory-policy allkeys-lru", []string{warnsOfEviction, warnsOfPersistence}},
		"the ACL of the docs":             {"--maxmemory 100mb --maxmemory-policy allkeys-lru --user default on nopass resetchannels resetkeys -@all ~buzzbip:* &buzzbip:* +@connection +@read +@write +@scripting +@pubsub +info +config|get", []string{warnsOfEviction, warnsOfPersistence}},
		"no persistence":                  {"--maxmemory-policy noeviction", []string{warnsOfPersistence}},
		"an ACL that does not let us see": {"--maxmemory 100mb --maxmemory-policy allkeys-lru --user default on nopass ~* &* +@all -config -info", nil},
	} {
		t.Run(name, func(t *testing.T) {
			log := logged(t)
			s := newInstance(t, config(redistest.Start(t, strings.Fields(c.args)...)))
			inspected := func() bool {
				defer s.release()
				return s.acquire().inspected.Load()
			}
			waitFor(t, "the inspection", inspected)
			text := log()
			for _, warning := range []string{warnsOfEviction, warnsOfPersistence, warnsOfChannel} {
				if got, want := strings.Contains(text, warning), slices.Contains(c.want, warning); got != want {
					t.Errorf("the log says %q: %v, want %v", warning, got, want)
				}
			}
			deliver(t, s, arrival("a", 1))
			if !up(s) {
				t.Error("it does not work")
			}
		})
	}
}

// Without the channel, waiters ask again.
func TestACLThatPermitsNoChannelIsWarnedOfAndHarmsNothing(t *testing.T) {
	log := logged(t)
	server := redistest.Start(t)
	server.Do("ACL", "SETUSER", "default", "resetchannels")
	a, b := newInstance(t, config(server, "when_down", "refuse")), newInstance(t, config(server, "when_down", "refuse"))
	waitFor(t, "the warnings of both", func() bool { return strings.Count(log(), warnsOfChannel) == 2 })
	for _, success := range []bool{false, true} {
		c := expect(t, a, arrival("a", 1), dedupe.Claimed)
		waiter := claimAsync(t, b, waiting(arrival("a", 1)))
		waitFor(t, "the waiter", func() bool { return waits(b, "a") })
		settle(t, a, c, success)
		got := await(t, waiter, "the waiter's answer")
		if want := map[bool]dedupe.State{true: dedupe.Delivered, false: dedupe.Claimed}[success]; got.err != nil || got.State != want {
			t.Errorf("the waiter got %+v", got)
		}
		if got.State == dedupe.Claimed {
			settle(t, b, got.Claim, false)
		}
	}
	if !up(a) || !up(b) || strings.Contains(log(), "Redis is down") {
		t.Error("Redis counts as down")
	}
}
