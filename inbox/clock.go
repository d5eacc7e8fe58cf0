package inbox

import (
	"sync"
	"time"
)

// maxLead is how far a clock may be ahead of the system's.
const maxLead = 2 * time.Hour

// clock tells the time of day, in which due times are kept. When the system's clock
// is put back, it goes on from where it was, so that what is due in a minute stays
// so; if it would be too far ahead, it is put back too. When the system's clock
// leaps ahead, it follows: events are due earlier, but not more of them at once. The
// waits of a gate are measured without it.
type clock struct {
	wall func() time.Time
	back func() // called when it is put back

	mu   sync.Mutex
	last time.Time // what now returned last
	at   time.Time // and when, on the monotonic clock
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := time.Now()
	now := c.wall().Round(0)
	if steady := c.last.Add(at.Sub(c.at)); !c.last.IsZero() && steady.After(now) {
		if steady.Sub(now) <= maxLead {
			now = steady
		} else {
			c.back()
		}
	}
	c.last, c.at = now, at
	return now
}

// never is a wait without an end.
const never = time.Duration(1<<63 - 1)

// soonest is the earliest of the times at which something may be to do, or zero
// if there is nothing. It may be too early, never too late: so no wake-up is
// missed.
type soonest struct{ time.Time }

// add takes t into account, and reports whether it is earlier than the others.
func (s *soonest) add(t time.Time) bool {
	if t.IsZero() || !s.IsZero() && !t.Before(s.Time) {
		return false
	}
	s.Time = t
	return true
}

// wait returns how long it is until then.
func (s *soonest) wait(now time.Time) time.Duration {
	if s.IsZero() {
		return never
	}
	return max(0, s.Sub(now))
}

// alarm is a wake-up call for one goroutine. It is not lost if the goroutine is
// busy, which then looks at everything once more.
type alarm chan struct{}

func newAlarm() alarm { return make(alarm, 1) }

func (a alarm) ring() {
	select {
	case a <- struct{}{}:
	default: // rings already
	}
}

// sleep waits for the alarm, or until the time is over. It returns false if done
// is closed.
func (a alarm) sleep(wait time.Duration, done <-chan struct{}) bool {
	var over <-chan time.Time
	switch wait {
	case never:
	case 0:
		// No timer: reading the channel of one that is due crashes Go 1.26 now and
		// then, with the race detector in a synctest bubble.
		select {
		case <-done:
			return false
		default:
			return true
		}
	default:
		timer := time.NewTimer(wait)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-a:
	case <-over:
	case <-done:
		return false
	}
	return true
}
