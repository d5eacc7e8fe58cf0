package redis

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

// patience is how long a test waits for what must happen; it never decides
// whether a test passes on a slow machine.
const patience = 30 * time.Second

// load makes a store from its JSON configuration, as Caddy does.
func load(t testing.TB, config map[string]any) (*Store, error) {
	t.Helper()
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	t.Cleanup(cancel)
	module, err := ctx.LoadModuleByID("http.buzzbip_webhook.stores.redis", text)
	if err != nil {
		return nil, err
	}
	return module.(*Store), nil
}

func mustLoad(t testing.TB, config map[string]any) *Store {
	t.Helper()
	var s *Store
	t.Cleanup(func() { // after that of load
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
// nothing with others but what is in Redis.
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
	own := fmt.Sprint(" of instance ", instanceCount.Add(1))
	s.settings.backend += own
	s.settings.id += own
	s.acquire()
	t.Cleanup(s.abandon)
	return s
}

// cleanUp lets a store go before the end of its test.
func cleanUp(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Cleanup(); err != nil {
		t.Fatal(err)
	}
	s.provisioned = false // Caddy cleans up once
}

// abandon drops what is pending and all claims, so that no connection outlives
// its test.
func (s *Store) abandon() {
	defer func() {
		for held := true; held; _, held = connections.References(s.settings.id) {
			s.release()
		}
	}()
	for c := s.acquire(); c.pending.len() > 0; {
		for _, n := range c.pending.next(batch) {
			c.pending.remove(n)
		}
	}
}

func config(server *redistest.Server, options ...any) map[string]any {
	c := map[string]any{"urls": []string{server.URL()}}
	for i := 0; i < len(options); i += 2 {
		c[options[i].(string)] = options[i+1]
	}
	return c
}

func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

func arrival(id string, body dedupe.Digest) dedupe.Request {
	return dedupe.Request{Scope: "scope", Key: dedupe.KeyOf(id), Digest: body, Lease: time.Minute, Retention: time.Hour}
}

// expect makes a claim that is answered as wanted.
func expect(t testing.TB, s *Store, r dedupe.Request, want dedupe.State) dedupe.Claim {
	t.Helper()
	v, err := s.Claim(t.Context(), r)
	if err != nil || v.State != want {
		t.Fatalf("got state %d and error %v, want state %d", v.State, err, want)
	}
	return v.Claim
}

func settle(t testing.TB, s *Store, c dedupe.Claim, delivered bool) {
	t.Helper()
	if err := s.Settle(context.Background(), c, delivered); err != nil {
		t.Fatal(err)
	}
}

func deliver(t testing.TB, s *Store, r dedupe.Request) {
	t.Helper()
	settle(t, s, expect(t, s, r, dedupe.Claimed), true)
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

type result struct {
	dedupe.Verdict
	err error
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

// waiting gives a request more patience than a test has.
func waiting(r dedupe.Request) dedupe.Request { r.Wait = 2 * patience; return r }

func TestDuplicateOnAnotherInstanceIsAnswered(t *testing.T) {
	server := redistest.Start(t)
	a, b := newInstance(t, config(server)), newInstance(t, config(server))
	deliver(t, a, arrival("a", 1))
	expect(t, b, arrival("a", 1), dedupe.Delivered)
	expect(t, b, arrival("a", 2), dedupe.Conflicting)
}

// calls returns how often a server has executed a command for a client.
func calls(server *redistest.Server, command string) (n int) {
	for line := range strings.Lines(server.Do("INFO", "commandstats")) {
		if rest, ok := strings.CutPrefix(line, "cmdstat_"+command+":calls="); ok {
			n, _ = strconv.Atoi(rest[:strings.IndexByte(rest, ',')])
		}
	}
	return n
}

func TestEachOperationIsOneRoundTrip(t *testing.T) {
	server := redistest.Start(t)
	s := newInstance(t, config(server))
	deliver(t, s, arrival("first", 1)) // and the server knows the scripts
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

// A waiter on another instance is told, and does not depend on asking again.
func TestWaiterOnAnotherInstanceIsToldOfTheEnd(t *testing.T) {
	defer func(d time.Duration) { pollInterval = d }(pollInterval)
	pollInterval = time.Hour
	server := redistest.Start(t)
	a, b := newInstance(t, config(server)), newInstance(t, config(server))
	waitFor(t, "the subscriptions", func() bool {
		return strings.Contains(server.Do("PUBSUB", "NUMSUB", "buzzbip:ended"), "2")
	})
	for _, delivered := range []bool{true, false} {
		id := fmt.Sprint("delivered: ", delivered)
		c := expect(t, a, arrival(id, 1), dedupe.Claimed)
		waiter := claimAsync(t, b, waiting(arrival(id, 1)))
		waitFor(t, "the waiter", func() bool { return waits(b, id) })
		settle(t, a, c, delivered)
		start := time.Now()
		got := await(t, waiter, "the waiter's answer")
		t.Logf("told %v after the end", time.Since(start))
		if want := map[bool]dedupe.State{true: dedupe.Delivered, false: dedupe.Claimed}[delivered]; got.err != nil || got.State != want {
			t.Errorf("after an end with delivered=%v the waiter got %+v", delivered, got)
		}
		if got.State == dedupe.Claimed {
			settle(t, b, got.Claim, true)
		}
	}
}

// waits reports whether s waits for a claim of another instance on an id.
func waits(s *Store, event string) bool {
	c := s.acquire()
	defer s.release()
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.waiters[c.keys(id{"scope", dedupe.KeyOf(event)})[0]]
	return ok
}

func TestWaiterAsksAgainWhenItIsNotTold(t *testing.T) {
	server := redistest.Start(t)
	a, b := newInstance(t, config(server)), newInstance(t, config(server))
	c := expect(t, a, arrival("a", 1), dedupe.Claimed)
	waiter := claimAsync(t, b, waiting(arrival("a", 1)))
	waitFor(t, "the waiter", func() bool { return waits(b, "a") })
	// the end of a claim that nobody publishes
	setBegin(a, "a", time.Now().Add(time.Hour)) // else it is registered again
	server.Do("DEL", a.key("a"))
	got := await(t, waiter, "the waiter's answer")
	if got.err != nil || got.State != dedupe.Claimed {
		t.Errorf("got %+v", got)
	}
	settle(t, b, got.Claim, true)
	settle(t, a, c, false)
	expect(t, a, arrival("a", 1), dedupe.Delivered)
}

func TestClaimOfACrashedOwnerEndsWithItsLease(t *testing.T) {
	server := redistest.Start(t)
	a, b := newInstance(t, config(server)), newInstance(t, config(server))
	r := arrival("a", 1)
	r.Lease = 300 * time.Millisecond
	old := expect(t, a, r, dedupe.Claimed)
	got := await(t, claimAsync(t, b, waiting(r)), "the lease to end")
	if got.err != nil || got.State != dedupe.Claimed {
		t.Fatalf("got %+v", got)
	}
	settle(t, b, got.Claim, true)
	settle(t, a, old, false) // late
	expect(t, b, r, dedupe.Delivered)
}

// whileDown are the ways in which Redis can be away.
var whileDown = map[string]struct{ begin, end func(*redistest.Server) }{
	"killed": {(*redistest.Server).Kill, (*redistest.Server).Restart},
	"paused": {(*redistest.Server).Pause, (*redistest.Server).Resume},
}

const durable = "--appendonly yes --appendfsync always"

func up(s *Store) bool { return s.Stats().Err == nil }

func TestMemoryTakesOverWhileRedisIsDown(t *testing.T) {
	for name, how := range whileDown {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t, strings.Fields(durable)...)
			s := newInstance(t, config(server, "timeout", "200ms"))
			other := newInstance(t, config(server, "timeout", "200ms"))
			deliver(t, s, arrival("before", 1))
			inFlight := expect(t, s, arrival("in flight", 1), dedupe.Claimed)
			how.begin(server)

			down := expect(t, s, arrival("during", 1), dedupe.Claimed)
			if up(s) {
				t.Error("the store does not say that Redis is down")
			}
			expectInFlight(t, s, arrival("during", 1))
			if err := s.Settle(context.Background(), down, true); err == nil {
				t.Error("a success that only this process knows of was reported as recorded")
			}
			expect(t, s, arrival("during", 1), dedupe.Delivered)
			expect(t, s, arrival("during", 2), dedupe.Conflicting)
			expect(t, s, arrival("before", 1), dedupe.Delivered)
			_ = s.Settle(context.Background(), inFlight, true)
			_ = s.Settle(context.Background(), expect(t, s, arrival("failed", 1), dedupe.Claimed), false)

			how.end(server)
			waitFor(t, "Redis to be back", func() bool { return up(s) && up(other) && s.pendingOutcomes() == 0 })
			for _, id := range []string{"before", "in flight", "during"} {
				expect(t, other, arrival(id, 1), dedupe.Delivered)
				expect(t, s, arrival(id, 1), dedupe.Delivered)
			}
			deliver(t, other, arrival("failed", 1))
			expect(t, s, arrival("failed", 1), dedupe.Delivered)
		})
	}
}

// Who was told a moment ago that another instance has the id does not deliver
// it too.
func TestWaiterDoesNotDeliverWhenRedisGoesAway(t *testing.T) {
	server := redistest.Start(t)
	a, b := newInstance(t, config(server)), newInstance(t, config(server))
	expect(t, a, arrival("a", 1), dedupe.Claimed)
	first := claimAsync(t, b, waiting(arrival("a", 1)))
	waitFor(t, "the waiter", func() bool { return waits(b, "a") })
	behind := claimAsync(t, b, waiting(arrival("a", 1)))
	server.Kill()
	for name, waiter := range map[string]<-chan result{"the waiter": first, "who waited behind it": behind} {
		if got := await(t, waiter, "the answer to "+name); !errors.Is(got.err, dedupe.ErrInFlight) {
			t.Errorf("%s got %+v", name, got)
		}
	}
	expect(t, b, arrival("a", 1), dedupe.Claimed) // when it comes again, the other may be dead
}

// Redis may run what a waiter asked for after the waiter has given up.
func TestWaiterThatGaveUpLeavesNoClaim(t *testing.T) {
	for _, policy := range []string{"memory", "refuse"} {
		t.Run(policy, func(t *testing.T) {
			server := redistest.Start(t)
			a, b := newInstance(t, config(server, "timeout", "200ms", "when_down", policy)), newInstance(t, config(server, "timeout", "200ms", "when_down", policy))
			crashed, waiter := arrival("a", 1), waiting(arrival("a", 1))
			crashed.Lease, waiter.Lease = 2*time.Second, time.Hour
			expect(t, a, crashed, dedupe.Claimed)
			answered := claimAsync(t, b, waiter)
			waitFor(t, "the waiter", func() bool { return waits(b, "a") })
			server.Pause()
			if got := await(t, answered, "the waiter's answer"); got.err == nil {
				t.Errorf("the waiter got %+v", got)
			}
			time.Sleep(crashed.Lease) // by the clock of Redis
			server.Resume()
			waitFor(t, "Redis to be back", func() bool { return up(b) && b.pendingOutcomes() == 0 })
			expect(t, newInstance(t, config(server)), arrival("a", 1), dedupe.Claimed)
		})
	}
}

func TestRedeliveryInAnOutageCountsAfterwards(t *testing.T) {
	server := redistest.Start(t, strings.Fields(durable)...)
	s := newInstance(t, config(server, "timeout", "200ms"))
	deliver(t, s, arrival("a", 1))
	server.Kill()
	changed := arrival("a", 2)
	changed.Redeliver = true
	deliverDown(t, s, changed)
	expect(t, s, changed, dedupe.Delivered)
	server.Restart()
	waitFor(t, "Redis to know", func() bool { return up(s) && s.pendingOutcomes() == 0 })
	expect(t, s, changed, dedupe.Delivered)
	expect(t, newInstance(t, config(server)), changed, dedupe.Delivered)
}

func (s *Store) pendingOutcomes() int {
	defer s.release()
	return s.acquire().pending.len()
}

// A claim that Redis has lost can meet one that it granted since: both
// deliveries happened, and the success of either counts.
func TestSuccessOfAClaimFromTheOutageCountsThoughAnotherOwnsTheID(t *testing.T) {
	server := redistest.Start(t)
	s, other := newInstance(t, config(server, "timeout", "200ms")), newInstance(t, config(server, "timeout", "200ms"))
	server.Pause()
	during := expect(t, s, arrival("a", 1), dedupe.Claimed)
	server.Resume()
	waitFor(t, "Redis to be back", func() bool { return up(s) && up(other) })
	waitFor(t, "Redis to know of the claim", func() bool { return claimedBy(server, s, "a") })
	setBegin(s, "a", time.Now().Add(time.Hour)) // it is not registered again
	server.Do("DEL", other.key("a"))
	after := expect(t, other, arrival("a", 1), dedupe.Claimed)
	settle(t, s, during, true)
	settle(t, other, after, false)
	expect(t, other, arrival("a", 1), dedupe.Delivered)
}

// key is where the claim of an id is kept.
func (s *Store) key(event string) string {
	defer s.release()
	return s.acquire().keys(id{"scope", dedupe.KeyOf(event)})[1]
}

func expectInFlight(t testing.TB, s *Store, r dedupe.Request) {
	t.Helper()
	if v, err := s.Claim(t.Context(), r); !errors.Is(err, dedupe.ErrInFlight) {
		t.Fatalf("got state %d and error %v, want ErrInFlight", v.State, err)
	}
}

func TestRefusesWhileRedisIsDown(t *testing.T) {
	for name, how := range whileDown {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t, strings.Fields(durable)...)
			s := newInstance(t, config(server, "timeout", "200ms", "when_down", "refuse"))
			deliver(t, s, arrival("before", 1))
			inFlight := expect(t, s, arrival("in flight", 1), dedupe.Claimed)
			how.begin(server)
			for range 3 {
				v, err := s.Claim(t.Context(), arrival("during", 1))
				if err == nil || errors.Is(err, dedupe.ErrInFlight) || errors.Is(err, dedupe.ErrFull) {
					t.Fatalf("got state %d and error %v", v.State, err)
				}
			}
			if up(s) {
				t.Error("the store does not say that Redis is down")
			}
			if err := s.Settle(context.Background(), inFlight, true); err == nil {
				t.Error("a success that only this process knows of was reported as recorded")
			}
			how.end(server)
			waitFor(t, "Redis to be back", func() bool { return up(s) && s.pendingOutcomes() == 0 })
			expect(t, s, arrival("in flight", 1), dedupe.Delivered)
			// what may have been claimed while nobody got the answer is free
			deliver(t, s, arrival("during", 1))
		})
	}
}

func TestStartsWhileRedisIsDown(t *testing.T) {
	for name, how := range whileDown {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t)
			how.begin(server)
			s := mustLoad(t, config(server, "timeout", "200ms"))
			c := expect(t, s, arrival("a", 1), dedupe.Claimed)
			if err := s.Settle(context.Background(), c, true); err == nil {
				t.Error("a success that only this process knows of was reported as recorded")
			}
			how.end(server)
			waitFor(t, "Redis to be there", func() bool { return up(s) && s.pendingOutcomes() == 0 })
			expect(t, newInstance(t, config(server)), arrival("a", 1), dedupe.Delivered)
		})
	}
}

// A server that is full, or a replica, answers but takes nothing.
func TestServerThatCannotWriteIsDown(t *testing.T) {
	for name, how := range map[string]struct{ begin, end []string }{
		"full":      {[]string{"CONFIG", "SET", "maxmemory", "1"}, []string{"CONFIG", "SET", "maxmemory", "0"}},
		"read-only": {[]string{"REPLICAOF", "127.0.0.1", "1"}, []string{"REPLICAOF", "NO", "ONE"}},
	} {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t, "--maxmemory-policy", "noeviction")
			s := newInstance(t, config(server, "timeout", "200ms"))
			deliver(t, s, arrival("before", 1))
			server.Do(how.begin...)
			c := expect(t, s, arrival("a", 1), dedupe.Claimed)
			if err := s.Settle(context.Background(), c, true); err == nil || up(s) {
				t.Errorf("settled with error %v", err)
			}
			server.Do(how.end...)
			waitFor(t, "the server to write again", func() bool { return up(s) && s.pendingOutcomes() == 0 })
			expect(t, newInstance(t, config(server)), arrival("a", 1), dedupe.Delivered)
		})
	}
}

// A reload may change the settings while Redis is down.
func TestReloadWithOtherSettingsKeepsWhatRedisDoesNotKnowYet(t *testing.T) {
	server := redistest.Start(t)
	server.Kill()
	old := mustLoad(t, config(server, "timeout", "200ms"))
	inFlight := expect(t, old, arrival("in flight", 1), dedupe.Claimed)
	_ = old.Settle(context.Background(), expect(t, old, arrival("a", 1), dedupe.Claimed), true)
	reloaded := mustLoad(t, config(server, "timeout", "300ms"))
	expect(t, reloaded, arrival("a", 1), dedupe.Delivered)
	expectInFlight(t, reloaded, arrival("in flight", 1))
	cleanUp(t, old)
	_ = old.Settle(context.Background(), inFlight, true)
	expect(t, reloaded, arrival("in flight", 1), dedupe.Delivered)
	server.Restart()
	waitFor(t, "Redis to know", func() bool { return reloaded.pendingOutcomes() == 0 })
	other := newInstance(t, config(server))
	expect(t, other, arrival("a", 1), dedupe.Delivered)
	expect(t, other, arrival("in flight", 1), dedupe.Delivered)
}

// Requests outlive the module that they came to.
func TestConnectionLastsUntilTheLastClaimIsSettled(t *testing.T) {
	server := redistest.Start(t)
	s := mustLoad(t, config(server))
	c := expect(t, s, arrival("a", 1), dedupe.Claimed)
	failed := expect(t, s, arrival("b", 1), dedupe.Claimed)
	cleanUp(t, s)
	for range 2 { // the second changes nothing
		settle(t, s, c, true)
		settle(t, s, failed, false)
	}
	waitFor(t, "the connection to be let go", func() bool {
		_, held := connections.References(s.settings.id)
		return !held
	})
	expect(t, s, arrival("a", 1), dedupe.Delivered) // a request that came late
	if _, held := connections.References(s.settings.id); held {
		t.Error("a request that came late holds the connection")
	}
}

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

func TestFlushOnExitRecordsWhatIsPending(t *testing.T) {
	server := redistest.Start(t)
	s := newInstance(t, config(server, "timeout", "200ms"))
	server.Pause()
	waitFor(t, "Redis to be down", func() bool {
		_ = s.Settle(context.Background(), expect(t, s, arrival(rand.Text(), 1), dedupe.Claimed), true)
		return !up(s)
	})
	server.Resume()
	s.acquire().flushOnExit()
	s.release()
	if left := s.pendingOutcomes(); left != 0 {
		t.Errorf("%d notes are left", left)
	}
	if server.Do("KEYS", "buzzbip:done:*") == "" {
		t.Error("Redis knows nothing of them")
	}
}

// Each store of a configuration makes the call.
func TestFlushOnExitHappensOnce(t *testing.T) {
	log := logged(t)
	server := redistest.Start(t)
	s := newInstance(t, config(server, "timeout", "200ms"))
	server.Pause()
	defer server.Resume()
	deliverDown(t, s, arrival("a", 1))
	// a reload has changed the timeout, and what is pending is the same
	reloaded := &Store{settings: s.settings}
	reloaded.settings.timeout *= 2
	reloaded.settings.id += ", reloaded"
	reloaded.acquire()
	t.Cleanup(reloaded.abandon)
	for range 3 {
		flushAllOnExit()
	}
	if got := strings.Count(log(), "Caddy stops before Redis was back"); got != 1 {
		t.Errorf("the log says %d times that something is lost, want once", got)
	}
}

func TestFlushOnExitDoesNotWaitForNothing(t *testing.T) {
	server := redistest.Start(t)
	server.Pause()
	defer server.Resume()
	s := newInstance(t, config(server, "timeout", "1h"))
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.acquire().flushOnExit()
		s.release()
	}()
	await(t, done, "the end of the call")
}

func TestForgetWhileRedisIsDown(t *testing.T) {
	server := redistest.Start(t)
	s := newInstance(t, config(server, "timeout", "200ms"))
	server.Kill()
	r := arrival("a", 1)
	_ = s.Settle(context.Background(), expect(t, s, r, dedupe.Claimed), true)
	expect(t, s, r, dedupe.Delivered)
	if forgotten, err := s.Forget(t.Context(), r.Scope, r.Key); !forgotten || err == nil {
		t.Errorf("forgotten here: %v, and elsewhere: %v", forgotten, err)
	}
	expect(t, s, r, dedupe.Claimed)
}

func TestWhatIsPendingOutlivesTheConfiguration(t *testing.T) {
	server := redistest.Start(t)
	s := newInstance(t, config(server, "timeout", "200ms"))
	server.Kill()
	_ = s.Settle(context.Background(), expect(t, s, arrival("a", 1), dedupe.Claimed), true)
	s.release()
	defer s.acquire() // for the end of the test to release
	server.Restart()
	waitFor(t, "Redis to know the event", func() bool { return server.Do("KEYS", "buzzbip:done:*") != "" })
	waitFor(t, "the connection to end", func() bool { n, exists := connections.References(s.settings.id); return !exists && n == 0 })
}

// claimedBy reports whether Redis has a claim of an instance on an ID.
func claimedBy(server *redistest.Server, s *Store, event string) bool {
	c := s.acquire()
	defer s.release()
	return strings.HasPrefix(server.Do("GET", s.key(event)), c.name)
}

// A retry that reaches another instance after an outage finds out what is being
// delivered, and waits for it.
func TestWhatIsInFlightWhenRedisComesBackIsKnownToOtherInstances(t *testing.T) {
	for name, how := range whileDown {
		for _, policy := range []string{"memory", "refuse"} {
			for _, success := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, when_down %s, success %v", name, policy, success), func(t *testing.T) {
					server := redistest.Start(t) // without persistence: it loses what it knew
					a := newInstance(t, config(server, "timeout", "200ms", "when_down", policy))
					b := newInstance(t, config(server, "timeout", "200ms", "when_down", policy))
					inFlight := map[string]dedupe.Claim{"before": expect(t, a, arrival("before", 1), dedupe.Claimed)}
					ended := expect(t, a, arrival("ended", 1), dedupe.Claimed)
					how.begin(server)
					if policy == "memory" {
						r := arrival("during", 1)
						r.Lease = 10 * time.Minute
						inFlight["during"] = expect(t, a, r, dedupe.Claimed)
					}
					_ = a.Settle(context.Background(), ended, true)
					how.end(server)
					waitFor(t, "Redis to be back", func() bool { return up(a) && up(b) && a.pendingOutcomes() == 0 })
					for id, c := range inFlight {
						waitFor(t, "Redis to know of "+id, func() bool { return claimedBy(server, a, id) })
						if left, err := strconv.Atoi(server.Do("PTTL", a.key(id))); err != nil || left <= 0 || left > int(c.Lease.Milliseconds()) {
							t.Errorf("%s has a lease of %d ms, error %v; it was %s", id, left, err, c.Lease)
						}
						expectInFlight(t, b, arrival(id, 1))
						waiter := claimAsync(t, b, waiting(arrival(id, 1)))
						waitFor(t, "the waiter", func() bool { return waits(b, id) })
						settle(t, a, c, success)
						got := await(t, waiter, "the waiter's answer")
						if want := map[bool]dedupe.State{true: dedupe.Delivered, false: dedupe.Claimed}[success]; got.err != nil || got.State != want {
							t.Errorf("%s: the waiter got %+v, want the state %d", id, got, want)
						}
						if got.State == dedupe.Claimed {
							settle(t, b, got.Claim, true)
						}
					}
					expect(t, b, arrival("ended", 1), dedupe.Delivered)
				})
			}
		}
	}
}

// A lease that is registered again does not begin anew.
func TestRegisteredLeaseIsWhatRemainsOfIt(t *testing.T) {
	server := redistest.Start(t)
	a, b := newInstance(t, config(server, "timeout", "200ms")), newInstance(t, config(server, "timeout", "200ms"))
	r := arrival("a", 1)
	r.Lease = 3 * time.Second
	claimed := time.Now()
	expect(t, a, r, dedupe.Claimed)
	waitFor(t, "some of the lease to pass", func() bool { return time.Since(claimed) > time.Second })
	server.Do("FLUSHALL")
	waitFor(t, "Redis to know of it again, or the lease to end", func() bool {
		return claimedBy(server, a, "a") || time.Since(claimed) > r.Lease
	})
	if left, _ := strconv.Atoi(server.Do("PTTL", a.key("a"))); left > int((r.Lease - time.Second).Milliseconds()) {
		t.Errorf("it lasts %d ms more, of %s that began %s ago", left, r.Lease, time.Since(claimed))
	}
	got := await(t, claimAsync(t, b, waiting(r)), "the lease to end")
	if took := time.Since(claimed); got.err != nil || got.State != dedupe.Claimed || took < r.Lease-100*time.Millisecond {
		t.Errorf("after %s: %+v", took, got)
	}
}

// An instance that has no outage sees its claims lost, too.
func TestClaimsThatRedisLostAreRegisteredAgain(t *testing.T) {
	log := logged(t)
	server := redistest.Start(t)
	a, b := newInstance(t, config(server)), newInstance(t, config(server))
	c := expect(t, a, arrival("a", 1), dedupe.Claimed)
	server.Do("FLUSHALL")
	waitFor(t, "Redis to know of it again", func() bool { return claimedBy(server, a, "a") })
	waiter := claimAsync(t, b, waiting(arrival("a", 1)))
	waitFor(t, "the waiter", func() bool { return waits(b, "a") })
	settle(t, a, c, true)
	if got := await(t, waiter, "the waiter's answer"); got.err != nil || got.State != dedupe.Delivered {
		t.Errorf("the waiter got %+v", got)
	}
	if server.Do("EXISTS", a.key("a")) != "0" {
		t.Error("there is a claim after the end")
	}
	if !strings.Contains(log(), "Redis had lost claims") {
		t.Error("the log does not say that Redis had lost a claim")
	}
}

// Both deliver, but none takes the claim of the other.
func TestClaimThatIsRegisteredLateTakesNothingFromItsOwner(t *testing.T) {
	log := logged(t)
	server := redistest.Start(t)
	a, b := newInstance(t, config(server)), newInstance(t, config(server))
	late := expect(t, a, arrival("a", 1), dedupe.Claimed)
	setBegin(a, "a", time.Now().Add(time.Hour)) // so it is not registered yet
	server.Do("FLUSHALL")
	owner := expect(t, b, arrival("a", 1), dedupe.Claimed)
	setBegin(a, "a", time.Time{})
	waitFor(t, "a to see that", func() bool {
		return strings.Contains(log(), "another instance delivers events that this one is delivering")
	})
	if !claimedBy(server, b, "a") {
		t.Error("the owner has lost its claim")
	}
	settle(t, b, owner, false)
	waitFor(t, "the claim that is left to be known", func() bool { return claimedBy(server, a, "a") })
	settle(t, a, late, true)
	expect(t, b, arrival("a", 1), dedupe.Delivered)
}

// setBegin changes when the delivery of an ID seems to have begun.
func setBegin(s *Store, event string, began time.Time) {
	c := s.acquire()
	defer s.release()
	c.inFlight.mu.Lock()
	defer c.inFlight.mu.Unlock()
	of := id{"scope", dedupe.KeyOf(event)}
	f := c.inFlight.byID[of]
	f.began = began
	c.inFlight.byID[of] = f
}

// A claim must not be registered after its end: nobody would end it.
func TestNoClaimIsLeftBehindByDeliveriesThatEndWhileTheyAreRegistered(t *testing.T) {
	server := redistest.Start(t)
	s := newInstance(t, config(server))
	c := s.acquire()
	defer s.release()
	var claims []dedupe.Claim
	for n := range 200 {
		claims = append(claims, expect(t, s, arrival(fmt.Sprint(n), 1), dedupe.Claimed))
	}
	due := c.inFlight.toRegister(time.Now())
	if len(due) != len(claims) {
		t.Fatalf("%d claims are to be registered, want %d", len(due), len(claims))
	}
	for _, claim := range claims {
		settle(t, s, claim, false)
	}
	if err := c.register(t.Context(), due); err != nil { // too late
		t.Fatal(err)
	}
	waitFor(t, "no claim to be left", func() bool { return server.Do("KEYS", "buzzbip:claim:*") == "" })
}

// Whatever Redis keeps at the keys of an event harms this event only.
func TestKeyOfAnotherKindHarmsOneEvent(t *testing.T) {
	for name, spoil := range map[string]func(server *redistest.Server, delivered, claim string){
		"a list as the claim":          func(s *redistest.Server, _, claim string) { s.Do("RPUSH", claim, "x") },
		"a list as the delivery":       func(s *redistest.Server, delivered, _ string) { s.Do("RPUSH", delivered, "x") },
		"a hash as both":               func(s *redistest.Server, d, c string) { s.Do("HSET", d, "x", "y"); s.Do("HSET", c, "x", "y") },
		"a digest of the wrong length": func(s *redistest.Server, delivered, _ string) { s.Do("SET", delivered, "x") },
		"a claim that does not expire": func(s *redistest.Server, _, claim string) { s.Do("SET", claim, "x") },
	} {
		for _, policy := range []string{"memory", "refuse"} {
			t.Run(name+", when_down "+policy, func(t *testing.T) {
				log := logged(t)
				server := redistest.Start(t)
				s, other := newInstance(t, config(server, "when_down", policy)), newInstance(t, config(server))
				bad := s.key("bad")
				spoil(server, strings.Replace(bad, "claim:", "done:", 1), bad)

				v, err := s.Claim(t.Context(), arrival("bad", 1))
				if policy == "refuse" {
					if err == nil || errors.Is(err, dedupe.ErrInFlight) {
						t.Errorf("got state %d and error %v", v.State, err)
					}
				} else {
					if err != nil || v.State != dedupe.Claimed {
						t.Fatalf("got state %d and error %v: the event is lost", v.State, err)
					}
					_ = s.Settle(context.Background(), v.Claim, true)
					expect(t, s, arrival("bad", 1), dedupe.Delivered)
				}
				if text := log(); !strings.Contains(text, `"level":"error"`) || !strings.Contains(text, "one of its keys is of no use") || strings.Contains(text, "}scope") {
					t.Errorf("the log says: %s", text)
				}
				if !up(s) || strings.Contains(log(), "Redis is down") {
					t.Errorf("the store is down: %v", s.Stats().Err)
				}
				deliver(t, s, arrival("good", 1))
				expect(t, other, arrival("good", 1), dedupe.Delivered)
				waitFor(t, "nothing to be left to be told", func() bool { return s.pendingOutcomes() == 0 })
			})
		}
	}
}

// makeList makes a list of a key, whatever it is: at once, for a claim that is
// lost is registered again.
func makeList(server *redistest.Server, key string) {
	server.Do("EVAL", "redis.call('DEL', KEYS[1]) return redis.call('RPUSH', KEYS[1], 'x')", "1", key)
}

// A key that turns bad while its event is being delivered, and while Redis is
// down.
func TestKeyOfAnotherKindAtTheEndOfADelivery(t *testing.T) {
	server := redistest.Start(t, strings.Fields(durable)...)
	s := newInstance(t, config(server, "timeout", "200ms"))
	c := expect(t, s, arrival("bad", 1), dedupe.Claimed)
	makeList(server, s.key("bad"))
	if err := s.Settle(context.Background(), c, true); err == nil {
		t.Error("a success that is not recorded was reported as recorded")
	}
	expect(t, s, arrival("bad", 1), dedupe.Delivered)

	c = expect(t, s, arrival("later", 1), dedupe.Claimed)
	makeList(server, s.key("later"))
	server.Kill()
	_ = s.Settle(context.Background(), c, true)
	deliverDown(t, s, arrival("good", 1))
	server.Restart()
	waitFor(t, "Redis to know the rest", func() bool { return up(s) && s.pendingOutcomes() == 0 })
	expect(t, newInstance(t, config(server)), arrival("good", 1), dedupe.Delivered)
	deliver(t, s, arrival("afterwards", 1))
	if !up(s) {
		t.Error("the store is down")
	}
}

func TestSettleKeepsToTheBoundOfItsCaller(t *testing.T) {
	server := redistest.Start(t)
	s := newInstance(t, config(server, "timeout", "1h"))
	c := expect(t, s, arrival("a", 1), dedupe.Claimed)
	server.Pause()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Settle(ctx, c, true) }()
	if err := await(t, done, "the settlement"); err == nil {
		t.Error("what Redis was not told was reported as recorded")
	}
	if !up(s) {
		t.Error("Redis is down although it has not taken longer than its timeout")
	}
	expect(t, s, arrival("a", 1), dedupe.Delivered)
	server.Resume()
	waitFor(t, "Redis to know", func() bool { return s.pendingOutcomes() == 0 })
	expect(t, newInstance(t, config(server)), arrival("a", 1), dedupe.Delivered)
}

func TestEventsThatRedisHasLostAreCounted(t *testing.T) {
	log := logged(t)
	server := redistest.Start(t)
	s, other := newInstance(t, config(server)), newInstance(t, config(server))
	forgotten := func(want uint64) {
		t.Helper()
		if got := s.Stats().Forgotten; got != want {
			t.Errorf("%d events count as forgotten, want %d", got, want)
		}
	}
	for n := range 3 {
		deliver(t, s, arrival(fmt.Sprint(n), 1))
	}
	changed := arrival("0", 2)
	changed.Redeliver = true
	deliver(t, s, changed)
	if ok, err := s.Forget(t.Context(), "scope", dedupe.KeyOf("1")); !ok || err != nil {
		t.Fatal(ok, err)
	}
	deliver(t, s, arrival("1", 1))
	short := arrival("short", 1)
	short.Retention = time.Millisecond
	deliver(t, s, short)
	time.Sleep(10 * time.Millisecond)
	deliver(t, s, short)
	forgotten(0)
	server.Do("FLUSHALL")
	expect(t, other, arrival("new", 1), dedupe.Claimed)
	for n := range 3 {
		deliver(t, s, arrival(fmt.Sprint(n), 1))
	}
	forgotten(3)
	if got := strings.Count(log(), "Redis no longer knows an event"); got != 1 {
		t.Errorf("the log says so %d times, want once a minute", got)
	}
	if other.Stats().Forgotten != 0 {
		t.Error("another instance counts them, too")
	}
}
