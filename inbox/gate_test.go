package inbox

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// delays returns the times between attempts.
func delays(attempts []made) []time.Duration {
	var delays []time.Duration
	for i := 1; i < len(attempts); i++ {
		delays = append(delays, attempts[i].at-attempts[i-1].at)
	}
	return delays
}

func TestABackendThatIsDownIsAskedOneAtATimeWithBackoff(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(down)
		b.add(100)
		b.sleep(2 * time.Hour)
		want := inSeconds(5, 10, 20, 40, 80, 160, 320, 640, 900, 900, 900, 900, 900, 900)
		if got := delays(b.seen()); !slices.Equal(got, want) {
			b.Errorf("delays: %v", got)
		}
		if b.peak != 1 {
			b.Errorf("%d at once", b.peak)
		}
	})
}

func TestTheBackoffHasJitter(t *testing.T) {
	run(t, func(b *bed) {
		for _, random := range []float64{0, 0.999999} {
			b.mu.Lock()
			b.random = random
			b.mu.Unlock()
			wait := b.policy.backoff(b.rand).after(1, 0)
			want := 4 * time.Second
			if random > 0 {
				want = 6 * time.Second
			}
			if d := wait - want; d.Abs() > time.Millisecond {
				b.Errorf("%v for %v", wait, random)
			}
		}
	})
}

func TestTheBackoffDoesNotOverflow(t *testing.T) {
	b := backoff{first: time.Second, longest: 1 << 62, random: func() float64 { return 0.5 }}
	if got := b.after(1_000_000, 0); got != 1<<62 {
		t.Error(got)
	}
}

func TestAfterASuccessRedeliverySpeedsUp(t *testing.T) {
	run(t, func(b *bed) {
		b.slowBackend(takes(time.Second))
		b.add(100)
		var at []int
		for range 6 {
			b.sleep(time.Second)
			at = append(at, b.atOnce())
		}
		if want := []int{2, 4, 8, 8, 8, 8}; !slices.Equal(at, want) {
			b.Errorf("at once: %v", at)
		}
		b.answers(down)
		b.sleep(time.Second) // one fails at once, 7 are late successes
		b.slowBackend(takes(time.Second))
		b.sleep(5500 * time.Millisecond)
		if n := b.atOnce(); n != 1 {
			b.Errorf("%d at once after a failure", n)
		}
	})
}

// What fails at the same moment fails once.
func TestAttemptsThatFailTogetherLengthenTheBackoffOnce(t *testing.T) {
	run(t, func(b *bed) {
		b.slowBackend(takes(time.Second))
		b.add(100)
		b.sleep(3500 * time.Millisecond)
		b.slowBackend(func(context.Context, Event) Outcome {
			time.Sleep(time.Second)
			return down
		})
		b.sleep(time.Second) // 8 at once fail a second later
		b.seen()
		b.sleep(6 * time.Second)
		if seen := b.seen(); len(seen) != 1 || seen[0].at != 10*time.Second {
			b.Errorf("attempts: %v", seen)
		}
	})
}

func TestThreeDifferentEventsThatFailMeanTheBackendFails(t *testing.T) {
	run(t, func(b *bed) {
		b.add(10) // opens the gate
		b.expectCount(10)
		b.answers(status(404))
		b.add(2)
		b.expectCount(2)
		b.sleep(4 * time.Second)
		b.add(1)
		b.expectCount(1) // the third
		b.add(100)
		b.sleep(4 * time.Second)
		b.expectCount(0)
		b.sleep(time.Minute)
		if got, want := delays(b.seen()), []time.Duration{10 * time.Second, 20 * time.Second}; !slices.Equal(got, want) {
			b.Errorf("delays: %v", got)
		}
		// new events are tried: the backend answers
		if _, tried := b.first(); !tried {
			b.Error("a new event is not tried")
		}
		b.answers(accept)
		b.first()
		b.sleep(time.Second)
		if n := b.store.states()[Waiting]; n > 8 {
			b.Errorf("%d wait although a new event was accepted", n)
		}
	})
}

func TestA404DuringADeploymentLosesNothing(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(status(404))
		for range 50 {
			b.first()
			b.sleep(100 * time.Millisecond)
		}
		b.answers(accept)
		b.sleep(time.Minute)
		b.expectStates(0, 0, 0, 0)
		b.expectRemembered(50)
	})
}

func TestOnePoisonedEventDoesNotSlowDownTheOthers(t *testing.T) {
	run(t, func(b *bed) {
		b.backend(fails(status(500), "e1"))
		b.add(1)
		for range 3600 {
			b.add(1)
			b.sleep(time.Second)
			if b.store.states()[Waiting] != 1 {
				b.Fatal("an event waits for another")
			}
		}
		var poisoned []made
		for _, a := range b.seen() {
			if a.id == "e1" {
				poisoned = append(poisoned, a)
			}
		}
		want := inSeconds(5, 10, 20, 40, 80, 160, 320, 640, 900, 900)
		if got := delays(poisoned); !slices.Equal(got, want) {
			b.Errorf("delays: %v", got)
		}
	})
}

// Even alone, it fails as often as it likes: no other event has failed.
func TestOnePoisonedEventDoesNotCloseTheGate(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(status(500))
		b.add(1)
		b.sleep(24 * time.Hour)
		if b.d.targets["site"].gate.closed {
			b.Error("closed")
		}
	})
}

func TestRateIsKept(t *testing.T) {
	run(t, func(b *bed) {
		b.first()
		b.seen()
		b.policy.Rate = 10
		b.Activate(b.config())
		b.add(100)
		b.sleep(5 * time.Second)
		seen := b.seen()
		if n := len(seen); n < 49 || n > 51 {
			b.Errorf("%d in 5 s", n)
		}
		for _, d := range delays(seen) {
			if d < 99*time.Millisecond {
				b.Fatal("delay", d)
			}
		}
	})
}

func TestRetryAfterOfABackendThatIsDownHoldsForAll(t *testing.T) {
	run(t, func(b *bed) {
		busy := down
		busy.Status, busy.RetryAfter = 503, 2*time.Minute
		b.answers(busy)
		b.add(2)
		b.expect("e1 0s")
		b.answers(accept)
		b.sleep(119 * time.Second)
		b.expect()
		b.sleep(time.Second)
		b.expectCount(2)
	})
}

// The event itself is due when it would be without.
func TestRetryAfterOfABackendThatIsDownEndsWithAReload(t *testing.T) {
	run(t, func(b *bed) {
		busy := down
		busy.Status, busy.RetryAfter = 503, 10*time.Minute
		b.answers(busy)
		b.add(1)
		b.sleep(time.Minute)
		b.answers(accept)
		b.Activate(b.config())
		b.expect("e1 0s", "e1 1m0s")
	})
}

func TestRetryAfterCountsUpToTheLongestBackoff(t *testing.T) {
	run(t, func(b *bed) {
		busy := down
		busy.Status, busy.RetryAfter = 503, 2000*time.Hour
		b.answers(busy)
		b.add(1)
		b.sleep(15 * time.Minute)
		b.expect("e1 0s", "e1 15m0s")
	})
}

func TestRetryAfterOfOneEventHoldsForItAlone(t *testing.T) {
	run(t, func(b *bed) {
		o := status(409)
		o.RetryAfter = time.Minute
		b.backend(fails(o, "e1"))
		b.add(2)
		b.sleep(90 * time.Second)
		b.expect("e1 0s", "e2 0s", "e1 1m0s")
	})
}

func TestALateRetryAfterLengthensTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := backoff{first: time.Second, longest: time.Hour, random: func() float64 { return 0.5 }}
		g := newGate(new(int64))
		early, _ := g.first(suspect{event: 1})
		late, _ := g.first(suspect{event: 2})
		early.learn(down, 8, b)
		o := down
		o.RetryAfter = time.Minute
		late.learn(o, 8, b)
		if wait := time.Until(g.until); wait != time.Minute {
			t.Error(wait)
		}
	})
}

// A slow answer to what was asked before the backend failed says nothing.
func TestALateSuccessDoesNotOpenTheGate(t *testing.T) {
	b := backoff{first: time.Second, longest: time.Hour, random: func() float64 { return 0.5 }}
	g := newGate(new(int64))
	early, _ := g.first(suspect{event: 1})
	late, _ := g.first(suspect{event: 2})
	early.learn(down, 8, b)
	late.learn(accept, 8, b)
	if !g.closed {
		t.Error("open")
	}
}

func inSeconds(seconds ...int) (durations []time.Duration) {
	for _, n := range seconds {
		durations = append(durations, time.Duration(n)*time.Second)
	}
	return durations
}
