package inbox

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// flood makes first attempts for n targets that are not used otherwise. All fail: the
// dispatcher does not learn of those that succeed.
func (b *bed) flood(n int) {
	b.Helper()
	for i := range n {
		var f First
		if !f.Try(context.Background(), b.d, fmt.Sprint("flood ", i), nil) {
			b.Fatal("not tried")
		}
		f.End(status(404))
	}
}

func (b *bed) targets() int {
	b.d.mu.Lock()
	defer b.d.mu.Unlock()
	return len(b.d.targets)
}

func TestIdleTargetsAreBounded(t *testing.T) {
	run(t, func(b *bed) {
		b.flood(5 * maxIdleTargets)
		if n := b.targets(); n > maxIdleTargets {
			t.Errorf("%d targets are known", n)
		}
		// and those that events have waited for
		b.answers(down)
		for i := range 2 * maxIdleTargets {
			b.addTo(fmt.Sprint("was down ", i), 1)
		}
		b.sleep(time.Second)
		b.answers(accept)
		b.sleep(time.Hour)
		b.expectStates(0, 0, 0, 0)
		b.flood(2 * maxIdleTargets)
		if n := b.targets(); n > maxIdleTargets {
			t.Errorf("%d targets are known", n)
		}
	})
}

func TestTargetThatFailsCountsOnlyUntilItIsForgotten(t *testing.T) {
	run(t, func(b *bed) {
		b.flood(1)
		if b.d.calm.Load().has("flood 0") {
			t.Error("it does not count")
		}
		b.d.mu.Lock()
		b.d.forgetIdle()
		b.d.mu.Unlock()
		if !b.d.calm.Load().has("flood 0") {
			t.Error("it still counts")
		}
	})
}

func TestTargetsThatEventsWaitForAreNotForgotten(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(status(500))
		const waiting = maxIdleTargets + maxIdleTargets/2
		for i := range waiting {
			b.addTo(fmt.Sprint("waits ", i), 1)
		}
		b.expectCount(waiting)
		b.flood(10 * maxIdleTargets)
		if n := b.targets(); n < waiting || n > 2*waiting {
			t.Errorf("%d targets are known", n)
		}
		b.answers(accept)
		b.sleep(6 * time.Second)
		b.expectStates(0, 0, 0, 0)
	})
}

func TestTargetsOfAttemptsUnderWayAreNotForgotten(t *testing.T) {
	run(t, func(b *bed) {
		b.slowBackend(func(context.Context, Event) Outcome {
			time.Sleep(time.Minute)
			return status(500)
		})
		b.add(1)
		b.expect("e1 0s")
		b.flood(3 * maxIdleTargets)
		b.add(1)
		b.sleep(time.Second)
		b.expect() // the first one is still under way
		b.answers(accept)
		b.sleep(2 * time.Minute)
		b.expectStates(0, 0, 0, 0)
	})
}

// duringDue calls a function whenever the dispatcher asks for events that are due.
type duringDue struct {
	*memory
	call func()
}

func (s *duringDue) Due(ctx context.Context, target string, now time.Time, limit int, skip func(int64) bool) ([]Event, error) {
	s.call()
	return s.memory.Due(ctx, target, now, limit, skip)
}

func TestTargetWhoseEventsAreAskedForIsNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &duringDue{memory: newMemory()}
		b := newBed(t, s.memory)
		b.add(20)
		b.Stop()
		s.call = func() { b.flood(2 * maxIdleTargets) }
		b.d, b.stop = newDispatcher(s, b.wall, b.rand), sync.Once{}
		b.Activate(b.config())
		b.expectCount(20)
		b.Stop()
	})
}

func TestEventIsDeliveredWhoseTargetWasForgottenDuringItsFirstAttempt(t *testing.T) {
	for name, keep := range map[string]func(f *First, keep func()){
		"that fails":   func(f *First, keep func()) { f.End(status(500)); keep() },
		"that is slow": func(f *First, keep func()) { keep(); f.End(status(500)) },
		"that is none": func(f *First, keep func()) { f.End(Outcome{NoAttempt: true}); keep() },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(b *bed) {
				b.sleep(time.Second) // it has asked the store for targets
				f, _ := b.try()
				f.End(status(500)) // otherwise the dispatcher would not know the target yet
				f, _ = b.try()
				b.flood(3 * maxIdleTargets)
				keep(f, func() {
					if _, err := f.Keep(t.Context(), b.event(), 1<<30); err != nil {
						t.Error(err)
					}
				})
				b.sleep(10 * time.Second)
				b.expectCount(1)
				b.expectStates(0, 0, 0, 0)
			})
		})
	}
}
