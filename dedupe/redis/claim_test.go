package redis

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

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

func TestMemoryTakesOverWhileRedisIsDown(t *testing.T) {
	for name, how := range outages {
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
			expect(t, s, arrival("during", 1), dedupe.ErrInFlight)
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

// A request that has just found the ID claimed by another instance does not
// deliver it.
func TestWaiterDoesNotDeliverWhenRedisGoesDown(t *testing.T) {
	server := redistest.Start(t)
	a, b := newInstance(t, config(server)), newInstance(t, config(server))
	expect(t, a, arrival("a", 1), dedupe.Claimed)
	first := claimAsync(t, b, waiting(arrival("a", 1)))
	waitFor(t, "the waiter", func() bool { return waits(b, "a") })
	behind := claimAsync(t, b, waiting(arrival("a", 1)))
	server.Kill()
	for name, waiter := range map[string]<-chan result{"the waiter": first, "the one behind it": behind} {
		if got := await(t, waiter, "the answer to "+name); !errors.Is(got.err, dedupe.ErrInFlight) {
			t.Errorf("%s got %+v", name, got)
		}
	}
	expect(t, b, arrival("a", 1), dedupe.Claimed) // a retry: by then the other instance may have died
}

// Redis may run the script of a waiter after the waiter has given up.
func TestWaiterThatGaveUpLeavesNoClaim(t *testing.T) {
	for _, policy := range []string{"memory", "refuse"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
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
			time.Sleep(crashed.Lease) // which passes by the clock of Redis
			server.Resume()
			waitFor(t, "Redis to be back", func() bool { return up(b) && b.pendingOutcomes() == 0 })
			expect(t, newInstance(t, config(server)), arrival("a", 1), dedupe.Claimed)
		})
	}
}

func TestRefusesWhileRedisIsDown(t *testing.T) {
	for name, how := range outages {
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
			// a claim that Redis may have granted without an answer has been ended
			deliver(t, s, arrival("during", 1))
		})
	}
}

// An unknown value at a key of an event affects only this event.
func TestUnknownValueOfAKeyAffectsOneEvent(t *testing.T) {
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
				bad := s.claimKey("bad")
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
				if text := log(); !strings.Contains(text, `"level":"error"`) || !strings.Contains(text, "one of its keys has an unknown value") || strings.Contains(text, "}scope") {
					t.Errorf("the log says: %s", text)
				}
				if !up(s) || strings.Contains(log(), "Redis is down") {
					t.Errorf("the store is down: %v", s.Stats().Err)
				}
				deliver(t, s, arrival("good", 1))
				expect(t, other, arrival("good", 1), dedupe.Delivered)
				waitFor(t, "all outcomes to be recorded", func() bool { return s.pendingOutcomes() == 0 })
			})
		}
	}
}
