package inbox

import (
	"slices"
	"testing"
	"time"
)

func TestEventsDieInTimeAlsoWhileNothingIsAsked(t *testing.T) {
	for name, stop := range map[string]func(b *bed){
		"down":   func(b *bed) { b.answers(down) },
		"paused": func(b *bed) { _ = b.d.SetPaused(b.Context(), true) },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(b *bed) {
				stop(b)
				b.add(1)
				b.sleep(time.Hour)
				b.add(1000)
				b.sleep(71*time.Hour - time.Second)
				b.expectStates(1001, 0, 0, 0)
				b.sleep(2 * time.Second)
				b.expectStates(1000, 1, 0, 0)
				b.sleep(time.Hour)
				b.expectStates(0, 1001, 0, 0)
				if len(b.died) != 1001 {
					b.Errorf("%d deaths told", len(b.died))
				}
				if slices.Sort(b.died); len(slices.Compact(b.died)) != 1001 {
					b.Error("deaths told twice")
				}
				if n := b.store.count("Expire"); n > 30 {
					b.Errorf("%d calls of Expire", n)
				}
			})
		})
	}
}

func TestAnEventThatIsTooOldAfterAnAttemptIsDead(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(status(500))
		e := b.event()
		e.Arrived = e.Arrived.Add(-72*time.Hour + 7*time.Second)
		number, err := b.d.Add(b.Context(), "site", nil, e, 1<<30)
		if err != nil {
			b.Fatal(err)
		}
		b.sleep(time.Minute)
		b.expect("e1 0s", "e1 5s")
		if e := b.store.event(number); e.State != Dead || e.Attempts != 2 {
			b.Errorf("%+v", e)
		}
	})
}

func TestAnEventThatDiesWhileUnderWayMayStillBeAccepted(t *testing.T) {
	run(t, func(b *bed) {
		b.slowBackend(takes(73 * time.Hour))
		b.add(1)
		b.sleep(72*time.Hour + time.Second)
		b.expectStates(0, 1, 0, 0)
		b.sleep(time.Hour)
		b.expectStates(0, 0, 0, 0)
		b.expectRemembered(1)
	})
}

func TestADeathIsToldOnce(t *testing.T) {
	run(t, func(b *bed) {
		b.backend(func(Event) Outcome {
			time.Sleep(73 * time.Hour)
			return status(500)
		})
		b.add(1)
		b.sleep(74 * time.Hour)
		b.expectStates(0, 1, 0, 0)
		if len(b.died) != 1 {
			b.Error(b.died)
		}
	})
}

func TestDeadAndDeliveredEventsAreKeptAsLongAsTheyShould(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.KeepDelivered = 24 * time.Hour
		b.policy.DeadOn = func(status int) bool { return status == 422 }
		b.Activate(b.config())
		b.add(500)
		b.sleep(time.Hour)
		b.expectStates(0, 0, 0, 500)
		b.answers(status(422))
		for range 500 {
			b.first()
		}
		b.sleep(23*time.Hour - time.Second)
		b.expectStates(0, 500, 0, 500)
		b.sleep(2 * time.Second)
		b.expectStates(0, 500, 0, 0)
		b.sleep(697*time.Hour - 2*time.Second)
		b.expectStates(0, 500, 0, 0)
		b.sleep(2 * time.Second)
		b.expectStates(0, 0, 0, 0)
		if b.removed != [2]int{500, 500} {
			b.Errorf("%d dead and %d delivered events are said to be removed", b.removed[0], b.removed[1])
		}
		if n := b.store.count("Expire"); n > 20 {
			b.Errorf("%d calls of Expire", n)
		}
	})
}

func TestAnEventThatWasAcceptedAtOnceIsKeptForReplay(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.KeepDelivered = 24 * time.Hour
		b.Activate(b.config())
		b.sleep(time.Hour)
		if err := b.d.AddDelivered(b.Context(), "site", nil, b.event(), Attempt{Time: b.wall(), Status: 200}); err != nil {
			b.Fatal(err)
		}
		b.sleep(23 * time.Hour)
		b.expectStates(0, 0, 0, 1)
		b.expect()
		b.retry(Filter{State: []State{Delivered}})
		b.expect("e1 24h0m0s")
		b.expectStates(0, 0, 0, 1)
		b.sleep(24*time.Hour - time.Second)
		b.expectStates(0, 0, 0, 1)
		b.sleep(2 * time.Second)
		b.expectStates(0, 0, 0, 0)
	})
}

func TestADeliveredEventExpiresAlsoIfNothingElseHappens(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.KeepDelivered = 24 * time.Hour
		b.Activate(b.config())
		b.sleep(time.Hour)
		if err := b.d.AddDelivered(b.Context(), "site", nil, b.event(), Attempt{Time: b.wall(), Status: 200}); err != nil {
			b.Fatal(err)
		}
		b.sleep(24*time.Hour + time.Second)
		b.expectStates(0, 0, 0, 0)
	})
}

func TestAReloadThatKeepsLessRemovesMore(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.KeepDelivered = 24 * time.Hour
		b.Activate(b.config())
		b.add(1)
		b.expectStates(0, 0, 0, 1)
		b.policy.KeepDelivered = 0
		b.Activate(b.config())
		b.sleep(2 * time.Second)
		b.expectStates(0, 0, 0, 0)
	})
}

func TestAStoreThatCannotExpireIsAskedGently(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(down)
		b.add(1)
		_ = b.d.SetPaused(b.Context(), true)
		b.store.stop(errDisk)
		b.sleep(72 * time.Hour)
		before := b.store.count("Expire")
		b.sleep(time.Hour)
		if n := b.store.count("Expire") - before; n == 0 || n > 80 {
			b.Errorf("%d calls of Expire in an hour", n)
		}
		b.store.stop(nil)
		b.sleep(90 * time.Second)
		b.expectStates(0, 1, 0, 0)
	})
}
