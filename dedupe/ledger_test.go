package dedupe

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the randomized tests; 0 takes another one each time")

// random returns a generator whose seed is logged, so that -seed repeats a
// failure.
func random(t *testing.T) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("repeat with -seed=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

const (
	wait      = 8 * time.Second
	retention = 24 * time.Hour
)

// arrival is a request with everything that most tests do not care about.
func arrival(id string, body Digest) Request {
	return Request{Scope: "scope", Key: KeyOf(id), Digest: body, Wait: wait, Retention: retention}
}

// noWait, redeliver, keep and in change one thing about a request.
func noWait(r Request) Request                    { r.Wait = 0; return r }
func redeliver(r Request) Request                 { r.Redeliver = true; return r }
func keep(r Request, d time.Duration) Request     { r.Retention = d; return r }
func in(scope string, r Request) Request          { r.Scope = scope; return r }
func patience(r Request, d time.Duration) Request { r.Wait = d; return r }

// rig is a ledger under test, and the limits that each call passes.
type rig struct {
	*testing.T
	Ledger
	limits Limits
}

func newRig(t *testing.T) *rig { return &rig{T: t, limits: Limits{Capacity: 1000}} }

// bubble runs a test on synthetic time.
func bubble(t *testing.T, f func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(newRig(t)) })
}

// check compares an answer with what is wanted: a [State] or an error.
func check(t *testing.T, r Request, v Verdict, err error, want any) {
	t.Helper()
	wantErr, _ := want.(error)
	wantState, _ := want.(State)
	switch {
	case wantErr != nil:
		if !errors.Is(err, wantErr) || v != (Verdict{}) {
			t.Fatalf("got %+v and error %v, want the error %v", v, err, wantErr)
		}
	case err != nil || v.State != wantState:
		t.Fatalf("got state %d and error %v, want state %d", v.State, err, wantState)
	case wantState == Claimed && (v.Claim.Request != r || v.Claim.Token == 0):
		t.Fatalf("got the claim %+v, want a token and the request %+v", v.Claim, r)
	case wantState != Claimed && v.Claim != (Claim{}):
		t.Fatalf("got the claim %+v with state %d, want none", v.Claim, v.State)
	}
}

// expect makes a claim that is answered as wanted.
func (g *rig) expect(r Request, want any) Claim {
	g.Helper()
	v, err := g.Claim(g.Context(), r, g.limits)
	check(g.T, r, v, err, want)
	return v.Claim
}

func (g *rig) settle(c Claim, delivered bool) { g.Settle(c, delivered, time.Now(), g.limits) }

func (g *rig) deliver(r Request) {
	g.Helper()
	g.settle(g.expect(r, Claimed), true)
}

func (g *rig) deliverMany(n int) {
	g.Helper()
	for i := range n {
		g.deliver(arrival(fmt.Sprint(i), 1))
	}
}

func (g *rig) count(scope string) int { return g.registry.scopes[scope].delivered.count }

// asyncClaim is a claim that has to wait, made by a goroutine of its own.
type asyncClaim struct {
	g       *rig
	request Request
	done    atomic.Bool // the rest is to be read after it
	at      time.Time
	verdict Verdict
	err     error
}

// join returns once the waiter has its place, so that joins are in order. With
// the context of the test, the waiter leaves when the test has failed.
func (g *rig) join(ctx context.Context, r Request) *asyncClaim {
	w := &asyncClaim{g: g, request: r}
	go func() {
		w.verdict, w.err = g.Claim(ctx, r, g.limits)
		w.at = time.Now()
		w.done.Store(true)
	}()
	synctest.Wait()
	return w
}

func (g *rig) joinMany(n int, r Request) []*asyncClaim {
	ws := make([]*asyncClaim, n)
	for i := range ws {
		ws[i] = g.join(g.Context(), r)
	}
	return ws
}

func (w *asyncClaim) expect(want any) Claim {
	w.g.Helper()
	synctest.Wait()
	if !w.done.Load() {
		w.g.Fatalf("still waiting, want %v", want)
	}
	check(w.g.T, w.request, w.verdict, w.err, want)
	return w.verdict.Claim
}

func (w *asyncClaim) expectWaiting() {
	w.g.Helper()
	synctest.Wait()
	if w.done.Load() {
		w.g.Fatalf("got %+v and error %v, want it to go on waiting", w.verdict, w.err)
	}
}

func (w *asyncClaim) expectAt(want any, at time.Time) {
	w.g.Helper()
	w.expect(want)
	if !w.at.Equal(at) {
		w.g.Fatalf("answered %v off", w.at.Sub(at))
	}
}

func TestUnseenIDIsClaimed(t *testing.T) {
	bubble(t, func(g *rig) {
		a, b := g.expect(arrival("a", 1), Claimed), g.expect(arrival("b", 1), Claimed)
		if a.Token == b.Token {
			g.Errorf("two claims have the token %d", a.Token)
		}
	})
}

func TestDeliveredIDIsAnsweredByItsDigest(t *testing.T) {
	bubble(t, func(g *rig) {
		g.deliver(arrival("a", 1))
		g.expect(arrival("a", 1), Delivered)
		g.expect(arrival("a", 2), Conflicting)
		g.expect(arrival("b", 1), Claimed)
		g.expect(redeliver(arrival("a", 1)), Delivered) // the same body needs no redelivery
	})
}

func TestFailedIDIsUnseenAgain(t *testing.T) {
	bubble(t, func(g *rig) {
		for range 3 {
			g.settle(g.expect(arrival("a", 1), Claimed), false)
		}
		g.settle(g.expect(arrival("a", 2), Claimed), true) // its digest was not kept either
		g.expect(arrival("a", 2), Delivered)
	})
}

func TestRedeliver(t *testing.T) {
	t.Run("a success replaces the digest", func(t *testing.T) {
		bubble(t, func(g *rig) {
			g.deliver(arrival("a", 1))
			g.deliver(redeliver(arrival("a", 2)))
			g.expect(arrival("a", 2), Delivered)
			g.expect(arrival("a", 1), Conflicting)
			if n := g.count("scope"); n != 1 {
				g.Errorf("%d entries for one id", n)
			}
		})
	})
	t.Run("a failure keeps the digest", func(t *testing.T) {
		bubble(t, func(g *rig) {
			g.deliver(arrival("a", 1))
			g.settle(g.expect(redeliver(arrival("a", 2)), Claimed), false)
			g.expect(arrival("a", 1), Delivered)
			g.expect(arrival("a", 2), Conflicting)
		})
	})
	t.Run("while it is in flight", func(t *testing.T) {
		bubble(t, func(g *rig) {
			g.deliver(arrival("a", 1))
			c := g.expect(redeliver(arrival("a", 2)), Claimed)
			w := g.join(g.Context(), redeliver(arrival("a", 2)))
			g.expect(arrival("a", 1), Delivered)
			g.expect(arrival("a", 3), Conflicting)
			w.expectWaiting()
			g.settle(c, true)
			w.expect(Delivered)
		})
	})
}

func TestWaitersAreAnsweredAfterSuccess(t *testing.T) {
	bubble(t, func(g *rig) {
		c := g.expect(arrival("a", 1), Claimed)
		same, other := g.joinMany(3, arrival("a", 1)), g.joinMany(3, arrival("a", 2))
		time.Sleep(wait - 1)
		for _, w := range append(same, other...) {
			w.expectWaiting()
		}
		g.settle(c, true)
		for i := range same {
			same[i].expect(Delivered)
			other[i].expect(Conflicting)
		}
	})
}

func TestWaiterWithOtherDigestRedeliversAfterSuccess(t *testing.T) {
	bubble(t, func(g *rig) {
		c := g.expect(arrival("a", 1), Claimed)
		w := g.join(g.Context(), redeliver(arrival("a", 2)))
		g.settle(c, true)
		g.settle(w.expect(Claimed), true)
		g.expect(arrival("a", 2), Delivered)
	})
}

func TestFailureHandsTheClaimToWaitersInOrder(t *testing.T) {
	bubble(t, func(g *rig) {
		c := g.expect(arrival("a", 1), Claimed)
		ws := g.joinMany(6, arrival("a", 1))
		for i, w := range ws[:4] {
			g.settle(c, false)
			next := w.expect(Claimed)
			if next.Token <= c.Token {
				g.Fatalf("the token went from %d to %d", c.Token, next.Token)
			}
			c = next
			for _, w := range ws[i+1:] {
				w.expectWaiting()
			}
		}
		g.settle(c, true)
		ws[4].expect(Delivered)
		ws[5].expect(Delivered)
	})
}

// A waiter that takes over decides which body is remembered.
func TestWaiterThatTakesOverDeliversItsOwnBody(t *testing.T) {
	bubble(t, func(g *rig) {
		c := g.expect(arrival("a", 1), Claimed)
		w := g.join(g.Context(), arrival("a", 2))
		g.settle(c, false)
		g.settle(w.expect(Claimed), true)
		g.expect(arrival("a", 2), Delivered)
		g.expect(arrival("a", 1), Conflicting)
	})
}

func TestWaitEndsExactlyWhenItHasElapsed(t *testing.T) {
	for _, d := range []time.Duration{-time.Second, 0, 1, wait} {
		t.Run(d.String(), func(t *testing.T) {
			bubble(t, func(g *rig) {
				c := g.expect(arrival("a", 1), Claimed)
				w := g.join(g.Context(), patience(arrival("a", 1), d))
				end := time.Now().Add(max(d, 0))
				time.Sleep(wait + 1)
				w.expectAt(ErrInFlight, end)
				g.settle(c, false)
				g.expect(arrival("a", 1), Claimed) // it was not handed to the one that left
			})
		})
	}
}

func TestWaitIsBoundedAcrossFlights(t *testing.T) {
	t.Run("of owners that fail", func(t *testing.T) {
		bubble(t, func(g *rig) {
			end := time.Now().Add(wait)
			c := g.expect(arrival("a", 1), Claimed)
			ws := g.joinMany(3, arrival("a", 1))
			for _, w := range ws[:2] {
				time.Sleep(wait / 3)
				g.settle(c, false)
				c = w.expect(Claimed)
			}
			time.Sleep(wait)
			ws[2].expectAt(ErrInFlight, end)
		})
	})
	t.Run("of bodies that conflict", func(t *testing.T) {
		bubble(t, func(g *rig) {
			end := time.Now().Add(wait)
			c := g.expect(arrival("a", 1), Claimed)
			ws := g.joinMany(2, redeliver(arrival("a", 2)))
			time.Sleep(wait / 2)
			g.settle(c, true) // one of the two has the claim now, the other waits for it
			synctest.Wait()
			if ws[0].done.Load() == ws[1].done.Load() {
				g.Fatalf("both have an answer: %v, want one of two to go on waiting", ws[0].done.Load())
			}
			if ws[1].done.Load() {
				ws[0], ws[1] = ws[1], ws[0]
			}
			ws[0].expect(Claimed)
			time.Sleep(wait)
			ws[1].expectAt(ErrInFlight, end)
		})
	})
}

// The delivery ends, and that of yet another body begins, in the instant in
// which the wait of a third one does: which is seen first is up to the
// scheduler, but the wait is over in any case.
func TestWaitEndsThoughItsFlightLandsInTheSameInstant(t *testing.T) {
	for range 500 {
		bubble(t, func(g *rig) {
			c := g.expect(arrival("a", 1), Claimed)
			w := g.join(g.Context(), redeliver(arrival("a", 3)))
			time.Sleep(wait)
			end := time.Now()
			g.settle(c, true)
			g.Claim(g.Context(), redeliver(noWait(arrival("a", 2))), g.limits) // either may win
			time.Sleep(time.Second)
			if !w.done.Load() || !w.at.Equal(end) {
				g.Fatal("it went on waiting after its wait was over")
			}
		})
		if t.Failed() {
			return
		}
	}
}

func TestContextEndsTheWait(t *testing.T) {
	bubble(t, func(g *rig) {
		ctx, cancel := context.WithCancel(context.Background())
		c := g.expect(arrival("a", 1), Claimed)
		leaves, stays := g.join(ctx, arrival("a", 1)), g.join(g.Context(), arrival("a", 1))
		time.Sleep(time.Second)
		cancel()
		leaves.expectAt(ErrInFlight, time.Now())
		stays.expectWaiting()
		g.settle(c, false)
		g.settle(stays.expect(Claimed), false)
		g.expect(arrival("a", 1), Claimed)
	})
}

func TestContextThatIsDoneDoesNotTakeAwayAnAnswer(t *testing.T) {
	bubble(t, func(g *rig) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		v, err := g.Claim(ctx, arrival("a", 1), g.limits)
		check(g.T, arrival("a", 1), v, err, Claimed)
		g.settle(v.Claim, true)
		v, err = g.Claim(ctx, arrival("a", 1), g.limits)
		check(g.T, arrival("a", 1), v, err, Delivered)
	})
}

// A claim that is handed to a waiter while it leaves must not be lost: either
// the waiter has it, or it is free.
func TestClaimIsNotLostWhenItsWaiterLeavesInTheSameInstant(t *testing.T) {
	for _, how := range []string{"context", "wait"} {
		t.Run(how, func(t *testing.T) {
			for range 200 {
				bubble(t, func(g *rig) {
					ctx, cancel := context.WithCancel(context.Background())
					defer cancel()
					c := g.expect(arrival("a", 1), Claimed)
					w := g.join(ctx, arrival("a", 1))
					if how == "wait" {
						time.Sleep(wait)
					} else {
						cancel()
					}
					g.settle(c, false)
					synctest.Wait()
					if w.err == nil {
						g.settle(w.expect(Claimed), false)
					}
					g.expect(noWait(arrival("a", 1)), Claimed)
				})
			}
		})
	}
}

func TestOnlyThePresentOwnerSettles(t *testing.T) {
	a := arrival("a", 1)
	for _, late := range []bool{true, false} {
		name := fmt.Sprintf("delivered=%v", late)
		t.Run("after failure and a new claim/"+name, func(t *testing.T) {
			bubble(t, func(g *rig) {
				old := g.expect(a, Claimed)
				g.settle(old, false)
				c := g.expect(a, Claimed)
				g.settle(old, late)
				g.expectOwner(c)
				g.settle(c, true)
				g.expect(a, Delivered)
			})
		})
		t.Run("after a waiter took over/"+name, func(t *testing.T) {
			bubble(t, func(g *rig) {
				old := g.expect(a, Claimed)
				ws := g.joinMany(2, a)
				g.settle(old, false)
				c := ws[0].expect(Claimed)
				g.settle(old, late)
				g.expectOwner(c)
				if late {
					ws[1].expect(Delivered)
					return
				}
				ws[1].expectWaiting()
				g.settle(c, false)
				ws[1].expect(Claimed)
			})
		})
		t.Run("after its own success/"+name, func(t *testing.T) {
			bubble(t, func(g *rig) {
				c := g.expect(a, Claimed)
				g.settle(c, true)
				time.Sleep(retention / 2)
				g.settle(c, late) // must not start the retention again
				g.expect(a, Delivered)
				time.Sleep(retention / 2)
				g.expect(a, Claimed)
			})
		})
		t.Run("after its own failure/"+name, func(t *testing.T) {
			bubble(t, func(g *rig) {
				c := g.expect(a, Claimed)
				g.settle(c, false)
				g.settle(c, late)
				g.expect(a, map[bool]State{true: Delivered, false: Claimed}[late])
			})
		})
		t.Run("while another body is redelivered/"+name, func(t *testing.T) {
			bubble(t, func(g *rig) {
				old := g.expect(a, Claimed)
				g.settle(old, true)
				c := g.expect(redeliver(arrival("a", 2)), Claimed)
				g.settle(old, late)
				g.expect(noWait(redeliver(arrival("a", 2))), ErrInFlight)
				g.settle(c, true)
				g.expect(arrival("a", 2), Delivered)
			})
		})
		t.Run("for another id or scope/"+name, func(t *testing.T) {
			bubble(t, func(g *rig) {
				c := g.expect(a, Claimed)
				b := g.expect(arrival("b", 1), Claimed)
				forged := c
				forged.Key = b.Key
				g.settle(forged, late)
				forged = c
				forged.Scope = "other"
				g.settle(forged, late)
				g.expectOwner(c)
				g.expectOwner(b)
				g.expect(noWait(a), ErrInFlight)
			})
		})
	}
}

func (g *rig) expectOwner(c Claim) {
	g.Helper()
	if !g.Owns(c) {
		g.Fatalf("%+v has been taken from its owner", c)
	}
}

func TestLateSuccessIsRecordedUnlessTheIDWasDeliveredSince(t *testing.T) {
	a, changed := arrival("a", 1), redeliver(arrival("a", 2))
	bubble(t, func(g *rig) {
		old := g.expect(a, Claimed)
		g.settle(old, false)
		owner := g.expect(a, Claimed)
		waiting := g.join(g.Context(), changed)
		g.settle(old, true)
		g.expect(a, Delivered)
		waiting.expectWaiting() // for its own body to be delivered
		g.settle(owner, false)
		g.expect(a, Delivered)
		waiting.expect(Claimed)
	})
	bubble(t, func(g *rig) {
		old := g.expect(a, Claimed)
		g.settle(old, false)
		g.deliver(arrival("a", 2))
		g.settle(old, true)
		g.expect(arrival("a", 2), Delivered)
	})
	bubble(t, func(g *rig) {
		g.deliver(a)
		old := g.expect(changed, Claimed)
		if old.Replaces != 1 {
			g.Errorf("the claim replaces %d, want 1", old.Replaces)
		}
		waiting := g.join(g.Context(), redeliver(arrival("a", 3)))
		g.settle(old, false)
		owner := waiting.expect(Claimed)
		if owner.Replaces != 1 {
			g.Errorf("the claim that was handed over replaces %d, want 1", owner.Replaces)
		}
		g.settle(old, true) // the delivery that it replaces is from before the claim
		g.expect(arrival("a", 2), Delivered)
		g.settle(owner, true)
		g.settle(old, true)
		g.expect(arrival("a", 3), Delivered)
	})
}

func TestRecordsTellsWhatSettleDoes(t *testing.T) {
	a := arrival("a", 1)
	bubble(t, func(g *rig) {
		expect := func(c Claim, want bool) {
			g.Helper()
			if g.Records(c) != want {
				g.Errorf("a success of %+v is recorded: %v, want %v", c, !want, want)
			}
		}
		old := g.expect(a, Claimed)
		expect(old, true)
		expect(elsewhere(old), true) // nothing is known there
		g.settle(old, false)
		expect(old, true)
		g.deliver(a)
		expect(old, false)
		time.Sleep(retention)
		expect(old, true)
	})
}

func TestScopesAreApart(t *testing.T) {
	bubble(t, func(g *rig) {
		g.limits.Capacity = 1
		a := arrival("a", 1)
		g.deliver(in("one", a))
		c := g.expect(in("two", a), Claimed)
		g.expect(noWait(in("two", a)), ErrInFlight)
		g.expect(in("one", a), Delivered)
		g.settle(c, false)
		g.expect(in("one", a), Delivered)
		g.deliver(in("two", arrival("a", 2)))
		g.expect(in("one", a), Delivered)
		g.expect(in("two", a), Conflicting)
	})
}

func TestRetentionCountsFromTheSuccess(t *testing.T) {
	for _, d := range []time.Duration{1, time.Second, retention} {
		t.Run(d.String(), func(t *testing.T) {
			bubble(t, func(g *rig) {
				r := keep(arrival("a", 1), d)
				c := g.expect(r, Claimed)
				time.Sleep(time.Hour)
				g.settle(c, true)
				g.expect(r, Delivered)
				time.Sleep(d - 1)
				g.expect(r, Delivered)
				time.Sleep(time.Nanosecond)
				g.expect(r, Claimed)
			})
		})
	}
	t.Run("also that of a redelivery", func(t *testing.T) {
		bubble(t, func(g *rig) {
			g.deliver(arrival("a", 1))
			time.Sleep(retention / 2)
			g.deliver(redeliver(arrival("a", 2)))
			time.Sleep(retention - 1)
			g.expect(arrival("a", 2), Delivered)
			time.Sleep(time.Nanosecond)
			g.expect(arrival("a", 2), Claimed)
		})
	})
}

// A reload may change the retention. What was delivered before keeps its own.
func TestEachIDKeepsItsOwnRetention(t *testing.T) {
	retentions := []time.Duration{time.Hour, 24 * time.Hour, time.Minute, time.Hour, 2 * time.Minute}
	id := func(i int) string { return fmt.Sprint("id ", i) }
	for last := range retentions {
		t.Run(fmt.Sprint("asked with the retention of ", last), func(t *testing.T) {
			bubble(t, func(g *rig) {
				var expires []time.Time
				for i, d := range retentions {
					g.deliver(keep(arrival(id(i), 1), d))
					expires = append(expires, time.Now().Add(d))
					time.Sleep(time.Second)
				}
				probe := func(i int, want any) {
					g.Helper()
					c := g.expect(keep(arrival(id(i), 1), retentions[last]), want)
					g.settle(c, false)
				}
				for _, i := range []int{2, 4, 0, 3, 1} { // in order of expiry
					time.Sleep(time.Until(expires[i]) - 1)
					probe(i, Delivered)
					time.Sleep(time.Nanosecond)
					probe(i, Claimed)
				}
				if n := g.count("scope"); n != 0 {
					g.Errorf("%d ids are left after all have expired", n)
				}
			})
		})
	}
}

// An operator who wants an id remembered for ever must not get "never".
func TestLongestRetentionDoesNotWrapRound(t *testing.T) {
	bubble(t, func(g *rig) {
		g.deliver(keep(arrival("a", 1), math.MaxInt64))
		g.expect(arrival("a", 1), Delivered)
	})
}

func TestForgetsTheOldestAtCapacity(t *testing.T) {
	bubble(t, func(g *rig) {
		g.limits.Capacity = 3
		g.deliverMany(5)
		for _, id := range []string{"2", "3", "4"} {
			g.expect(arrival(id, 1), Delivered)
		}
		if n := g.count("scope"); n != 3 {
			g.Errorf("%d ids are remembered", n)
		}
		// a redelivery makes an id the youngest, and pushes out none
		g.deliver(redeliver(arrival("2", 2)))
		g.expect(arrival("3", 1), Delivered)
		g.deliver(arrival("5", 1))
		g.expect(arrival("2", 2), Delivered)
		g.settle(g.expect(arrival("3", 1), Claimed), false)
		g.expect(arrival("4", 1), Delivered)
		g.expect(arrival("0", 1), Claimed)
		g.expect(arrival("1", 1), Claimed)
	})
}

// Arrivals alone must not push anything out: only a success takes room.
func TestClaimsThatFailForgetNothing(t *testing.T) {
	bubble(t, func(g *rig) {
		g.limits.Capacity = 3
		g.deliverMany(3)
		for i := range 10 {
			g.settle(g.expect(arrival(fmt.Sprint("failed ", i), 1), Claimed), false)
		}
		for i := range 3 {
			g.expect(arrival(fmt.Sprint(i), 1), Delivered)
		}
	})
}

func TestCapacityNeverForgetsAnIDInFlight(t *testing.T) {
	bubble(t, func(g *rig) {
		g.limits.Capacity = 1
		flying := []Claim{g.expect(arrival("x", 1), Claimed), g.expect(arrival("y", 1), Claimed)}
		w := g.join(g.Context(), arrival("x", 1))
		g.deliverMany(3 * maxRemovals)
		for _, c := range flying {
			g.expect(noWait(c.Request), ErrInFlight)
		}
		g.settle(flying[0], true)
		w.expect(Delivered)
		g.expect(arrival("x", 1), Delivered)
		g.settle(flying[1], true)
		g.expect(arrival("y", 1), Delivered)
		g.settle(g.expect(arrival("x", 1), Claimed), false) // y took its room
	})
}

func TestLoweredCapacityConvergesInBatches(t *testing.T) {
	const before, after = 1000, 10
	for _, op := range []string{"claim", "settle"} {
		t.Run(op, func(t *testing.T) {
			bubble(t, func(g *rig) {
				g.limits.Capacity = before
				g.deliverMany(before)
				flying := make([]Claim, before/maxRemovals+1)
				for i := range flying {
					flying[i] = g.expect(arrival(fmt.Sprint("flying ", i), 1), Claimed)
				}
				g.limits.Capacity = after
				for _, c := range flying {
					was, added := g.count("scope"), 0
					if op == "settle" {
						g.settle(c, true)
						added = 1
					} else {
						g.expect(noWait(c.Request), ErrInFlight)
					}
					// as many as one operation may, and no more
					if n, want := g.count("scope"), max(was-maxRemovals+added, after); n != want {
						g.Fatalf("went from %d to %d ids, want %d", was, n, want)
					}
				}
				if n := g.count("scope"); n != after {
					g.Errorf("ended with %d ids", n)
				}
				if op == "claim" { // the youngest were kept
					for i := before - after; i < before; i++ {
						g.expect(arrival(fmt.Sprint(i), 1), Delivered)
					}
				}
			})
		})
	}
}

// An id that has expired is unseen even while it is still in memory.
func TestExpiredIDsGoInBatchesButAreUnseenAtOnce(t *testing.T) {
	const n = 10 * maxRemovals
	bubble(t, func(g *rig) {
		g.deliverMany(n)
		time.Sleep(retention)
		youngest := arrival(fmt.Sprint(n-1), 2)
		c := g.expect(youngest, Claimed)
		if left := g.count("scope"); left != n-maxRemovals {
			g.Errorf("%d of %d ids are left after one operation, want %d", left, n, n-maxRemovals)
		}
		g.settle(c, true)
		g.expect(youngest, Delivered)
		for range n/maxRemovals - 2 {
			g.expect(youngest, Delivered)
		}
		if left := g.count("scope"); left != 1 {
			g.Errorf("%d ids are left", left)
		}
	})
}

func TestRefusesNewIDsWhenFull(t *testing.T) {
	bubble(t, func(g *rig) {
		g.limits = Limits{Capacity: 3, RefuseWhenFull: true}
		g.deliver(arrival("old", 1))
		time.Sleep(time.Minute)
		g.deliver(arrival("young", 1))
		c := g.expect(arrival("flying", 1), Claimed) // takes the last place

		g.expect(arrival("new", 1), ErrFull)
		g.expect(in("other", arrival("new", 1)), Claimed) // each scope has its own room

		g.expect(arrival("old", 1), Delivered)
		g.expect(arrival("old", 2), Conflicting)
		g.settle(g.expect(redeliver(arrival("old", 2)), Claimed), false)
		g.expect(arrival("old", 1), Delivered)

		w := g.join(g.Context(), arrival("flying", 1))
		g.settle(c, false)
		c = w.expect(Claimed) // a place that is taken over is no new one
		g.expect(arrival("new", 1), ErrFull)
		w = g.join(g.Context(), arrival("flying", 1))
		g.settle(c, true)
		w.expect(Delivered)
		g.expect(arrival("new", 1), ErrFull)

		time.Sleep(retention - time.Minute - 1)
		g.expect(arrival("new", 1), ErrFull)
		time.Sleep(time.Nanosecond)
		c = g.expect(arrival("new", 1), Claimed)
		g.expect(arrival("newer", 1), ErrFull)
		g.settle(c, false) // a failure gives its place back
		g.deliver(arrival("newer", 1))
		g.expect(arrival("young", 1), Delivered)
	})
}

func TestSuccessIsRememberedOverCapacityWhenRefusing(t *testing.T) {
	bubble(t, func(g *rig) {
		g.limits.Capacity = 4
		var flying []Claim
		for i := range 4 {
			flying = append(flying, g.expect(arrival(fmt.Sprint("flying ", i), 1), Claimed))
		}
		g.deliverMany(2)
		g.limits = Limits{Capacity: 2, RefuseWhenFull: true} // as a reload may do
		for _, c := range flying {
			g.settle(c, true)
		}
		for _, c := range flying {
			g.expect(c.Request, Delivered)
		}
		g.expect(arrival("0", 1), Delivered)
		g.expect(arrival("1", 1), Delivered)
		g.expect(arrival("new", 1), ErrFull)
		time.Sleep(retention)
		g.expect(arrival("new", 1), Claimed)
	})
}

func TestScopesThatAreEmptyGoWhenANewOneAppears(t *testing.T) {
	bubble(t, func(g *rig) {
		expect := func(want string) {
			g.Helper()
			var got []string
			for _, name := range []string{"failed", "expired", "flying", "long", "settled", "new", "newer"} {
				if g.registry.scopes[name] != nil {
					got = append(got, name)
				}
			}
			if s := strings.Join(got, " "); s != want || len(got) != len(g.registry.scopes) {
				g.Fatalf("%d scopes with %q, want %q", len(g.registry.scopes), s, want)
			}
		}
		a := arrival("a", 1)
		c := g.expect(in("flying", a), Claimed)
		// the id that is kept longest is neither the first nor the last delivered
		for i, d := range []time.Duration{time.Minute, time.Hour, time.Second} {
			g.deliver(in("long", keep(arrival(fmt.Sprint(i), 1), d)))
		}
		g.deliver(in("expired", keep(a, time.Hour-1)))
		g.settle(g.expect(in("failed", a), Claimed), false)
		time.Sleep(time.Hour - 1)
		expect("failed expired flying long") // time alone removes none
		g.expect(in("long", a), Claimed)
		expect("failed expired flying long") // nor does an old scope
		g.settle(Claim{Request: in("long", a), Token: g.registry.lastToken}, false)

		g.expect(in("new", a), Claimed)
		expect("flying long new")
		w := g.join(g.Context(), in("flying", a))
		g.settle(c, true)
		w.expect(Delivered)
		g.expect(in("long", arrival("1", 1)), Delivered)
		time.Sleep(time.Nanosecond)
		g.expect(in("newer", a), Claimed)
		expect("flying new newer")
		g.expect(in("flying", a), Delivered)
	})
}

// model says the same as a ledger in the plainest way.
type model map[string]*modelScope

type modelScope struct {
	delivered map[Key]modelEntry
	inFlight  map[Key]uint64 // tokens
}

type modelEntry struct {
	digest  Digest
	expires time.Time
}

func (m model) scope(name string) *modelScope {
	if m[name] == nil {
		m[name] = &modelScope{map[Key]modelEntry{}, map[Key]uint64{}}
	}
	return m[name]
}

func (s *modelScope) forget(limits Limits, count int) {
	for k, e := range s.delivered {
		if !e.expires.After(time.Now()) {
			delete(s.delivered, k)
		}
	}
	for !limits.RefuseWhenFull && len(s.delivered) > max(count, 0) {
		var oldest Key
		for k, e := range s.delivered {
			if o, ok := s.delivered[oldest]; !ok || e.expires.Before(o.expires) {
				oldest = k
			}
		}
		delete(s.delivered, oldest)
	}
}

// claim returns what [rig.expect] takes.
func (m model) claim(r Request, limits Limits) any {
	s := m.scope(r.Scope)
	s.forget(limits, limits.Capacity)
	e, known := s.delivered[r.Key]
	_, flies := s.inFlight[r.Key]
	switch {
	case known && e.digest == r.Digest:
		return Delivered
	case known && !r.Redeliver:
		return Conflicting
	case flies:
		return ErrInFlight
	case !known && limits.RefuseWhenFull && len(s.delivered)+len(s.inFlight) >= limits.Capacity:
		return ErrFull
	}
	return Claimed
}

func (m model) settle(c Claim, delivered bool, limits Limits) {
	s := m.scope(c.Scope)
	e, known := s.delivered[c.Key]
	known = known && e.expires.After(time.Now())
	if s.inFlight[c.Key] == c.Token {
		delete(s.inFlight, c.Key)
	} else if known && (c.Replaces == 0 || c.Replaces != e.digest) {
		return // delivered since
	}
	if delivered {
		delete(s.delivered, c.Key)
		s.forget(limits, limits.Capacity-1)
		s.delivered[c.Key] = modelEntry{c.Digest, time.Now().Add(c.Retention)}
	}
}

func TestRandomOperationsAgreeWithModel(t *testing.T) {
	rnd := random(t)
	keys := make([]Key, 24)
	for i := range keys {
		keys[i] = KeyOf(fmt.Sprint(i))
	}
	capacities := []int{1, 2, 5, 9, 1000}
	retentions := []time.Duration{time.Second, 7 * time.Second, 90 * time.Second}
	seen := map[any]int{}
	bubble(t, func(g *rig) {
		m := model{}
		var claims []Claim // of late, whether settled or not
		for step := range 30_000 {
			// whole seconds and one nanosecond a step: no two ids expire in one
			// instant, so which is the oldest is beyond doubt
			time.Sleep(1 + time.Duration(max(0, rnd.IntN(8)-5))*time.Second)
			if step%50 == 0 { // a reload
				g.limits = Limits{capacities[rnd.IntN(len(capacities))], rnd.IntN(2) == 0}
			}
			if len(claims) > 0 && rnd.IntN(3) == 0 {
				c, delivered := claims[rnd.IntN(len(claims))], rnd.IntN(3) > 0
				g.settle(c, delivered)
				m.settle(c, delivered, g.limits)
			} else {
				r := Request{
					Scope:     fmt.Sprint(rnd.IntN(3)),
					Key:       keys[rnd.IntN(len(keys))],
					Digest:    Digest(rnd.IntN(2)),
					Retention: retentions[rnd.IntN(len(retentions))],
					Redeliver: rnd.IntN(4) == 0,
				}
				if rnd.IntN(200) == 0 { // a new scope makes empty ones go
					r.Scope = fmt.Sprint("new ", step)
				}
				want := m.claim(r, g.limits)
				seen[want]++
				c := g.expect(r, want)
				if want == Claimed {
					if len(claims) > 0 && c.Token <= claims[len(claims)-1].Token {
						g.Fatalf("step %d: the token %d does not increase", step, c.Token)
					}
					m[r.Scope].inFlight[r.Key] = c.Token
					claims = append(claims, c)
					claims = claims[max(0, len(claims)-32):]
				}
			}
			for name, s := range m {
				ledger := g.registry.scopes[name]
				if ledger == nil {
					ledger = new(scope)
				}
				// what has expired and awaits the scope's next use is not compared
				if n, want := len(ledger.inFlight), len(s.inFlight); n != want {
					g.Fatalf("step %d: %d ids in flight, want %d", step, n, want)
				}
				for k, e := range s.delivered {
					if !e.expires.After(time.Now()) {
						continue
					}
					if got := ledger.delivered.find(k); got == nil || got.digest != e.digest || got.expires != e.expires.UnixNano() {
						g.Fatalf("step %d: remembered %+v, want %+v", step, got, e)
					}
				}
				if n, most := ledger.delivered.count, len(s.delivered); n > most {
					g.Fatalf("step %d: %d ids remembered, want at most %d", step, n, most)
				}
			}
			if step%100 == 0 { // claims that nobody can settle any more must not fill the scopes
				for name, s := range m {
					for k, token := range s.inFlight {
						c := Claim{Request: Request{Scope: name, Key: k}, Token: token}
						g.settle(c, false)
						m.settle(c, false, g.limits)
					}
				}
			}
		}
	})
	for _, outcome := range []any{Claimed, Delivered, Conflicting, ErrInFlight, ErrFull} {
		if seen[outcome] < 100 {
			t.Errorf("outcome %v came up only %d times", outcome, seen[outcome])
		}
	}
}

func TestConcurrentOwnersFailAtRandomAndEachIDIsDeliveredOnce(t *testing.T) {
	const ids, goroutines = 1000, 32
	// a claim that got lost shows as a wait that never ends
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	gone, leave := context.WithCancel(ctx)
	leave()
	var (
		g                 = newRig(t)
		seed              = random(t).Uint64()
		owners, delivered [ids]atomic.Int32
		tokens            sync.Map
		failures, left    atomic.Int32
		all               sync.WaitGroup
	)
	for n := range goroutines {
		rnd := rand.New(rand.NewPCG(seed, uint64(n)))
		// waiting until the end, not at all, until the context is done, and a
		// time that makes leaving meet landing
		claim := func(r Request) (Verdict, error) {
			switch r.Wait = time.Minute; rnd.IntN(6) {
			case 0:
				r.Wait = 0
			case 1:
				r.Wait = time.Duration(rnd.IntN(50)) * time.Microsecond
			case 2:
				return g.Claim(gone, r, g.limits)
			}
			return g.Claim(ctx, r, g.limits)
		}
		all.Go(func() {
			order := rnd.Perm(ids)
			if n%2 == 0 { // these crowd round one id after the other
				slices.Sort(order)
			}
			for _, id := range order {
				if id%8 == 0 { // other scopes come and go meanwhile
					g.Settle(Claim{Request: Request{Scope: fmt.Sprint(n, id)}}, false, time.Now(), g.limits)
				}
				r := arrival(fmt.Sprint(id), 1)
				for answered := false; !answered; {
					v, err := claim(r)
					switch {
					case ctx.Err() != nil:
						t.Error("a claim was lost")
						return
					case errors.Is(err, ErrInFlight):
						left.Add(1)
						runtime.Gosched()
						continue
					case err != nil || v.State == Conflicting:
						t.Errorf("got state %d and error %v", v.State, err)
						return
					case v.State == Delivered:
						if delivered[id].Load() == 0 {
							t.Errorf("id %d is called delivered, but is not", id)
						}
						answered = true
						continue
					}
					if _, again := tokens.LoadOrStore(v.Claim.Token, id); again {
						t.Errorf("the token %d was given out twice", v.Claim.Token)
					}
					if o := owners[id].Add(1); o != 1 {
						t.Errorf("id %d has %d owners", id, o)
					}
					for range rnd.IntN(20) {
						runtime.Gosched()
					}
					answered = rnd.IntN(10) == 0
					if answered {
						delivered[id].Add(1)
					} else {
						failures.Add(1)
					}
					owners[id].Add(-1)
					g.settle(v.Claim, answered)
					if rnd.IntN(4) == 0 { // a late settle by somebody who owns it no more
						g.settle(v.Claim, answered && rnd.IntN(2) == 0)
					}
				}
			}
		})
	}
	all.Wait()
	for id := range ids {
		if n := delivered[id].Load(); n != 1 {
			t.Errorf("id %d was delivered %d times", id, n)
		}
	}
	if failures.Load() == 0 || left.Load() == 0 {
		t.Errorf("%d deliveries failed and %d waiters left: nothing was put to the test", failures.Load(), left.Load())
	}
	if s := g.registry.scopes["scope"]; len(s.inFlight) != 0 || s.delivered.count != ids {
		t.Errorf("%d ids in flight and %d remembered in the end", len(s.inFlight), s.delivered.count)
	}
}

// Stores on disk and between processes rely on these values not to change.
func TestKeysAndDigestsAreStable(t *testing.T) {
	for _, id := range []string{"", "evt_7f3a9b2c", strings.Repeat("x", 256), strings.Repeat("x", 257)} {
		sum := sha256.Sum256([]byte(id))
		if got := KeyOf(id); got != Key(sum[:16]) {
			t.Errorf("the key of %d bytes is %x", len(id), got)
		}
	}
	// the test vectors of xxHash64
	for body, want := range map[string]Digest{"": 0xef46db3751d8e999, "a": 0xd24ec4f1a98c6e5b, "abc": 0x44bc2cf5ad770999} {
		if got := DigestOf([]byte(body)); got != want {
			t.Errorf("the digest of %q is %x, want %x", body, uint64(got), uint64(want))
		}
	}
}

func TestKeysAndDigestsTakeNoMemory(t *testing.T) {
	id, body := strings.Repeat("x", 256), make([]byte, 4096)
	var key Key
	var digest Digest
	if n := testing.AllocsPerRun(100, func() { key, digest = KeyOf(id), DigestOf(body) }); n != 0 {
		t.Errorf("%v allocations for the key %x and the digest %x", n, key, digest)
	}
}

func TestLookupForgetAndStats(t *testing.T) {
	bubble(t, func(g *rig) {
		a, b := arrival("a", 1), arrival("b", 2)
		if known := g.Lookup("scope", a.Key); known != (Status{}) {
			g.Errorf("an unseen id is %+v", known)
		}
		if g.Forget("scope", a.Key).Delivered {
			g.Error("an unseen id was forgotten")
		}
		claim := g.expect(a, Claimed)
		if known := g.Lookup("scope", a.Key); known != (Status{InFlight: true}) {
			g.Errorf("an id in flight is %+v", known)
		}
		if g.Forget("scope", a.Key).Delivered {
			g.Error("an id in flight was forgotten")
		}
		g.settle(claim, true)
		g.deliver(in("other", b))
		want := Status{Delivered: true, Digest: 1, Expires: time.Now().Add(retention)}
		if known := g.Lookup("scope", a.Key); known.Expires.UnixNano() != want.Expires.UnixNano() || known.Digest != 1 || !known.Delivered || known.InFlight {
			g.Errorf("a delivered id is %+v, want %+v", known, want)
		}
		if known := g.Lookup("other", a.Key); known != (Status{}) {
			g.Errorf("in another scope it is %+v", known)
		}
		g.expect(arrival("in flight", 1), Claimed)
		stats := g.Stats(g.limits)
		if len(stats.Scopes) != 2 || stats.Scopes["scope"] != (ScopeStats{Delivered: 1, InFlight: 1, Capacity: 1000}) || stats.Scopes["other"].Delivered != 1 {
			g.Errorf("the stats are %+v", stats)
		}

		// a store that has it elsewhere as well can tell which delivery to forget
		if was := g.Forget("scope", a.Key); !was.Delivered || was.Digest != 1 || was.Expires.UnixNano() != want.Expires.UnixNano() {
			g.Errorf("what was forgotten is %+v, want %+v", was, want)
		}
		if g.Forget("scope", a.Key).Delivered {
			g.Error("a delivered id was forgotten twice")
		}
		g.deliver(a)
		time.Sleep(retention)
		if known := g.Lookup("scope", a.Key); known != (Status{}) {
			g.Errorf("an expired id is %+v", known)
		}
		if g.Forget("scope", a.Key).Delivered {
			g.Error("an expired id was said to be remembered")
		}
		if stats := g.Stats(g.limits); len(stats.Scopes) != 1 || stats.Scopes["scope"].Delivered != 0 {
			g.Errorf("after all has expired the stats are %+v", stats)
		}
	})
}

// Ids that were delivered while the clock was ahead do not keep those that
// came after it was put right.
func TestClockThatIsPutBackKeepsNothingLonger(t *testing.T) {
	bubble(t, func(g *rig) {
		g.Remember(arrival("ahead", 1), time.Now().Add(100*retention), g.limits)
		const n = 50
		for i := range n {
			g.Remember(arrival(fmt.Sprint(i), 1), time.Now(), g.limits)
			time.Sleep(retention / 10)
		}
		if held := g.Stats(g.limits).Scopes["scope"].Delivered; held > 12 {
			t.Errorf("%d ids of %d are held, although a tenth of the retention lies between them", held, n)
		}
	})
}

func TestOnlyThePresentOwnerOwns(t *testing.T) {
	bubble(t, func(g *rig) {
		first := g.expect(arrival("a", 1), Claimed)
		if !g.Owns(first) {
			g.Error("the owner does not own")
		}
		next := g.join(g.Context(), arrival("a", 1))
		g.settle(first, false)
		second := next.expect(Claimed)
		if g.Owns(first) || !g.Owns(second) || g.Owns(elsewhere(second)) {
			g.Error("ownership has not passed on")
		}
		g.settle(second, true)
		if g.Owns(second) {
			g.Error("a settled claim is owned")
		}
	})
}

func elsewhere(c Claim) Claim { c.Scope = "other"; return c }

func TestRememberTakesWhatWasDeliveredElsewhere(t *testing.T) {
	bubble(t, func(g *rig) {
		now := time.Now()
		g.Remember(keep(arrival("old", 1), time.Hour), now.Add(-time.Hour), g.limits)
		g.Remember(keep(arrival("young", 1), time.Hour), now.Add(-time.Minute), g.limits)
		g.expect(arrival("old", 1), Claimed)
		g.expect(arrival("young", 1), Delivered)
		time.Sleep(59 * time.Minute)
		g.expect(arrival("young", 1), Claimed)
	})
}

func TestEvictionsAreCountedAndExpiriesAreNot(t *testing.T) {
	bubble(t, func(g *rig) {
		g.limits.Capacity = 10
		g.deliverMany(13)
		if n := g.Stats(g.limits).Evicted; n != 3 {
			g.Errorf("%d ids were evicted, want 3", n)
		}
		time.Sleep(retention)
		g.deliverMany(10)
		if n := g.Stats(g.limits).Evicted; n != 3 {
			g.Errorf("%d ids were evicted, want the 3 of before", n)
		}
	})
}

func TestStatsForgetNothingOfScopesWithOtherLimits(t *testing.T) {
	bubble(t, func(g *rig) {
		g.deliverMany(10)
		g.Stats(Limits{Capacity: 1})
		if n := g.Stats(g.limits).Scopes["scope"].Delivered; n != 10 {
			g.Errorf("%d of 10 ids are left", n)
		}
	})
}
