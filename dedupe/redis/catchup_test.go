package redis

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

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
		t.Errorf("%d outcomes are pending", left)
	}
	if server.Do("KEYS", "buzzbip:done:*") == "" {
		t.Error("Redis knows nothing of them")
	}
}

// The cleanup of each store of a configuration flushes all connections.
func TestFlushOnExitHappensOnce(t *testing.T) {
	log := logged(t)
	server := redistest.Start(t)
	s := newInstance(t, config(server, "timeout", "200ms"))
	server.Pause()
	defer server.Resume()
	deliverDown(t, s, arrival("a", 1))
	// a reload has changed the timeout; the pending outcomes are the same
	reloaded := &Store{settings: s.settings}
	reloaded.settings.timeout *= 2
	reloaded.settings.fingerprint += ", reloaded"
	reloaded.acquire()
	t.Cleanup(reloaded.abandon)
	for range 3 {
		flushAllOnExit()
	}
	if got := strings.Count(log(), "Caddy is stopping while Redis is down"); got != 1 {
		t.Errorf("the log says %d times that outcomes are lost, want once", got)
	}
}

func TestFlushOnExitReturnsAtOnceIfNothingIsPending(t *testing.T) {
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

func TestPendingOutcomesOutliveTheConfiguration(t *testing.T) {
	server := redistest.Start(t)
	s := newInstance(t, config(server, "timeout", "200ms"))
	server.Kill()
	_ = s.Settle(context.Background(), expect(t, s, arrival("a", 1), dedupe.Claimed), true)
	s.release()
	defer s.acquire() // released at the end of the test
	server.Restart()
	waitFor(t, "Redis to know the event", func() bool { return server.Do("KEYS", "buzzbip:done:*") != "" })
	waitFor(t, "the connection to end", func() bool { n, exists := connections.References(s.settings.fingerprint); return !exists && n == 0 })
}

// After an outage, a retry at another instance waits for the delivery in flight.
func TestClaimsInFlightAreRegisteredAfterAnOutage(t *testing.T) {
	for name, how := range outages {
		for _, policy := range []string{"memory", "refuse"} {
			for _, success := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, when_down %s, success %v", name, policy, success), func(t *testing.T) {
					t.Parallel()
					server := redistest.Start(t) // without persistence: a restart loses all
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
						waitFor(t, "the claim on "+id+" to be registered", func() bool { return claimedBy(server, a, id) })
						if left, err := strconv.Atoi(server.Do("PTTL", a.claimKey(id))); err != nil || left <= 0 || left > int(c.Lease.Milliseconds()) {
							t.Errorf("%s has a lease of %d ms, error %v; it was %s", id, left, err, c.Lease)
						}
						expect(t, b, arrival(id, 1), dedupe.ErrInFlight)
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

// Registering a claim again does not extend its lease.
func TestRegisteringAClaimDoesNotExtendItsLease(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := newInstance(t, config(server, "timeout", "200ms")), newInstance(t, config(server, "timeout", "200ms"))
	r := arrival("a", 1)
	r.Lease = 3 * time.Second
	claimed := time.Now()
	expect(t, a, r, dedupe.Claimed)
	waitFor(t, "some of the lease to pass", func() bool { return time.Since(claimed) > time.Second })
	server.Do("FLUSHALL")
	waitFor(t, "the claim to be registered again, or the lease to end", func() bool {
		return claimedBy(server, a, "a") || time.Since(claimed) > r.Lease
	})
	if left, _ := strconv.Atoi(server.Do("PTTL", a.claimKey("a"))); left > int((r.Lease - time.Second).Milliseconds()) {
		t.Errorf("%d ms of the lease are left, of %s that began %s ago", left, r.Lease, time.Since(claimed))
	}
	got := await(t, claimAsync(t, b, waiting(r)), "the lease to end")
	if took := time.Since(claimed); got.err != nil || got.State != dedupe.Claimed || took < r.Lease-100*time.Millisecond {
		t.Errorf("after %s: %+v", took, got)
	}
}

// Redis can lose claims without an outage that instances notice.
func TestClaimsThatRedisLostAreRegisteredAgain(t *testing.T) {
	log := logged(t)
	server := redistest.Start(t)
	a, b := newInstance(t, config(server)), newInstance(t, config(server))
	c := expect(t, a, arrival("a", 1), dedupe.Claimed)
	server.Do("FLUSHALL")
	waitFor(t, "the claim to be registered again", func() bool { return claimedBy(server, a, "a") })
	waiter := claimAsync(t, b, waiting(arrival("a", 1)))
	waitFor(t, "the waiter", func() bool { return waits(b, "a") })
	settle(t, a, c, true)
	if got := await(t, waiter, "the waiter's answer"); got.err != nil || got.State != dedupe.Delivered {
		t.Errorf("the waiter got %+v", got)
	}
	if server.Do("EXISTS", a.claimKey("a")) != "0" {
		t.Error("a claim is left after the end")
	}
	if !strings.Contains(log(), "Redis lost claims on events in flight") {
		t.Error("the log does not say that Redis lost a claim")
	}
}

// Both instances deliver, but neither ends the claim of the other.
func TestClaimThatIsRegisteredLateDoesNotReplaceThatOfTheOwner(t *testing.T) {
	log := logged(t)
	server := redistest.Start(t)
	a, b := newInstance(t, config(server)), newInstance(t, config(server))
	late := expect(t, a, arrival("a", 1), dedupe.Claimed)
	setBegin(a, "a", time.Now().Add(time.Hour)) // so that it is not registered yet
	server.Do("FLUSHALL")
	owner := expect(t, b, arrival("a", 1), dedupe.Claimed)
	setBegin(a, "a", time.Time{})
	waitFor(t, "a to notice", func() bool {
		return strings.Contains(log(), "another instance is delivering the same events")
	})
	if !claimedBy(server, b, "a") {
		t.Error("the owner has lost its claim")
	}
	settle(t, b, owner, false)
	waitFor(t, "the remaining claim to be registered", func() bool { return claimedBy(server, a, "a") })
	settle(t, a, late, true)
	expect(t, b, arrival("a", 1), dedupe.Delivered)
}

// A claim that is registered after its end must be ended again.
func TestNoClaimIsLeftIfADeliveryEndsWhileItIsRegistered(t *testing.T) {
	server := redistest.Start(t)
	s := newInstance(t, config(server))
	c := s.acquire()
	defer s.release()
	var claims []dedupe.Claim
	for n := range 200 {
		claims = append(claims, expect(t, s, arrival(fmt.Sprint(n), 1), dedupe.Claimed))
	}
	due := c.instance.inFlight.toRegister(time.Now())
	if len(due) != len(claims) {
		t.Fatalf("%d claims are due, want %d", len(due), len(claims))
	}
	for _, claim := range claims {
		settle(t, s, claim, false)
	}
	if err := c.register(t.Context(), due); err != nil { // too late
		t.Fatal(err)
	}
	waitFor(t, "all claims to be ended", func() bool { return server.Do("KEYS", "buzzbip:claim:*") == "" })
}

// It may end, and be recorded, at any moment.
func TestNoClaimIsLeftIfADeliverySucceedsWhileItIsRegistered(t *testing.T) {
	server := redistest.Start(t)
	s := newInstance(t, config(server))
	c := s.acquire()
	defer s.release()
	for round := range 5 {
		var claims []dedupe.Claim
		for n := range 200 {
			claims = append(claims, expect(t, s, arrival(fmt.Sprint(round, " ", n), 1), dedupe.Claimed))
		}
		due := c.instance.inFlight.toRegister(time.Now())
		var ends sync.WaitGroup
		for _, claim := range claims {
			ends.Go(func() { settle(t, s, claim, true) })
		}
		if err := c.register(t.Context(), due); err != nil {
			t.Error(err)
		}
		ends.Wait()
		waitFor(t, "all claims to be ended", func() bool { return s.pendingOutcomes() == 0 })
		if left := server.Do("KEYS", "buzzbip:claim:*"); left != "" {
			t.Fatalf("in round %d, there are claims left:\n%s", round, left)
		}
	}
}

// A probe must need the same permissions as an operation. Otherwise Redis would
// count as up again and again, and an event would wait for the timeout each time.
func TestStaysDownWhileScriptsFail(t *testing.T) {
	for name, how := range map[string]struct{ begin, end []string }{
		"scripts are not allowed": {[]string{"ACL", "SETUSER", "default", "-evalsha", "-eval", "-script"}, []string{"ACL", "SETUSER", "default", "+@all"}},
		"nothing can be deleted":  {[]string{"ACL", "SETUSER", "default", "-del"}, []string{"ACL", "SETUSER", "default", "+@all"}},
		"full":                    {[]string{"CONFIG", "SET", "maxmemory", "1"}, []string{"CONFIG", "SET", "maxmemory", "0"}},
		"a replica":               {[]string{"REPLICAOF", "127.0.0.1", "1"}, []string{"REPLICAOF", "NO", "ONE"}},
		"an isolated master":      {[]string{"CONFIG", "SET", "min-replicas-to-write", "1"}, []string{"CONFIG", "SET", "min-replicas-to-write", "0"}},
	} {
		t.Run(name, func(t *testing.T) {
			log := logged(t)
			server := redistest.Start(t, "--maxmemory-policy", "noeviction")
			server.Do(how.begin...)
			s := newInstance(t, config(server, "timeout", "100ms"))
			_ = s.Settle(context.Background(), expect(t, s, arrival("a", 1), dedupe.Claimed), true)
			failures := counted(server, "stats", "total_error_replies:")
			waitFor(t, "some probes", func() bool { return counted(server, "stats", "total_error_replies:") >= failures+4 })
			if up(s) || strings.Contains(log(), "Redis is back") {
				t.Errorf("it was up in the meantime; the log:\n%s", log())
			}
			server.Do(how.end...)
			waitFor(t, "the server to work again", func() bool { return up(s) && s.pendingOutcomes() == 0 })
			expect(t, newInstance(t, config(server)), arrival("a", 1), dedupe.Delivered)
		})
	}
}

func TestEventsDoNotCauseMoreProbes(t *testing.T) {
	server := redistest.Start(t, "--maxmemory-policy", "noeviction", "--maxmemory", "1")
	s := newInstance(t, config(server, "timeout", "100ms"))
	_ = s.Settle(context.Background(), expect(t, s, arrival("a", 1), dedupe.Claimed), true)
	if up(s) {
		t.Fatal("Redis counts as up")
	}
	before := counted(server, "stats", "total_error_replies:")
	start := time.Now()
	for n := range 1000 {
		_ = s.Settle(context.Background(), expect(t, s, arrival(fmt.Sprint(n), 1), dedupe.Claimed), true)
		time.Sleep(100 * time.Microsecond) // as long as a probe takes
	}
	most := 5 + int(time.Since(start)/minRetry)
	if probes := counted(server, "stats", "total_error_replies:") - before; probes > most {
		t.Errorf("%d probes in %s, want %d at most", probes, time.Since(start), most)
	}
}

// After a reload with the right password, the connection with the wrong one is
// no longer needed for its pending outcomes.
func TestConnectionEndsWhenAnotherHasRecordedItsPendingOutcomes(t *testing.T) {
	server := redistest.Start(t, "--requirepass", "right")
	at := func(password string) map[string]any {
		return map[string]any{"urls": []string{"redis://:" + password + "@" + server.Addr()}, "timeout": "100ms"}
	}
	wrong := mustLoad(t, at("wrong"))
	_ = wrong.Settle(context.Background(), expect(t, wrong, arrival("a", 1), dedupe.Claimed), true)
	right := mustLoad(t, at("right"))
	cleanUp(t, wrong)
	waitFor(t, "the outcomes to be recorded", func() bool { return right.pendingOutcomes() == 0 })
	waitFor(t, "the connection with the wrong password to end", func() bool {
		_, held := connections.References(wrong.settings.fingerprint)
		return !held
	})
	if !up(right) {
		t.Error("the other connection ended, too")
	}
}

// A reload ends a connection while it tells Redis of deliveries in flight.
func TestEndOfAConnectionIsNoOutage(t *testing.T) {
	s := newInstance(t, config(redistest.Start(t)))
	claim := expect(t, s, arrival("a", 1), dedupe.Claimed)
	c := s.acquire()
	defer s.release()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.register(ctx, c.instance.inFlight.toRegister(time.Now())); err == nil {
		t.Error("the claim was registered")
	}
	if !up(s) {
		t.Errorf("Redis counts as down: %v", s.Stats().Err)
	}
	settle(t, s, claim, true)
}
