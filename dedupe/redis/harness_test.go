package redis

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/logging"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/dedupe/storetest"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

const patience = caddytest.Patience

var (
	expect  = storetest.Expect
	settle  = storetest.Settle
	deliver = storetest.Deliver
	waitFor = caddytest.WaitFor
)

// load makes a store from its JSON configuration, as Caddy does.
func load(t testing.TB, config map[string]any) (*Store, error) {
	t.Helper()
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return storetest.Load[*Store](t, "http.buzzbip_webhook.stores.redis", string(text))
}

func mustLoad(t testing.TB, config map[string]any) *Store {
	t.Helper()
	var s *Store
	t.Cleanup(func() { // runs after the cleanup of load
		if s != nil {
			s.abandon()
		}
	})
	s, err := load(t, config)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var instanceCount atomic.Int64

// newInstance makes a store as if it were in a process of its own: it shares
// only what is in Redis.
func newInstance(t testing.TB, config map[string]any) *Store {
	t.Helper()
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	s := new(Store)
	if err := json.Unmarshal(text, s); err != nil {
		t.Fatal(err)
	}
	if err := s.resolve(); err != nil {
		t.Fatal(err)
	}
	suffix := fmt.Sprint(" of instance ", instanceCount.Add(1))
	s.settings.backing += suffix
	s.settings.fingerprint += suffix
	s.acquire()
	t.Cleanup(s.abandon)
	return s
}

// config is the configuration of a store, with options as names and values.
func config(server *redistest.Server, options ...any) map[string]any {
	c := map[string]any{"urls": []string{server.URL()}}
	for i := 0; i < len(options); i += 2 {
		c[options[i].(string)] = options[i+1]
	}
	return c
}

// cleanUp cleans a store up before its test ends.
func cleanUp(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Cleanup(); err != nil {
		t.Fatal(err)
	}
	s.provisioned = false // Caddy cleans up only once
}

// abandon drops all pending outcomes and claims, so that no connection outlives
// its test.
func (s *Store) abandon() {
	defer func() {
		for held := true; held; _, held = connections.References(s.settings.fingerprint) {
			s.release()
		}
	}()
	for c := s.acquire(); c.instance.pending.len() > 0; {
		for _, n := range c.instance.pending.next(batchSize) {
			c.instance.pending.remove(n)
		}
	}
}

func arrival(id string, body dedupe.Digest) dedupe.Request {
	return dedupe.Request{Scope: "scope", Key: dedupe.KeyOf(id), Digest: body, Lease: time.Minute, Retention: time.Hour}
}

// waiting makes a request wait longer than a test does.
func waiting(r dedupe.Request) dedupe.Request { r.Wait = 2 * patience; return r }

type result struct {
	dedupe.Verdict
	err error
}

// claimAsync makes a claim that may have to wait.
func claimAsync(t testing.TB, s *Store, r dedupe.Request) <-chan result {
	answers := make(chan result, 1)
	go func() {
		v, err := s.Claim(context.Background(), r)
		answers <- result{v, err}
	}()
	return answers
}

func await[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("timed out waiting for %s", what)
		panic("unreachable")
	}
}

// deliverDown delivers an event while Redis is down.
func deliverDown(t *testing.T, s *Store, r dedupe.Request) {
	t.Helper()
	if err := s.Settle(context.Background(), expect(t, s, r, dedupe.Claimed), true); err == nil {
		t.Fatal("Redis is not down")
	}
}

// outages are the ways in which Redis can go down.
var outages = map[string]struct{ begin, end func(*redistest.Server) }{
	"killed": {(*redistest.Server).Kill, (*redistest.Server).Restart},
	"paused": {(*redistest.Server).Pause, (*redistest.Server).Resume},
}

// durable makes a server lose nothing when it is killed.
const durable = "--appendonly yes --appendfsync always"

func up(s *Store) bool { return s.Stats().Err == nil }

func (s *Store) pendingOutcomes() int {
	defer s.release()
	return s.acquire().instance.pending.len()
}

// waits reports whether s waits for another instance to end its claim on an ID.
func waits(s *Store, event string) bool {
	ws := &s.acquire().waiters
	defer s.release()
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return ws.byKey[s.keys(event)[0]] != nil
}

// stopPolling makes the waiters of s depend on messages. Nothing may wait yet.
func stopPolling(s *Store) {
	s.acquire().poll = time.Hour
	s.release()
}

func (s *Store) keys(event string) []string {
	defer s.release()
	return s.acquire().keys(id{"scope", dedupe.KeyOf(event)})
}

// claimKey returns the key of the claim on an ID.
func (s *Store) claimKey(event string) string { return s.keys(event)[1] }

// claimedBy reports whether Redis has a claim of an instance on an ID.
func claimedBy(server *redistest.Server, s *Store, event string) bool {
	c := s.acquire()
	defer s.release()
	return strings.HasPrefix(server.Do("GET", s.claimKey(event)), c.instance.name)
}

// setBegin changes when the delivery of an ID began, as far as s knows.
func setBegin(s *Store, event string, began time.Time) {
	inFlight := &s.acquire().instance.inFlight
	defer s.release()
	inFlight.mu.Lock()
	defer inFlight.mu.Unlock()
	key := id{"scope", dedupe.KeyOf(event)}
	f := inFlight.byID[key]
	f.began = began
	inFlight.byID[key] = f
}

// makeList replaces the value of a key with a list, at once: a claim that is
// lost is registered again.
func makeList(server *redistest.Server, key string) {
	server.Do("EVAL", "redis.call('DEL', KEYS[1]) return redis.call('RPUSH', KEYS[1], 'x')", "1", key)
}

// calls returns how often a server has run a command for a client.
func calls(server *redistest.Server, command string) (n int) {
	for line := range strings.Lines(server.Do("INFO", "commandstats")) {
		if rest, ok := strings.CutPrefix(line, "cmdstat_"+command+":calls="); ok {
			n, _ = strconv.Atoi(rest[:strings.IndexByte(rest, ',')])
		}
	}
	return n
}

// counted returns a number in the reply to INFO.
func counted(server *redistest.Server, section, name string) (n int) {
	for line := range strings.Lines(server.Do("INFO", section)) {
		if value, ok := strings.CutPrefix(line, name); ok {
			n, _ = strconv.Atoi(strings.TrimFunc(value, func(r rune) bool { return r < '0' || r > '9' }))
		}
	}
	return n
}

const (
	warnsOfEviction    = "Redis evicts IDs when its memory is full"
	warnsOfPersistence = "Redis has no persistence"
	warnsOfChannel     = "the ACL of Redis does not permit the channel"
)

// logged makes Caddy log to a file until the end of the test.
func logged(t *testing.T) (text func() string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "log")
	run := func(logging string) {
		config := fmt.Sprintf(`{"admin": {"disabled": true, "config": {"persist": false}}, "logging": {%s}}`, logging)
		if err := caddy.Load([]byte(config), true); err != nil {
			t.Fatal(err)
		}
	}
	run(fmt.Sprintf(`"logs": {"default": {"writer": {"output": "file", "filename": %q}}}`, file))
	t.Cleanup(func() { run("") })
	return func() string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
}
