package redis

import (
	"slices"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

func TestSettingsThatLoseIDsCauseWarnings(t *testing.T) {
	for name, c := range map[string]struct {
		args string
		want []string
	}{
		"nothing wrong":                  {"--appendonly yes --maxmemory 100mb --maxmemory-policy noeviction", nil},
		"snapshots only":                 {"--save 3600 1 --maxmemory-policy noeviction", nil},
		"a policy, but no limit":         {"--appendonly yes --maxmemory 0 --maxmemory-policy allkeys-lru", nil},
		"evicts what expires":            {"--appendonly yes --maxmemory 100mb --maxmemory-policy volatile-ttl", []string{warnsOfEviction}},
		"evicts, and has no persistence": {"--maxmemory 100mb --maxmemory-policy allkeys-lru", []string{warnsOfEviction, warnsOfPersistence}},
		"the ACL of the docs":            {"--maxmemory 100mb --maxmemory-policy allkeys-lru --user default on nopass resetchannels resetkeys -@all ~buzzbip:* &buzzbip:* +@connection +@read +@write +@scripting +@pubsub +info +config|get", []string{warnsOfEviction, warnsOfPersistence}},
		"no persistence":                 {"--maxmemory-policy noeviction", []string{warnsOfPersistence}},
		"an ACL that forbids the check":  {"--maxmemory 100mb --maxmemory-policy allkeys-lru --user default on nopass ~* &* +@all -config -info", nil},
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
				t.Error("the store is down")
			}
		})
	}
}
