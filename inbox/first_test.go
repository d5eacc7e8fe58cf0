package inbox

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestAFirstAttemptThatFailsCountsAndIsFollowedByTheNextOne(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(status(500))
		number, _ := b.first()
		e := b.store.event(number)
		if e.Attempts != 1 || e.First.Status != 500 || e.Last.Status != 500 || !e.Due.Equal(b.start.Add(5*time.Second)) || e.Target != "site" {
			b.Errorf("%+v", e)
		}
		b.answers(accept)
		b.sleep(5 * time.Second)
		b.expect("e1 0s", "e1 5s")
		b.expectStates(0, 0, 0, 0)
	})
}

// hold stores an event whose first attempt is under way.
func (b *bed) hold() (*First, int64) {
	b.Helper()
	f, try := b.try()
	if !try {
		b.Fatal("not tried")
	}
	number, err := f.Keep(b.Context(), b.event(), 1<<30)
	if err != nil {
		b.Fatal(err)
	}
	return f, number
}

func TestAnEventWhoseFirstAttemptIsUnderWayIsNotDelivered(t *testing.T) {
	run(t, func(b *bed) {
		f, _ := b.hold()
		b.sleep(time.Hour)
		b.d.Wake()
		b.expect()
		f.End(accept)
		b.expect()
		b.expectStates(0, 0, 0, 0)
		b.expectRemembered(1)
	})
	run(t, func(b *bed) {
		f, number := b.hold()
		b.sleep(15 * time.Second)
		f.End(status(500))
		if e := b.store.event(number); e.Attempts != 1 || e.First.Status != 500 {
			b.Errorf("%+v", e)
		}
		b.sleep(5 * time.Second)
		b.expect("e1 20s")
		b.expectStates(0, 0, 0, 0)
	})
}

func TestAFirstAttemptThatWasNoneDoesNotCount(t *testing.T) {
	run(t, func(b *bed) {
		f, number := b.hold()
		b.answers(status(500))
		f.End(Outcome{NoAttempt: true})
		b.expect("e1 0s")
		if e := b.store.event(number); e.Attempts != 1 {
			b.Errorf("%+v", e)
		}
	})
}

// The event is in the store before the dispatcher knows its number.
func TestAnEventIsNotDeliveredWhileItIsBeingHeld(t *testing.T) {
	run(t, func(b *bed) {
		b.store.lag = time.Second
		go func() {
			f, _ := b.hold()
			b.sleep(time.Minute)
			f.End(accept)
		}()
		for range 20 {
			b.sleep(100 * time.Millisecond)
			b.d.Wake()
		}
		b.sleep(2 * time.Minute)
		b.expect()
		b.expectStates(0, 0, 0, 0)
	})
}

func TestARetriedEventIsNotDeliveredWhileItIsBeingHeld(t *testing.T) {
	run(t, func(b *bed) {
		b.store.lag = time.Second // the event is in the store before the dispatcher knows its number
		go func() {
			f, _ := b.hold()
			b.sleep(time.Minute)
			f.End(accept)
		}()
		b.sleep(time.Second / 2)
		if n, err := b.d.Retry(b.Context(), Filter{}); n != 1 || err != nil {
			b.Error(n, err)
		}
		b.sleep(2 * time.Minute)
		b.expect()
		b.expectStates(0, 0, 0, 0)
	})
}

func TestAFirstAttemptMayEndWhileItsEventIsBeingStored(t *testing.T) {
	for name, o := range map[string]Outcome{"accepted": accept, "failed": status(500)} {
		t.Run(name, func(t *testing.T) {
			run(t, func(b *bed) {
				b.store.lag = time.Second
				f, _ := b.try()
				go func() {
					if _, err := f.Keep(b.Context(), b.event(), 1<<30); err != nil {
						b.Error(err)
					}
				}()
				b.sleep(500 * time.Millisecond)
				f.End(o)
				b.sleep(time.Minute)
				b.expectStates(0, 0, 0, 0)
				b.expectRemembered(1)
				if n := len(b.seen()); o.Accepted && n != 0 || !o.Accepted && n != 1 {
					b.Errorf("%d attempts", n)
				}
			})
		})
	}
}

func TestAnEventThatWasAcceptedIsNotKept(t *testing.T) {
	run(t, func(b *bed) {
		f, _ := b.try()
		f.End(accept)
		number, err := f.Keep(b.Context(), b.event(), 1<<30)
		if number != 0 || err != nil {
			b.Error(number, err)
		}
		b.expectStates(0, 0, 0, 0)
	})
}

func TestAnEventThatCannotBeKeptIsForgotten(t *testing.T) {
	run(t, func(b *bed) {
		b.store.stop(errDisk)
		f, _ := b.try()
		if _, err := f.Keep(b.Context(), b.event(), 1<<30); !errors.Is(err, errDisk) {
			b.Error(err)
		}
		f.End(accept)
		b.store.stop(nil)
		b.sleep(time.Hour)
		b.expectRemembered(0)
		if len(b.d.busy) != 0 || len(b.d.adding) != 0 {
			b.Error(b.d.busy, b.d.adding)
		}
	})
}

// An event may be in the inbox already, waiting, when it comes again.
func TestAnEventThatIsKeptAlreadyIsStillDelivered(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(status(500))
		e := b.event()
		if _, err := b.d.Add(b.Context(), "site", nil, e, 1<<30); err != nil {
			b.Fatal(err)
		}
		b.expect("e1 0s")
		b.store.lag = 10 * time.Second
		f, _ := b.try()
		go func() {
			if _, err := f.Keep(b.Context(), e, 1<<30); !errors.Is(err, ErrKept) {
				b.Error(err)
			}
		}()
		b.sleep(6 * time.Second)
		b.expect() // passed over while it may be the one that is held
		b.answers(accept)
		b.sleep(4 * time.Second)
		b.expect("e1 10s")
		f.End(status(500))
	})
}

func TestWhileTheBackendIsDownNewEventsAreNotTriedExceptOne(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(down)
		var tried []time.Duration
		b.first()
		b.seen()
		// what waits is due later than the backoff ends: nothing else asks
		b.policy.FirstRetry = time.Minute
		for range 120 {
			b.sleep(time.Second)
			if f, try := b.try(); try {
				tried = append(tried, time.Since(b.start))
				f.End(down)
			}
		}
		_, _ = b.d.Discard(b.Context(), Filter{})
		asked := len(tried) + len(b.seen())
		if asked < 3 || asked > 5 { // 5, 15, 35, 75 s
			b.Errorf("asked %d times in 2 minutes, by new events at %v", asked, tried)
		}
	})
}

func TestANewEventThatAsksIsTheOnlyOne(t *testing.T) {
	run(t, func(b *bed) {
		f, _ := b.try()
		f.End(down)
		if _, try := b.try(); try {
			b.Error("tried at once")
		}
		b.sleep(5 * time.Second)
		f, try := b.try()
		if !try {
			b.Fatal("no new event asks")
		}
		b.add(1)
		if _, try := b.try(); try {
			b.Error("two ask at once")
		}
		b.sleep(time.Hour)
		b.expect()
		f.End(accept)
		b.expect("e1 1h0m5s")
		if _, try := b.try(); !try {
			b.Error("not tried after a success")
		}
	})
}

func TestANewEventThatAsksInVainLetsOthersAskLater(t *testing.T) {
	run(t, func(b *bed) {
		f, _ := b.try()
		f.End(down)
		b.sleep(5 * time.Second)
		f, _ = b.try()
		b.add(1)
		b.sleep(time.Minute)
		f.End(down)
		b.sleep(10 * time.Second)
		b.expect("e1 1m15s")
	})
}

func TestOutcomesOfFirstAttemptsOpenTheGate(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(down)
		b.add(20)
		b.sleep(time.Hour)
		b.seen()
		b.answers(status(500))
		b.sleep(15 * time.Minute) // a probe is answered: no longer unreachable
		b.expectCount(7)          // the backoff begins again
		b.answers(accept)
		b.first()
		b.expectCount(21)
	})
}

func TestRedeliveriesDoNotTakeThePlaceOfNewEvents(t *testing.T) {
	run(t, func(b *bed) {
		b.first()
		b.policy.Concurrency = 2
		b.Activate(b.config())
		b.slowBackend(takes(time.Hour))
		b.add(10)
		b.sleep(time.Second)
		for range 100 {
			if _, try := b.try(); !try {
				b.Fatal("not tried")
			}
		}
	})
}

func TestNewEventsDoNotStarveTheBacklog(t *testing.T) {
	run(t, func(b *bed) {
		for range 100 {
			if _, try := b.try(); !try {
				b.Fatal("not tried")
			}
		}
		b.add(10)
		b.expectCount(10)
	})
}

func TestARedeliveryThatHangsDoesNotHoldUpTheOthersWhileNewEventsAreAccepted(t *testing.T) {
	run(t, func(b *bed) {
		b.slowBackend(func(ctx context.Context, e Event) Outcome {
			if e.ID == "e1" {
				return takes(time.Minute)(ctx, e)
			}
			return accept
		})
		f, _ := b.try()
		b.add(10)
		b.expectCount(1)
		f.End(accept)
		b.expectCount(9)
	})
}

func TestAFirstAttemptWithAStatusOfDeadOnIsDead(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.DeadOn = func(status int) bool { return status == 422 }
		b.Activate(b.config())
		b.answers(status(422))
		number, _ := b.first()
		if e := b.store.event(number); e.State != Dead || e.Attempts != 1 {
			b.Errorf("%+v", e)
		}
		f, number := b.hold()
		f.End(status(422))
		if e := b.store.event(number); e.State != Dead || e.Attempts != 1 {
			b.Errorf("%+v", e)
		}
		b.sleep(time.Hour)
		b.expectCount(1)
		if len(b.died) != 2 || b.lastDead.Attempts != 1 || b.lastDead.Last.Status != 422 {
			b.Error(b.died, b.lastDead)
		}
	})
}

func TestAnEventIsNotLeftWithADispatcherThatHasStopped(t *testing.T) {
	run(t, func(b *bed) {
		f, _ := b.try()
		b.Stop()
		if _, err := b.d.Add(b.Context(), "site", nil, b.event(), 1<<30); err == nil {
			b.Error("stored")
		}
		if _, err := f.Keep(b.Context(), b.event(), 1<<30); err == nil {
			b.Error("stored")
		}
	})
}

func TestNoNewEventIsTriedAfterStop(t *testing.T) {
	run(t, func(b *bed) {
		b.Stop()
		if _, try := b.try(); try {
			b.Error("tried")
		}
	})
}

func TestAFirstAttemptNeedsNoLockWhileItsBackendAcceptsEvents(t *testing.T) {
	run(t, func(b *bed) {
		b.d.mu.Lock()
		defer b.d.mu.Unlock()
		f, _ := b.try()
		f.End(accept)
	})
}

func TestAFirstAttemptNeedsNoLockWhileAnotherBackendFails(t *testing.T) {
	run(t, func(b *bed) {
		b.flood(1)
		b.d.mu.Lock()
		defer b.d.mu.Unlock()
		f, _ := b.try()
		f.End(accept)
	})
}

// The dispatcher hears of an attempt that has begun without its lock only if that may
// matter. It must know the same as if it had heard of all of them.
func TestFirstAttemptsThatNeedNoLockTeachTheSame(t *testing.T) {
	type attempts [2]*First // with and without the lock
	names := []string{"one", "other", "third"}
	synctest.Test(t, func(t *testing.T) {
		var beds [2]*bed
		for i := range beds {
			beds[i] = newBed(t, newMemory())
			beds[i].Activate(beds[i].config())
			defer beds[i].Stop()
		}
		state := func(b *bed) (states []string) {
			b.d.mu.Lock()
			defer b.d.mu.Unlock()
			for _, name := range names {
				g := gate{}
				if t := b.d.targets[name]; t != nil {
					g = *t.gate
				}
				states = append(states, fmt.Sprint(g.closed, g.down, g.probing, g.failures, len(g.suspects), g.until.Sub(b.start)))
			}
			return states
		}
		var underWay []attempts
		unlocked, healthy := 0, true
		for range 20_000 {
			switch n := rand.IntN(100); {
			case n < 45:
				var both attempts
				var tried [2]bool
				name := names[rand.IntN(len(names))]
				for i, b := range beds {
					if i == 1 {
						b.d.calm.Store(new(calm))
					}
					both[i] = new(First)
					tried[i] = both[i].Try(t.Context(), b.d, name, nil)
				}
				if tried[0] != tried[1] {
					t.Fatalf("%v are tried", tried)
				}
				if tried[0] {
					underWay = append(underWay, both)
				}
				if both[0].pass.gate == nil {
					unlocked++
				}
			case n < 95 && len(underWay) > 0:
				outcomes := []Outcome{accept, accept, accept, accept, accept, accept}
				if !healthy {
					outcomes = []Outcome{accept, status(500), down, {NoAttempt: true}, {Down: true, RetryAfter: time.Minute}}
				}
				o, at := outcomes[rand.IntN(len(outcomes))], rand.IntN(len(underWay))
				for _, f := range underWay[at] {
					f.End(o)
				}
				underWay = slices.Delete(underWay, at, at+1)
			case n < 97:
				wait := time.Duration(rand.IntN(20)) * time.Second
				beds[0].sleep(wait)
			case n < 98:
				healthy = !healthy
			case n < 99 && rand.IntN(5) == 0:
				for _, b := range beds {
					b.Activate(b.config())
				}
			case rand.IntN(5) == 0:
				for _, b := range beds {
					_ = b.d.SetPaused(t.Context(), true)
					_ = b.d.SetPaused(t.Context(), false)
				}
			}
			if got, want := state(beds[0]), state(beds[1]); !slices.Equal(got, want) {
				t.Fatalf("%v, with the lock %v", got, want)
			}
		}
		if unlocked == 0 {
			t.Error("all needed the lock")
		}
	})
}
