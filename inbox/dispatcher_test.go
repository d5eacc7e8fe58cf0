package inbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestNothingIsDeliveredOrDiesWithoutAConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, newMemory())
		b.add(3)
		b.sleep(100 * time.Hour)
		b.expect()
		b.expectStates(3, 0, 0, 0)
		b.policy.DeadAfter = 1000 * time.Hour
		deactivate := b.Activate(b.config())
		b.expectCount(3)
		deactivate()
		b.add(1)
		b.sleep(time.Hour)
		b.expect()
		b.expectStates(1, 0, 0, 0)
		b.Stop()
	})
}

func TestAfterAFailedReloadTheConfigurationBeforeItCounts(t *testing.T) {
	run(t, func(b *bed) {
		c := b.config()
		c.Deliver = func(context.Context, Event) Outcome {
			b.Error("delivered by the configuration that failed")
			return accept
		}
		b.Activate(c)()
		b.add(1)
		b.expect("e1 0s")
	})
}

func TestReloadChangesPolicyAndDeliver(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(status(500))
		b.add(1)
		b.expect("e1 0s")
		c := b.config()
		c.Policy.FirstRetry = time.Minute
		by := ""
		c.Deliver = func(ctx context.Context, e Event) Outcome {
			by += "new "
			return b.deliver(ctx, e)
		}
		b.Activate(c)
		b.sleep(5 * time.Second)
		b.expect("e1 5s")
		b.sleep(2 * time.Minute)
		b.expect("e1 2m5s") // the second failure, under the new policy
		if by != "new new " {
			b.Error(by)
		}
	})
}

func TestAttemptsUnderWayEndWithTheConfigurationTheyBeganWith(t *testing.T) {
	run(t, func(b *bed) {
		b.slowBackend(takes(time.Minute))
		b.add(1)
		b.expect("e1 0s")
		c := b.config()
		c.Deliver = func(ctx context.Context, e Event) Outcome {
			b.Error(e.ID, "is delivered twice")
			return accept
		}
		b.Activate(c)
		b.sleep(time.Minute)
		b.expectStates(0, 0, 0, 0)
		b.expectRemembered(1)
	})
}

func TestReloadAsksABackendThatFailsAtOnce(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(down)
		b.add(20)
		b.sleep(time.Hour)
		b.seen()
		// and also while a probe hangs at the old address
		b.slowBackend(takes(10 * time.Hour))
		b.sleep(20 * time.Minute)
		b.expectCount(1)
		b.answers(accept)
		b.Activate(b.config())
		b.expectCount(19)
		b.sleep(10 * time.Hour)
		b.expectStates(0, 0, 0, 0)
	})
}

func TestStopWaitsForAttemptsWithinTheGracePeriod(t *testing.T) {
	run(t, func(b *bed) {
		b.slowBackend(takes(8 * time.Second))
		b.add(20)
		b.expectCount(1)
		b.Stop()
		b.expect() // no new ones
		b.expectStates(19, 0, 0, 0)
		b.expectRemembered(1)
	})
}

func TestStopCutsOffAttemptsWhichThenDoNotCount(t *testing.T) {
	run(t, func(b *bed) {
		b.slowBackend(takes(time.Hour))
		number := b.add(1)
		b.expect("e1 0s")
		b.Stop()
		if got := time.Since(b.start); got != 10*time.Second {
			b.Errorf("stopped after %v", got)
		}
		if e := b.store.event(number); e.State != Waiting || e.Attempts != 0 || e.Due.After(b.start) {
			b.Errorf("%+v", e)
		}
	})
}

func TestAfterACrashWhatWasUnderWayIsDueAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, newMemory())
		deactivate := b.Activate(b.config())
		b.slowBackend(takes(9 * time.Second))
		b.add(1)
		f, _ := b.try()
		if _, err := f.Keep(t.Context(), b.event(), 1<<30); err != nil {
			t.Fatal(err)
		}
		b.expect("e1 0s")
		deactivate()
		// what is in the store now is what another process finds
		next := newBed(t, newMemory())
		for _, e := range b.store.events {
			copied := *e
			copied.State = ""
			next.store.events[e.Number] = &copied
			next.store.set(&copied, func() { copied.State = e.State })
		}
		next.Activate(next.config())
		next.expectCount(2)
		next.Stop()
		f.End(accept)
		b.Stop()
	})
}

func TestAnIdleInboxAsksTheStoreNothing(t *testing.T) {
	run(t, func(b *bed) {
		b.first()
		b.sleep(time.Second)
		before := b.store.count()
		b.sleep(10000 * time.Hour)
		if n := b.store.count() - before; n != 0 {
			b.Errorf("%d calls", n)
		}
	})
}

func TestAnInboxThatWaitsAsksTheStoreNothing(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.FirstRetry, b.policy.LongestRetry = time.Hour, time.Hour
		b.Activate(b.config())
		b.answers(status(500))
		b.first()
		b.sleep(time.Second)
		before := b.store.count()
		b.sleep(59 * time.Minute)
		if n := b.store.count() - before; n != 0 {
			b.Errorf("%d calls", n)
		}
		b.sleep(time.Minute)
		b.expect("e1 0s", "e1 1h0m0s")
	})
}

func TestWhatBecomesDueIsDeliveredThen(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.Concurrency = 1000
		b.Activate(b.config())
		b.answers(accept)
		b.first() // opens the gate
		b.answers(status(500))
		b.first()
		b.sleep(1234567 * time.Nanosecond)
		b.first()
		b.answers(accept)
		b.sleep(time.Minute)
		b.expect("e1 0s", "e2 0s", "e3 1.234567ms", "e2 5s", "e3 5.001234567s")
	})
}

func TestOneDeliveryAsksTheStoreOnce(t *testing.T) {
	run(t, func(b *bed) {
		b.sleep(time.Second)
		b.slowBackend(takes(time.Second))
		due, nextDue := b.store.count("Due"), b.store.count("NextDue")
		b.add(1)
		b.sleep(time.Minute)
		if due, nextDue = b.store.count("Due")-due, b.store.count("NextDue")-nextDue; due != 1 || nextDue != 1 {
			b.Errorf("Due was called %d times, NextDue %d times", due, nextDue)
		}
	})
}

func TestOldestDueFirst(t *testing.T) {
	run(t, func(b *bed) {
		if err := b.d.SetPaused(b.Context(), true); err != nil {
			b.Fatal(err)
		}
		for range 5 {
			b.add(1)
			b.sleep(time.Second)
		}
		b.policy.Concurrency = 1
		b.Activate(b.config())
		if err := b.d.SetPaused(b.Context(), false); err != nil {
			b.Fatal(err)
		}
		b.expect("e1 5s", "e2 5s", "e3 5s", "e4 5s", "e5 5s")
	})
}

func TestEveryKindOfChangeWakesUp(t *testing.T) {
	ctx := context.Background()
	paused := func(b *bed) {
		if err := b.d.SetPaused(ctx, true); err != nil {
			b.Fatal(err)
		}
		b.add(1)
		b.sleep(time.Hour)
		b.expect()
	}
	for name, test := range map[string]struct{ before, change func(b *bed) }{
		"add":    {func(b *bed) {}, func(b *bed) { b.add(1) }},
		"resume": {paused, func(b *bed) { _ = b.d.SetPaused(ctx, false) }},
		"resume in the store": {paused, func(b *bed) {
			_ = b.store.SetPaused(ctx, false)
			b.d.Wake()
		}},
		"retry": {func(b *bed) {
			b.answers(status(400))
			b.policy.DeadOn = func(int) bool { return true }
			b.Activate(b.config())
			b.add(1)
			b.sleep(time.Hour)
			b.expectStates(0, 1, 0, 0)
			b.seen()
		}, func(b *bed) { _, _ = b.d.Retry(ctx, Filter{}) }},
		"another process has added": {func(b *bed) {}, func(b *bed) {
			e := b.event()
			e.Target, e.Due = "elsewhere", time.Now()
			_, _ = b.store.Add(ctx, e, 0)
			b.d.Wake()
		}},
		"policy": {func(b *bed) {
			b.policy.Concurrency = 1
			b.Activate(b.config())
			b.slowBackend(takes(time.Hour))
			b.add(2)
			b.expectCount(1)
		}, func(b *bed) {
			b.policy.Concurrency = 2
			b.Activate(b.config())
		}},
		"end of an attempt": {func(b *bed) {
			b.policy.Concurrency = 1
			b.Activate(b.config())
			b.slowBackend(takes(time.Hour))
			b.add(2)
			b.expectCount(1)
		}, func(b *bed) { b.sleep(time.Hour) }},
		"end of a first attempt": {func(b *bed) {
			f, _ := b.try()
			b.policy.FirstRetry = 0
			b.Activate(b.config())
			if _, err := f.Keep(ctx, b.event(), 1<<30); err != nil {
				b.Fatal(err)
			}
			b.sleep(time.Hour)
			b.expect()
			go f.End(status(500))
		}, func(b *bed) {}},
		"clock": {func(b *bed) {
			b.answers(status(500))
			b.add(1)
			b.expectCount(1)
		}, func(b *bed) { b.jump(time.Hour) }},
		"discard of what was in the way": {func(b *bed) {
			b.policy.Concurrency = 1
			b.Activate(b.config())
			b.slowBackend(takes(time.Second))
			b.add(3)
			b.expectCount(1)
			_, _ = b.d.Discard(ctx, Filter{Number: []int64{1, 2}})
		}, func(b *bed) { b.sleep(time.Second) }},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(b *bed) {
				test.before(b)
				test.change(b)
				b.expectCount(1)
			})
		})
	}
}

func TestClockJumpsNeitherLoseNorStorm(t *testing.T) {
	for _, by := range []time.Duration{-time.Hour, time.Hour} {
		t.Run(fmt.Sprint(by), func(t *testing.T) {
			run(t, func(b *bed) {
				b.policy.Concurrency = 2
				b.Activate(b.config())
				b.answers(down)
				b.add(50)
				b.sleep(10 * time.Minute)
				b.seen()
				b.jump(by)
				b.sleep(time.Hour)
				if n := len(b.seen()); n > 8 {
					b.Errorf("%d attempts in an hour", n)
				}
				b.slowBackend(takes(time.Millisecond))
				b.mu.Lock()
				b.peak = 0
				b.mu.Unlock()
				b.sleep(30 * time.Minute)
				b.expectStates(0, 0, 0, 0)
				if b.peak > 2 {
					b.Errorf("%d at once", b.peak)
				}
				// and what fails after the jump comes again in time
				b.answers(status(500))
				b.seen()
				b.add(1)
				b.sleep(5 * time.Second)
				b.expectCount(2)
			})
		})
	}
}

func TestAClockThatIsPutBackDoesNotDelayWhatIsDue(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(status(500))
		b.first()
		b.jump(-time.Hour)
		b.answers(accept)
		b.sleep(time.Minute)
		b.expect("e1 0s", "e1 5s")
	})
}

// As when a machine boots with a wrong clock.
func TestAClockThatWasYearsAheadDoesNotDelayWhatIsDue(t *testing.T) {
	for name, back := range map[string]func(b *bed){
		"in the process": func(b *bed) { b.jump(-100_000 * time.Hour) },
		"before a restart": func(b *bed) {
			b.Stop()
			b.skew = 0
			b.stop = sync.Once{}
			b.d = newDispatcher(b.store, b.wall, b.rand)
			b.Activate(b.config())
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(b *bed) {
				b.jump(100_000 * time.Hour)
				b.answers(status(500))
				for range 2500 {
					b.first()
				}
				back(b)
				b.answers(accept)
				b.sleep(18 * time.Minute)
				b.expectCount(5000)
				b.expectStates(0, 0, 0, 0)
			})
		})
	}
}

func TestAClockThatWasYearsAheadKillsNoNewEvents(t *testing.T) {
	run(t, func(b *bed) {
		b.jump(100_000 * time.Hour)
		b.first()
		b.sleep(time.Second) // what is expiring then, is so by the clock that was ahead
		b.jump(-100_000 * time.Hour)
		b.answers(status(500))
		b.add(1)
		b.sleep(time.Minute)
		b.expectStates(1, 0, 0, 0)
	})
}

func TestAClockThatIsPutBackWhileAnEventIsStoredDoesNotDelayIt(t *testing.T) {
	run(t, func(b *bed) {
		b.jump(100_000 * time.Hour)
		b.sleep(time.Second)
		f, _ := b.try()
		f.End(status(500))
		b.store.commit = time.Second
		go func() {
			if _, err := f.Keep(b.Context(), b.event(), 1<<30); err != nil {
				b.Error(err)
			}
		}()
		b.sleep(500 * time.Millisecond)
		b.store.commit = 0
		b.jump(-100_000 * time.Hour)
		b.sleep(20 * time.Minute)
		b.expectCount(1)
	})
}

func TestAReloadWithAShorterBackoffHolds(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.FirstRetry, b.policy.LongestRetry = time.Hour, time.Hour
		b.Activate(b.config())
		b.answers(status(500))
		b.first()
		b.policy.FirstRetry, b.policy.LongestRetry = time.Second, time.Minute
		b.Activate(b.config())
		b.sleep(72 * time.Second)
		b.expect("e1 0s", "e1 1m12s")
	})
}

func TestPausedNothingIsDelivered(t *testing.T) {
	run(t, func(b *bed) {
		b.slowBackend(takes(time.Minute))
		b.add(1)
		b.expect("e1 0s")
		if err := b.d.SetPaused(b.Context(), true); err != nil {
			b.Fatal(err)
		}
		b.add(1)
		if _, tried := b.first(); tried {
			b.Error("a new event was tried")
		}
		b.sleep(time.Hour)
		b.expect()
		b.expectStates(2, 0, 0, 0) // what was under way went on
	})
}

func TestThePauseSurvivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		if err := store.SetPaused(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		b := newBed(t, store)
		b.Activate(b.config())
		b.add(1)
		b.sleep(time.Hour)
		b.expect()
		b.Stop()
	})
}

func TestAStoreThatCannotBeReadIsAskedGently(t *testing.T) {
	run(t, func(b *bed) {
		b.store.breakAll(errors.New("input/output error"))
		b.d.Wake()
		before := b.store.count("Due", "NextDue", "Targets")
		for range 3600 {
			b.sleep(time.Second)
			b.d.Wake()
		}
		if n := b.store.count("Due", "NextDue", "Targets") - before; n > 80 {
			b.Errorf("%d calls in an hour", n)
		}
		if n := len(b.troubles); n > 190 {
			b.Errorf("%d log entries in an hour", n)
		}
		b.store.breakAll(nil)
		b.add(1)
		b.sleep(90 * time.Second)
		b.expectCount(1)
	})
}

func TestAfterAStoreCouldNotBeReadNothingIsMissed(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(status(500))
		b.first()
		b.sleep(time.Second)
		b.store.breakAll(errors.New("input/output error"))
		b.answers(accept)
		b.sleep(time.Hour)
		b.expect("e1 0s")
		b.store.breakAll(nil)
		b.sleep(90 * time.Second)
		b.expectCount(1)
	})
}

func TestDepthCostsNothing(t *testing.T) {
	asked := map[int]float64{}
	for _, n := range []int{1000, 50_000} {
		run(t, func(b *bed) {
			_ = b.d.SetPaused(b.Context(), true)
			b.add(n)
			b.slowBackend(takes(time.Millisecond))
			_ = b.d.SetPaused(b.Context(), false)
			for b.store.states()[Waiting] > 0 {
				b.sleep(time.Second)
				b.d.mu.Lock()
				queued := len(b.d.targets["site"].queue)
				b.d.mu.Unlock()
				if queued > batch {
					b.Fatal(queued, "events in memory")
				}
			}
			asked[n] = float64(b.store.asked) / float64(n)
			if calls := b.store.count("Due"); calls > n/batch+20 {
				b.Errorf("%d calls of Due for %d events", calls, n)
			}
			b.expectRemembered(n)
		})
	}
	if asked[50_000] > 1.2*asked[1000] {
		t.Errorf("events looked at for each delivery: %v", asked)
	}
}

func TestTargetsDoNotHoldEachOtherUp(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.Concurrency = 1
		b.Activate(b.config())
		hang := takes(10 * time.Hour)
		b.slowBackend(func(ctx context.Context, e Event) Outcome {
			if e.Target == "dead" {
				return hang(ctx, e)
			}
			return accept
		})
		b.addTo("dead", 1000)
		b.addTo("alive", 100)
		b.expectCount(101)
		if b.store.asked > 101+1000 {
			b.Errorf("%d events looked at", b.store.asked)
		}
	})
}

func TestEventsThatNothingServesWaitUntilAReload(t *testing.T) {
	run(t, func(b *bed) {
		b.backend(func(e Event) Outcome {
			if e.ID == "e4" {
				return accept
			}
			return Outcome{NoAttempt: true}
		})
		number := b.add(4)
		b.sleep(time.Minute)
		b.expectCount(4) // those that are served are not held up
		if e := b.store.event(number); e.Attempts != 0 || e.State != Waiting {
			b.Errorf("%+v", e)
		}
		b.sleep(15 * time.Minute)
		b.expectCount(3) // now and then
		b.answers(accept)
		b.Activate(b.config())
		b.expectCount(3)
		b.expectStates(0, 0, 0, 0)
	})
}

func TestAnEventThatTheOldConfigurationDidNotServeIsTriedUnderTheNewOne(t *testing.T) {
	run(t, func(b *bed) {
		reloaded := make(chan struct{})
		b.slowBackend(func(context.Context, Event) Outcome { <-reloaded; return Outcome{NoAttempt: true} })
		b.add(1)
		b.sleep(time.Second)
		b.answers(accept)
		b.Activate(b.config())
		close(reloaded)
		b.sleep(time.Second)
		b.expectStates(0, 0, 0, 0)
	})
}

func TestManyEventsThatNothingServesAreNotAllTried(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(Outcome{NoAttempt: true})
		b.add(3000)
		b.sleep(14 * time.Minute)
		b.expectCount(maxUnserved)
		b.answers(accept)
		b.Activate(b.config())
		b.expectCount(3000)
	})
}

func TestAnEventThatCannotBeReadDoesNotHoldUpOthers(t *testing.T) {
	run(t, func(b *bed) {
		b.store.unreadable = 2
		b.add(4)
		b.sleep(time.Minute)
		b.expectCount(3)
		if !slices.Contains(b.troubles, "reading an event from the inbox") {
			b.Error(b.troubles)
		}
	})
}
