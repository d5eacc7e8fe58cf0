package buzzbip

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Keepers come in any order of their deadlines: one may have waited before.
func TestEachKeeperIsLateAtItsDeadlineUnlessItHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l lateKeepers
		var deliveries sync.WaitGroup
		seconds := func(n int) time.Duration { return time.Duration(rand.IntN(n)) * time.Second }
		for range 1000 {
			deliveries.Go(func() {
				time.Sleep(seconds(100))
				late := make(chan struct{})
				k := &keeper{kept: true, late: late} // keepLate closes late
				left, took := seconds(10), seconds(10)+time.Millisecond
				deadline := time.Now().Add(left)
				l.add(k, deadline)
				select {
				case <-late:
					if left > took || !time.Now().Equal(deadline) {
						t.Errorf("late %v after the deadline, with %v of %v left", time.Since(deadline), left, took)
					}
				case <-time.After(took):
					if left < took {
						t.Errorf("not late after %v, with a deadline after %v", took, left)
					}
				}
				l.remove(k)
			})
		}
		deliveries.Wait()
		if l.first != nil || l.last != nil {
			t.Error("some are still in line")
		}
	})
}

// A timer for each would cost more than the rest of an inbox.
func TestKeepersThatAreNotLateShareATimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l lateKeepers
		rings := func() time.Time { l.mu.Lock(); defer l.mu.Unlock(); return l.rings }
		first := time.Now().Add(8 * time.Second)
		for range 7 {
			k := new(keeper)
			l.add(k, time.Now().Add(8*time.Second))
			l.remove(k)
			if !rings().Equal(first) {
				t.Fatalf("the timer was set again, to %v", rings())
			}
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		if !rings().IsZero() {
			t.Error("the timer goes on without keepers")
		}
	})
}
