package buzzbip

import (
	crand "crypto/rand"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// addNew adds a delivery whose keepLate sends to a channel.
func (s *deliverySet) addNew(deadline time.Time) (token string, late <-chan bool) {
	told := make(chan bool, 1)
	token = crand.Text()
	s.add(token, &attempt{keeper: &keeper{kept: true, fork: &fork{returns: told}, deadline: deadline}})
	return token, told
}

func (s *deliverySet) ringsAt() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rings
}

// They come in any order of their deadlines: some may have waited before.
func TestEachDeliveryIsLateAtItsDeadlineUnlessItHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s deliverySet
		var senders sync.WaitGroup
		seconds := func(n int) time.Duration { return time.Duration(rand.IntN(n)) * time.Second }
		for range 1000 {
			senders.Go(func() {
				time.Sleep(seconds(100))
				left, took := seconds(10), seconds(10)+500*time.Millisecond
				deadline := time.Now().Add(left)
				token, late := s.addNew(deadline)
				select {
				case <-late:
					if since := time.Since(deadline); left > took || since < 0 || since > 10*time.Millisecond {
						t.Errorf("late %v after the deadline, with %v of %v left", since, left, took)
					}
				case <-time.After(took):
					if left < took {
						t.Errorf("not late after %v, with a deadline after %v", took, left)
					}
				}
				s.remove(token)
			})
		}
		senders.Wait()
		if s.count() > 0 {
			t.Error("some are still in the set")
		}
	})
}

// A timer for each would cost more than the rest of an inbox.
func TestDeliveriesThatAreNotLateShareATimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s deliverySet
		first := time.Now().Add(8 * time.Second)
		for range 7 {
			token, _ := s.addNew(time.Now().Add(8 * time.Second))
			s.remove(token)
			if at := s.ringsAt(); !at.Equal(first) {
				t.Fatalf("the timer was set again, to %v", at)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		if !s.ringsAt().IsZero() {
			t.Error("the timer goes on without deliveries")
		}
	})
}

// Otherwise many deliveries of a slow backend would be looked at for each of them.
func TestLateDeliveriesAreLookedForTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s deliverySet
		const many, apart = 10_000, time.Millisecond
		var lates []<-chan bool
		for i := range many {
			_, late := s.addNew(time.Now().Add(time.Duration(i) * apart))
			lates = append(lates, late)
		}
		looks := 0
		for ; !s.ringsAt().IsZero(); looks++ {
			time.Sleep(time.Until(s.ringsAt()))
			synctest.Wait()
		}
		for _, late := range lates {
			<-late
		}
		if pause := many * 10 * time.Microsecond; looks > int(many*apart/pause)+2 {
			t.Errorf("looked %d times", looks)
		}
	})
}

// A delivery that had to wait for others may begin when it is late.
func TestDeliveriesThatBeginLateAreLookedForTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s deliverySet
		const many, more = 1000, 100
		for range many {
			s.addNew(time.Now())
		}
		time.Sleep(time.Second)
		looks := 0
		for range more {
			s.addNew(time.Now())
			next := s.ringsAt()
			time.Sleep(time.Microsecond)
			synctest.Wait()
			if s.ringsAt() != next {
				looks++
			}
		}
		if looks > 2 {
			t.Errorf("looked %d times", looks)
		}
	})
}
