package dedupe

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the randomized tests; 0 uses a new one each time")

// random returns a generator and logs its seed, so that -seed reproduces a
// failure.
func random(t *testing.T) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("reproduce with -seed=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

const (
	wait      = 8 * time.Second
	retention = 24 * time.Hour
)

// arrival is a request with defaults for what most tests do not vary.
func arrival(id string, body Digest) Request {
	return Request{Scope: "scope", Key: KeyOf(id), Digest: body, Wait: wait, Retention: retention}
}

// noWait, redeliver, keep and in change one thing about a request.
func noWait(r Request) Request                    { r.Wait = 0; return r }
func redeliver(r Request) Request                 { r.Redeliver = true; return r }
func keep(r Request, d time.Duration) Request     { r.Retention = d; return r }
func in(scope string, r Request) Request          { r.Scope = scope; return r }
func patience(r Request, d time.Duration) Request { r.Wait = d; return r }

// rig is a ledger under test with the limits of its calls.
type rig struct {
	*testing.T
	Ledger
	limits Limits
}

func newRig(t *testing.T) *rig { return &rig{T: t, limits: Limits{Capacity: 1000}} }

// bubble runs a test in synthetic time.
func bubble(t *testing.T, f func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(newRig(t)) })
}

// check compares an answer with the one wanted: a [State] or an error.
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

// expect makes a claim and checks the answer.
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

// asyncClaim is a claim that waits in a goroutine of its own.
type asyncClaim struct {
	g       *rig
	request Request
	done    atomic.Bool // once true, the fields below are final
	at      time.Time
	verdict Verdict
	err     error
}

// join returns once the claim waits, so that several claims wait in the order of
// their calls.
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
		w.g.Fatalf("got %+v and error %v, want it to keep waiting", w.verdict, w.err)
	}
}

func (w *asyncClaim) expectAt(want any, at time.Time) {
	w.g.Helper()
	w.expect(want)
	if !w.at.Equal(at) {
		w.g.Fatalf("answered %v too late", w.at.Sub(at))
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
		g.expect(redeliver(arrival("a", 1)), Delivered) // the same body is not delivered again
	})
}

func TestFailedIDIsUnseenAgain(t *testing.T) {
	bubble(t, func(g *rig) {
		for range 3 {
			g.settle(g.expect(arrival("a", 1), Claimed), false)
		}
		g.settle(g.expect(arrival("a", 2), Claimed), true) // the digest of the failure was not kept
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
				g.Errorf("%d entries for one ID", n)
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

func TestFailurePassesTheClaimToWaitersInOrder(t *testing.T) {
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
				g.expect(arrival("a", 1), Claimed) // it was not passed to the waiter that left
			})
		})
	}
}

func TestWaitIsBoundedAcrossSeveralDeliveries(t *testing.T) {
	t.Run("that fail", func(t *testing.T) {
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
	t.Run("of other bodies", func(t *testing.T) {
		bubble(t, func(g *rig) {
			end := time.Now().Add(wait)
			c := g.expect(arrival("a", 1), Claimed)
			ws := g.joinMany(2, redeliver(arrival("a", 2)))
			time.Sleep(wait / 2)
			g.settle(c, true) // one of the two gets the claim, the other waits for it
			synctest.Wait()
			if ws[0].done.Load() == ws[1].done.Load() {
				g.Fatalf("both are answered: %v, want one of the two to keep waiting", ws[0].done.Load())
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

// A delivery ends and that of another body begins in the instant in which the
// wait of a third body ends. The scheduler decides which is seen first, but the
// wait must end in any case.
func TestWaitEndsThoughTheDeliveryEndsInTheSameInstant(t *testing.T) {
	for range 500 {
		bubble(t, func(g *rig) {
			c := g.expect(arrival("a", 1), Claimed)
			w := g.join(g.Context(), redeliver(arrival("a", 3)))
			time.Sleep(wait)
			end := time.Now()
			g.settle(c, true)
			g.Claim(g.Context(), redeliver(noWait(arrival("a", 2))), g.limits) // either may get the claim
			time.Sleep(time.Second)
			if !w.done.Load() || !w.at.Equal(end) {
				g.Fatal("it kept waiting after its wait had ended")
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

func TestContextThatIsDoneDoesNotDiscardAnAnswer(t *testing.T) {
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

// A claim that is passed to a waiter while it leaves must not be lost: either
// the waiter gets it, or the ID is unseen.
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

func TestOnlyTheCurrentOwnerSettles(t *testing.T) {
	for _, late := range []bool{true, false} {
		for name, test := range map[string]func(g *rig, late bool){
			"after failure and a new claim":       settleAfterNewClaim,
			"after a waiter took over":            settleAfterTakeover,
			"after its own success":               settleAfterSuccess,
			"after its own failure":               settleAfterFailure,
			"while another body is redelivered":   settleDuringRedelivery,
			"of a claim with another ID or scope": settleForged,
		} {
			t.Run(fmt.Sprintf("%s/delivered=%v", name, late), func(t *testing.T) {
				bubble(t, func(g *rig) { test(g, late) })
			})
		}
	}
}

func settleAfterNewClaim(g *rig, late bool) {
	a := arrival("a", 1)
	old := g.expect(a, Claimed)
	g.settle(old, false)
	c := g.expect(a, Claimed)
	g.settle(old, late)
	g.expectOwner(c)
	g.settle(c, true)
	g.expect(a, Delivered)
}

func settleAfterTakeover(g *rig, late bool) {
	a := arrival("a", 1)
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
}

func settleAfterSuccess(g *rig, late bool) {
	a := arrival("a", 1)
	c := g.expect(a, Claimed)
	g.settle(c, true)
	time.Sleep(retention / 2)
	g.settle(c, late) // must not start the retention again
	g.expect(a, Delivered)
	time.Sleep(retention / 2)
	g.expect(a, Claimed)
}

func settleAfterFailure(g *rig, late bool) {
	a := arrival("a", 1)
	c := g.expect(a, Claimed)
	g.settle(c, false)
	g.settle(c, late)
	g.expect(a, map[bool]State{true: Delivered, false: Claimed}[late])
}

func settleDuringRedelivery(g *rig, late bool) {
	old := g.expect(arrival("a", 1), Claimed)
	g.settle(old, true)
	c := g.expect(redeliver(arrival("a", 2)), Claimed)
	g.settle(old, late)
	g.expect(noWait(redeliver(arrival("a", 2))), ErrInFlight)
	g.settle(c, true)
	g.expect(arrival("a", 2), Delivered)
}

func settleForged(g *rig, late bool) {
	c, b := g.expect(arrival("a", 1), Claimed), g.expect(arrival("b", 1), Claimed)
	forged := c
	forged.Key = b.Key
	g.settle(forged, late)
	g.settle(inOtherScope(c), late)
	g.expectOwner(c)
	g.expectOwner(b)
	g.expect(noWait(arrival("a", 1)), ErrInFlight)
}

func (g *rig) expectOwner(c Claim) {
	g.Helper()
	if !g.Owns(c) {
		g.Fatalf("%+v is no longer owned", c)
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
		waiting.expectWaiting() // until its own body may be delivered
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
			g.Errorf("the claim that was passed on replaces %d, want 1", owner.Replaces)
		}
		g.settle(old, true) // it replaces the delivery before the claim
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
		expect(inOtherScope(old), true) // nothing is known of that scope
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

// A reload may change the retention. IDs that were delivered before it keep
// theirs.
func TestEachIDKeepsItsOwnRetention(t *testing.T) {
	retentions := []time.Duration{time.Hour, 24 * time.Hour, time.Minute, time.Hour, 2 * time.Minute}
	id := func(i int) string { return fmt.Sprint("id ", i) }
	for last := range retentions {
		t.Run(fmt.Sprint("requested with retention ", last), func(t *testing.T) {
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
					g.Errorf("%d IDs are left after all have expired", n)
				}
			})
		})
	}
}

func TestLongestRetentionDoesNotOverflow(t *testing.T) {
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
			g.Errorf("%d IDs are remembered", n)
		}
		// a redelivery makes an ID the newest and evicts none
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

// Only a success takes room.
func TestClaimsThatFailEvictNothing(t *testing.T) {
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
		inFlight := []Claim{g.expect(arrival("x", 1), Claimed), g.expect(arrival("y", 1), Claimed)}
		w := g.join(g.Context(), arrival("x", 1))
		g.deliverMany(3 * maxRemovals)
		for _, c := range inFlight {
			g.expect(noWait(c.Request), ErrInFlight)
		}
		g.settle(inFlight[0], true)
		w.expect(Delivered)
		g.expect(arrival("x", 1), Delivered)
		g.settle(inFlight[1], true)
		g.expect(arrival("y", 1), Delivered)
		g.settle(g.expect(arrival("x", 1), Claimed), false) // y took its place
	})
}

func TestLoweredCapacityConvergesInBatches(t *testing.T) {
	const before, after = 1000, 10
	for _, op := range []string{"claim", "settle"} {
		t.Run(op, func(t *testing.T) {
			bubble(t, func(g *rig) {
				g.limits.Capacity = before
				g.deliverMany(before)
				inFlight := make([]Claim, before/maxRemovals+1)
				for i := range inFlight {
					inFlight[i] = g.expect(arrival(fmt.Sprint("in flight ", i), 1), Claimed)
				}
				g.limits.Capacity = after
				for _, c := range inFlight {
					was, added := g.count("scope"), 0
					if op == "settle" {
						g.settle(c, true)
						added = 1
					} else {
						g.expect(noWait(c.Request), ErrInFlight)
					}
					// as many as one operation may remove
					if n, want := g.count("scope"), max(was-maxRemovals+added, after); n != want {
						g.Fatalf("went from %d to %d IDs, want %d", was, n, want)
					}
				}
				if n := g.count("scope"); n != after {
					g.Errorf("ended with %d IDs", n)
				}
				if op == "claim" { // the newest were kept
					for i := before - after; i < before; i++ {
						g.expect(arrival(fmt.Sprint(i), 1), Delivered)
					}
				}
			})
		})
	}
}

func TestExpiredIDsAreRemovedInBatchesAndUnseenAtOnce(t *testing.T) {
	const n = 10 * maxRemovals
	bubble(t, func(g *rig) {
		g.deliverMany(n)
		time.Sleep(retention)
		youngest := arrival(fmt.Sprint(n-1), 2)
		c := g.expect(youngest, Claimed)
		if left := g.count("scope"); left != n-maxRemovals {
			g.Errorf("%d of %d IDs are left after one operation, want %d", left, n, n-maxRemovals)
		}
		g.settle(c, true)
		g.expect(youngest, Delivered)
		for range n/maxRemovals - 2 {
			g.expect(youngest, Delivered)
		}
		if left := g.count("scope"); left != 1 {
			g.Errorf("%d IDs are left", left)
		}
	})
}

func TestRefusesNewIDsWhenFull(t *testing.T) {
	bubble(t, func(g *rig) {
		g.limits = Limits{Capacity: 3, RefuseWhenFull: true}
		g.deliver(arrival("old", 1))
		time.Sleep(time.Minute)
		g.deliver(arrival("recent", 1))
		c := g.expect(arrival("active", 1), Claimed) // takes the last free place

		g.expect(arrival("new", 1), ErrFull)
		g.expect(in("other", arrival("new", 1)), Claimed) // each scope has its own capacity

		g.expect(arrival("old", 1), Delivered)
		g.expect(arrival("old", 2), Conflicting)
		g.settle(g.expect(redeliver(arrival("old", 2)), Claimed), false)
		g.expect(arrival("old", 1), Delivered)

		w := g.join(g.Context(), arrival("active", 1))
		g.settle(c, false)
		c = w.expect(Claimed) // the claim that is passed on takes no new place
		g.expect(arrival("new", 1), ErrFull)
		w = g.join(g.Context(), arrival("active", 1))
		g.settle(c, true)
		w.expect(Delivered)
		g.expect(arrival("new", 1), ErrFull)

		time.Sleep(retention - time.Minute - 1)
		g.expect(arrival("new", 1), ErrFull)
		time.Sleep(time.Nanosecond)
		c = g.expect(arrival("new", 1), Claimed)
		g.expect(arrival("newer", 1), ErrFull)
		g.settle(c, false) // a failure frees its place
		g.deliver(arrival("newer", 1))
		g.expect(arrival("recent", 1), Delivered)
	})
}

func TestSuccessIsRememberedOverCapacityWhenRefusing(t *testing.T) {
	bubble(t, func(g *rig) {
		g.limits.Capacity = 4
		var inFlight []Claim
		for i := range 4 {
			inFlight = append(inFlight, g.expect(arrival(fmt.Sprint("in flight ", i), 1), Claimed))
		}
		g.deliverMany(2)
		g.limits = Limits{Capacity: 2, RefuseWhenFull: true} // as after a reload
		for _, c := range inFlight {
			g.settle(c, true)
		}
		for _, c := range inFlight {
			g.expect(c.Request, Delivered)
		}
		g.expect(arrival("0", 1), Delivered)
		g.expect(arrival("1", 1), Delivered)
		g.expect(arrival("new", 1), ErrFull)
		time.Sleep(retention)
		g.expect(arrival("new", 1), Claimed)
	})
}

func TestEmptyScopesAreRemovedWhenOneIsAdded(t *testing.T) {
	bubble(t, func(g *rig) {
		expect := func(want string) {
			g.Helper()
			var got []string
			for _, name := range []string{"failed", "expired", "active", "long", "settled", "new", "newer"} {
				if g.registry.scopes[name] != nil {
					got = append(got, name)
				}
			}
			if s := strings.Join(got, " "); s != want || len(got) != len(g.registry.scopes) {
				g.Fatalf("%d scopes with %q, want %q", len(g.registry.scopes), s, want)
			}
		}
		a := arrival("a", 1)
		c := g.expect(in("active", a), Claimed)
		// the ID with the longest retention is neither the first nor the last
		for i, d := range []time.Duration{time.Minute, time.Hour, time.Second} {
			g.deliver(in("long", keep(arrival(fmt.Sprint(i), 1), d)))
		}
		g.deliver(in("expired", keep(a, time.Hour-1)))
		g.settle(g.expect(in("failed", a), Claimed), false)
		time.Sleep(time.Hour - 1)
		expect("failed expired active long") // time alone removes no scope
		g.expect(in("long", a), Claimed)
		expect("failed expired active long") // nor does a scope that is there already
		g.settle(Claim{Request: in("long", a), Token: g.registry.lastToken}, false)

		g.expect(in("new", a), Claimed)
		expect("active long new")
		w := g.join(g.Context(), in("active", a))
		g.settle(c, true)
		w.expect(Delivered)
		g.expect(in("long", arrival("1", 1)), Delivered)
		time.Sleep(time.Nanosecond)
		g.expect(in("newer", a), Claimed)
		expect("active new newer")
		g.expect(in("active", a), Delivered)
	})
}

func TestLookupForgetAndStats(t *testing.T) {
	bubble(t, func(g *rig) {
		a, b := arrival("a", 1), arrival("b", 2)
		if known := g.Lookup("scope", a.Key); known != (Status{}) {
			g.Errorf("an unseen ID is %+v", known)
		}
		if g.Forget("scope", a.Key).Delivered {
			g.Error("an unseen ID was forgotten")
		}
		claim := g.expect(a, Claimed)
		if known := g.Lookup("scope", a.Key); known != (Status{InFlight: true}) {
			g.Errorf("an ID in flight is %+v", known)
		}
		if g.Forget("scope", a.Key).Delivered {
			g.Error("an ID in flight was forgotten")
		}
		g.settle(claim, true)
		g.deliver(in("other", b))
		want := Status{Delivered: true, Digest: 1, Expires: time.Now().Add(retention)}
		if known := g.Lookup("scope", a.Key); known.Expires.UnixNano() != want.Expires.UnixNano() || known.Digest != 1 || !known.Delivered || known.InFlight {
			g.Errorf("a delivered ID is %+v, want %+v", known, want)
		}
		if known := g.Lookup("other", a.Key); known != (Status{}) {
			g.Errorf("in another scope it is %+v", known)
		}
		g.expect(arrival("in flight", 1), Claimed)
		stats := g.Stats(g.limits)
		if len(stats.Scopes) != 2 || stats.Scopes["scope"] != (ScopeStats{Delivered: 1, InFlight: 1, Capacity: 1000}) || stats.Scopes["other"].Delivered != 1 {
			g.Errorf("the stats are %+v", stats)
		}

		// a store with a copy elsewhere needs to know which delivery to remove there
		if was := g.Forget("scope", a.Key); !was.Delivered || was.Digest != 1 || was.Expires.UnixNano() != want.Expires.UnixNano() {
			g.Errorf("what was forgotten is %+v, want %+v", was, want)
		}
		if g.Forget("scope", a.Key).Delivered {
			g.Error("a delivered ID was forgotten twice")
		}
		g.deliver(a)
		time.Sleep(retention)
		if known := g.Lookup("scope", a.Key); known != (Status{}) {
			g.Errorf("an expired ID is %+v", known)
		}
		if g.Forget("scope", a.Key).Delivered {
			g.Error("Forget said that an expired ID was remembered")
		}
		if stats := g.Stats(g.limits); len(stats.Scopes) != 1 || stats.Scopes["scope"].Delivered != 0 {
			g.Errorf("after all has expired the stats are %+v", stats)
		}
	})
}

// IDs that were delivered while the clock was ahead do not delay the expiry of
// later ones.
func TestBackwardClockStepDelaysNoExpiry(t *testing.T) {
	bubble(t, func(g *rig) {
		g.Remember(arrival("ahead", 1), time.Now().Add(100*retention), g.limits)
		const n = 50
		for i := range n {
			g.Remember(arrival(fmt.Sprint(i), 1), time.Now(), g.limits)
			time.Sleep(retention / 10)
		}
		if held := g.Stats(g.limits).Scopes["scope"].Delivered; held > 12 {
			t.Errorf("%d of %d IDs are remembered, although they were delivered a tenth of the retention apart", held, n)
		}
	})
}

func TestOnlyTheCurrentOwnerOwns(t *testing.T) {
	bubble(t, func(g *rig) {
		first := g.expect(arrival("a", 1), Claimed)
		if !g.Owns(first) {
			g.Error("the owner does not own the claim")
		}
		next := g.join(g.Context(), arrival("a", 1))
		g.settle(first, false)
		second := next.expect(Claimed)
		if g.Owns(first) || !g.Owns(second) || g.Owns(inOtherScope(second)) {
			g.Error("the ownership was not passed on")
		}
		g.settle(second, true)
		if g.Owns(second) {
			g.Error("a settled claim is owned")
		}
	})
}

func inOtherScope(c Claim) Claim { c.Scope = "other"; return c }

func TestRememberRecordsDeliveriesOfThePast(t *testing.T) {
	bubble(t, func(g *rig) {
		now := time.Now()
		g.Remember(keep(arrival("old", 1), time.Hour), now.Add(-time.Hour), g.limits)
		g.Remember(keep(arrival("recent", 1), time.Hour), now.Add(-time.Minute), g.limits)
		g.expect(arrival("old", 1), Claimed)
		g.expect(arrival("recent", 1), Delivered)
		time.Sleep(59 * time.Minute)
		g.expect(arrival("recent", 1), Claimed)
	})
}

func TestEvictionsAreCountedAndExpiriesAreNot(t *testing.T) {
	bubble(t, func(g *rig) {
		g.limits.Capacity = 10
		g.deliverMany(13)
		if n := g.Stats(g.limits).Evicted; n != 3 {
			g.Errorf("%d IDs were evicted, want 3", n)
		}
		time.Sleep(retention)
		g.deliverMany(10)
		if n := g.Stats(g.limits).Evicted; n != 3 {
			g.Errorf("%d IDs were evicted, want the 3 from before", n)
		}
	})
}

func TestStatsEvictNothingFromScopesWithOtherLimits(t *testing.T) {
	bubble(t, func(g *rig) {
		g.deliverMany(10)
		g.Stats(Limits{Capacity: 1})
		if n := g.Stats(g.limits).Scopes["scope"].Delivered; n != 10 {
			g.Errorf("%d of 10 IDs are left", n)
		}
	})
}

// recaller is a place where deliveries are remembered, and which answers after a
// second.
type recaller struct {
	known Status
	err   error
	asked int
}

func (r *recaller) recall() (Status, error) {
	r.asked++
	known, err := r.known, r.err
	time.Sleep(time.Second)
	return known, err
}

func (g *rig) claimFrom(r Request, from *recaller) *asyncClaim {
	w := &asyncClaim{g: g, request: r}
	go func() {
		w.verdict, w.err = g.ClaimFrom(g.Context(), r, from.recall)
		w.done.Store(true)
	}()
	synctest.Wait()
	return w
}

// eventually is expect for a claim that waits for a recaller.
func (w *asyncClaim) eventually(want any) Claim {
	w.g.Helper()
	time.Sleep(3 * time.Second)
	return w.expect(want)
}

func TestOneRequestRecallsForAllOthersOfItsID(t *testing.T) {
	bubble(t, func(g *rig) {
		from := &recaller{known: Status{Delivered: true, Digest: 1, Expires: time.Now().Add(time.Hour)}}
		var all []*asyncClaim
		for range 10 { // none of them is told that the ID is in flight
			all = append(all, g.claimFrom(noWait(arrival("a", 1)), from))
		}
		conflicting := g.claimFrom(noWait(arrival("a", 2)), from)
		if known := g.Lookup("scope", KeyOf("a")); known.InFlight {
			g.Error("an ID that is being recalled is looked up as in flight")
		}
		for _, a := range all {
			a.eventually(Delivered)
		}
		conflicting.eventually(Conflicting)
		if from.asked != 1 {
			g.Errorf("%d requests have asked", from.asked)
		}
	})
}

func TestRecallThatFailsFailsAllThatWaitForIt(t *testing.T) {
	bubble(t, func(g *rig) {
		from := &recaller{err: errors.New("down")}
		first, second := g.claimFrom(arrival("a", 1), from), g.claimFrom(arrival("a", 1), from)
		first.eventually(from.err)
		second.eventually(from.err)
		from.err = nil
		g.claimFrom(arrival("a", 1), from).eventually(Claimed)
	})
}

func TestRecalledDeliveryAnswersWhileItIsReplaced(t *testing.T) {
	bubble(t, func(g *rig) {
		from := &recaller{known: Status{Delivered: true, Digest: 1, Expires: time.Now().Add(time.Hour)}}
		c := g.claimFrom(redeliver(arrival("a", 2)), from).eventually(Claimed)
		if c.Replaces != 1 {
			g.Errorf("the claim replaces %d", c.Replaces)
		}
		g.claimFrom(noWait(arrival("a", 1)), from).eventually(Delivered)
		g.claimFrom(noWait(redeliver(arrival("a", 2))), from).eventually(ErrInFlight)
		c.Retention = 0
		g.settle(c, true)
		from.known.Digest = 2
		g.claimFrom(noWait(arrival("a", 2)), from).eventually(Delivered)
		if from.asked != 2 {
			g.Errorf("%d requests have asked", from.asked)
		}
	})
}

func TestRecallThatIsOutOfDateIsRepeated(t *testing.T) {
	bubble(t, func(g *rig) {
		from := &recaller{known: Status{Delivered: true, Digest: 1, Expires: time.Now().Add(time.Hour)}}
		a := g.claimFrom(arrival("a", 1), from)
		from.known = Status{}
		g.Forget("scope", KeyOf("a")) // in that place first, and now here
		a.eventually(Claimed)
	})
}
