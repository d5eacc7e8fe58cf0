package inboxtest

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/buzzbip/caddy-webhook/inbox"
)

const racers = 16

// race calls f in many goroutines, and returns how many of them had no error. The
// others must have one.
func (s *suite) race(lost error, f func(racer int) error) (won int) {
	var mu sync.Mutex
	var running sync.WaitGroup
	begin := make(chan struct{})
	for racer := range racers {
		running.Go(func() {
			<-begin
			err := f(racer)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, lost) {
				s.Errorf("a racer got %v", err)
			}
		})
	}
	close(begin)
	running.Wait()
	return won
}

func lastPlace(s *suite) {
	e := NewEvent("round 10 racer 10", start)
	size := e.Size()
	for round := 10; round < 20; round++ {
		won := s.race(inbox.ErrFull, func(racer int) error {
			_, err := s.store.Add(s.Context(), NewEvent(fmt.Sprintf("round %d racer %d", round, racer+10), start), size*int64(round-9))
			return err
		})
		if won != 1 {
			s.Errorf("%d got the last place", won)
		}
	}
	s.counts(10, 0, 0)
}

func oneAdds(s *suite) {
	for round := range 10 {
		won := s.race(inbox.ErrKept, func(int) error {
			_, err := s.store.Add(s.Context(), NewEvent(fmt.Sprint(round), start), noLimit)
			return err
		})
		if won != 1 {
			s.Errorf("%d added one event", won)
		}
	}
	s.counts(10, 0, 0)
}

func concurrent(s *suite) {
	n := s.addNew("a", 0)
	if done := s.race(nil, func(racer int) error {
		return s.store.Attempted(s.Context(), n, failure(after(racer+1)), after(100), time.Time{})
	}); done != racers || s.load(n).Attempts != racers {
		s.Errorf("%d of %d attempts are counted", s.load(n).Attempts, done)
	}
	var removed sync.Map
	s.race(nil, func(racer int) error {
		_, err := s.store.Discard(s.Context(), inbox.Filter{}, func(e inbox.Event) {
			if _, twice := removed.LoadOrStore(e.Number, racer); twice {
				s.Errorf("event %d was discarded twice", e.Number)
			}
		})
		return err
	})
	s.gone(n)
}
