package inbox

import (
	"errors"
	"testing"
	"time"
)

func (b *bed) retry(f Filter) {
	b.Helper()
	if _, err := b.d.Retry(b.Context(), f); err != nil {
		b.Fatal(err)
	}
}

func TestARetryByTheOperatorStartsAnew(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(status(500))
		number := b.add(1)
		b.sleep(time.Hour)
		b.seen()
		if e := b.store.event(number); e.Attempts != 11 {
			b.Errorf("%+v", e)
		}
		b.retry(Filter{})
		b.sleep(20 * time.Second)
		b.expect("e1 1h0m0s", "e1 1h0m5s", "e1 1h0m15s")
		if e := b.store.event(number); e.Attempts != 3 {
			b.Errorf("%+v", e)
		}
	})
}

func TestARetryWhileTheEventIsUnderWayStartsAnew(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(status(500))
		b.add(1)
		b.sleep(time.Hour)
		b.backend(func(Event) Outcome {
			time.Sleep(time.Second)
			return status(500)
		})
		b.sleep(15 * time.Minute)
		b.seen()
		b.sleep(6*time.Minute + 16*time.Second + 500*time.Millisecond)
		b.expect("e1 1h21m16s")
		b.retry(Filter{}) // under way
		b.sleep(6 * time.Second)
		b.expect("e1 1h21m22s")
	})
}

func TestARetryIsDeliveredAtOnceAlsoIfTheBackendFails(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(down)
		number := b.add(1000)
		b.sleep(65 * time.Minute)
		b.seen()
		b.retry(Filter{Number: []int64{number + 700, number + 701}})
		b.expect("e701 1h5m0s") // it asks once
		b.sleep(time.Minute)
		b.answers(accept)
		b.retry(Filter{Number: []int64{number + 800}})
		b.expectFirst("e801")
	})
}

// expectFirst checks which event was delivered first since the last check.
func (b *bed) expectFirst(id string) {
	b.Helper()
	b.sleep(0)
	if seen := b.seen(); len(seen) == 0 || seen[0].id != id {
		b.Errorf("attempts: %v", seen)
	}
}

func TestARetryOfADeadEventGivesItAllItsTime(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(down)
		b.add(1)
		b.sleep(100 * time.Hour)
		b.expectStates(0, 1, 0, 0)
		b.retry(Filter{State: []State{Dead}})
		b.sleep(71 * time.Hour)
		b.expectStates(1, 0, 0, 0)
		b.sleep(time.Hour + time.Second)
		b.expectStates(0, 1, 0, 0)
	})
}

func TestARetryOfManyIsComplete(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.DeadOn = func(status int) bool { return status == 422 }
		b.Activate(b.config())
		b.answers(status(422))
		for range 1000 {
			b.first()
		}
		b.sleep(time.Hour)
		b.expectStates(0, 1000, 0, 0)
		b.answers(accept)
		b.retry(Filter{State: []State{Dead}})
		b.expectStates(0, 0, 0, 0)
	})
}

func TestARetryThatFailsHalfwayDeliversWhatItChanged(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.DeadOn = func(status int) bool { return status == 422 }
		b.Activate(b.config())
		b.answers(status(422))
		b.add(2)
		b.sleep(time.Hour)
		b.seen()
		b.answers(accept)
		b.store.retryFails = errDisk
		if n, err := b.d.Retry(b.Context(), Filter{}); n != 1 || !errors.Is(err, errDisk) {
			b.Errorf("%d are retried, error %v", n, err)
		}
		b.expect("e1 1h0m0s")
		b.expectStates(0, 1, 0, 0)
	})
}

func TestARetryOfADeliveredEventDeliversItAgain(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.KeepDelivered = time.Hour
		b.Activate(b.config())
		b.add(1)
		b.expectStates(0, 0, 0, 1)
		b.retry(Filter{})
		b.expect("e1 0s", "e1 0s")
		b.expectStates(0, 0, 0, 1)
	})
}

func TestWhatIsDiscardedIsNotDelivered(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.Concurrency = 1
		b.Activate(b.config())
		b.slowBackend(takes(time.Second))
		b.add(50) // all of them are in the queue by now
		b.expectCount(1)
		if _, err := b.d.Discard(b.Context(), Filter{}); err != nil {
			b.Fatal(err)
		}
		b.sleep(time.Hour)
		b.expect()
	})
}

func TestTheDiscardOfTheEventThatAsksLetsOthersAsk(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(down)
		b.add(50)
		b.sleep(time.Second)
		if _, err := b.d.Discard(b.Context(), Filter{}); err != nil {
			b.Fatal(err)
		}
		b.sleep(time.Hour)
		b.expect("e1 0s")
		b.answers(accept)
		b.add(1)
		b.expect("e51 1h0m1s")
	})
}
