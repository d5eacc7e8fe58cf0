package inbox

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestAStatusOfDeadOnIsDeath(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.DeadOn = func(status int) bool { return status == 422 }
		b.Activate(b.config())
		b.answers(status(422))
		number := b.add(1)
		b.sleep(time.Hour)
		b.expect("e1 0s")
		if e := b.store.event(number); e.State != Dead || e.Last.Status != 422 || !e.Settled.Equal(b.start) {
			b.Errorf("%+v", e)
		}
		if len(b.died) != 1 || b.lastDead.Attempts != 1 || b.lastDead.Last.Status != 422 || b.lastDead.First.Status != 422 {
			b.Error(b.died, b.lastDead)
		}
	})
}

// DeadOn of a function that knows no better.
func TestNoAnswerIsNoStatus(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.DeadOn = func(int) bool { return true }
		b.Activate(b.config())
		b.answers(down)
		b.add(1)
		b.sleep(time.Hour)
		b.expectStates(1, 0, 0, 0)
	})
}

// The disk fills between a delivery and its record.
func TestAnAcceptedEventThatCannotBeRecordedIsNotDeliveredAgain(t *testing.T) {
	run(t, func(b *bed) {
		b.slowBackend(takes(time.Second))
		b.add(100)
		b.sleep(3500 * time.Millisecond)
		b.store.stop(errDisk)
		b.sleep(1500 * time.Millisecond) // 8 end and cannot be recorded
		b.seen()
		for range 100 { // whatever wakes it up
			b.sleep(time.Hour / 100)
			b.d.Wake()
		}
		b.expect() // and no others are delivered, which could not be recorded either
		if n := len(b.troubles); n > 2*61 {
			b.Errorf("%d log entries in an hour", n)
		}
		b.Activate(b.config()) // a reload changes nothing
		b.sleep(time.Minute)
		b.expect()
		b.store.stop(nil)
		b.sleep(2 * time.Minute)
		b.expectStates(0, 0, 0, 0)
		b.expectCount(100 - 7 - 8)
		b.expectRemembered(100)
		for id, n := range b.remembered {
			if n != 1 {
				b.Errorf("%s remembered %d times", id, n)
			}
		}
	})
}

func TestAFailureThatCannotBeRecordedCountsLater(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(status(500))
		number := b.add(1)
		b.sleep(time.Second)
		b.store.stop(errDisk)
		b.sleep(time.Hour)
		b.expect("e1 0s", "e1 5s")
		b.store.stop(nil)
		b.answers(accept)
		b.sleep(90 * time.Second)
		b.expectCount(1)
		if e := b.store.event(number); e.Number != 0 {
			b.Errorf("%+v", e)
		}
	})
}

func TestWhatCouldNotBeRecordedIsRecordedAtStop(t *testing.T) {
	run(t, func(b *bed) {
		f, _ := b.hold()
		b.store.stop(errDisk)
		f.End(accept)
		b.sleep(time.Hour + 30*time.Second)
		b.store.stop(nil)
		ctx, cancel := context.WithCancel(b.Context())
		cancel()
		b.stop.Do(func() { b.d.Stop(ctx) })
		b.expectStates(0, 0, 1, 0)
		b.expect()
	})
}

func TestAnEventThatIsDiscardedWhileUnderWayIsGone(t *testing.T) {
	run(t, func(b *bed) {
		b.slowBackend(takes(time.Second))
		b.add(1)
		b.expectCount(1)
		if _, err := b.d.Discard(b.Context(), Filter{}); err != nil {
			b.Fatal(err)
		}
		b.sleep(time.Second)
		b.expectRemembered(1) // the backend has it
		b.add(1)
		b.sleep(time.Hour)
		b.expectCount(1)
		if len(b.troubles) > 0 {
			b.Error(b.troubles)
		}
	})
}

func TestAPanicIsAFailure(t *testing.T) {
	run(t, func(b *bed) {
		b.backend(func(e Event) Outcome {
			if e.Attempts == 0 {
				panic(errors.New("oops"))
			}
			return accept
		})
		number := b.add(1)
		b.sleep(time.Second)
		if e := b.store.event(number); e.Attempts != 1 || e.Last.Cause != "panic" || e.Last.Time.IsZero() {
			b.Errorf("%+v", e)
		}
		b.sleep(time.Minute)
		b.expectStates(0, 0, 0, 0)
	})
}

func TestHooksTellEachRedelivery(t *testing.T) {
	run(t, func(b *bed) {
		c := b.config()
		accepted, failed := 0, 0
		c.Hooks.Redelivered = func(e Event, o Outcome) {
			if e.Body != nil {
				b.Error("a hook sees the body")
			}
			if o.Accepted {
				accepted++
			} else {
				failed++
			}
		}
		b.Activate(c)
		b.backend(func(e Event) Outcome {
			if e.Attempts < 2 {
				return status(500)
			}
			return accept
		})
		b.add(1)
		b.sleep(time.Minute)
		if accepted != 1 || failed != 2 {
			b.Error(accepted, failed)
		}
	})
}

func TestHooksAreOptional(t *testing.T) {
	run(t, func(b *bed) {
		c := b.config()
		c.Hooks = Hooks{}
		c.Policy.DeadOn = func(status int) bool { return status == 422 }
		b.Activate(c)
		b.answers(status(422))
		b.add(1)
		b.sleep(time.Second)
		b.store.stop(errDisk)
		_, _ = b.d.Add(b.Context(), "site", nil, b.event(), 1<<30)
		b.sleep(time.Minute)
		b.store.stop(nil)
		b.expectStates(0, 1, 0, 0)
	})
}
