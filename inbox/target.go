package inbox

import (
	"slices"
	"time"

	"golang.org/x/time/rate"
)

const (
	// batch is how many events are asked for at a time.
	batch = 128
	// maxUrgent is how many events of a target are to be delivered out of turn at
	// most. If an operator wants more to be retried, the others wait in line.
	maxUrgent = 100
	// maxUnserved is how many events of a target that nothing serves are passed
	// over. After more, the target waits.
	maxUnserved = 1000
)

// target is what a [Dispatcher] knows about a target. The dispatcher locks.
type target struct {
	name    string
	gate    *gate
	limiter *rate.Limiter

	// queue has events that were due when it was filled. They may have changed
	// since.
	queue []Event
	// next is when an event becomes due that is neither in queue nor busy.
	next soonest
	// urgent has the events that an operator wants to be delivered now.
	urgent []Event
	// unserved has the numbers of events for which no backend was asked. They are
	// passed over until then, on the monotonic clock, or until the configuration
	// changes.
	unserved map[int64]bool
	until    time.Time
}

func newLimiter(p Policy) *rate.Limiter {
	if p.Rate == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(p.Rate), 1)
}

// idle reports whether no event waits for t, other than busy ones.
func (t *target) idle() bool {
	return len(t.queue) == 0 && t.next.IsZero() && len(t.urgent) == 0 && len(t.unserved) == 0
}

// reconfigure adapts to another configuration.
func (t *target) reconfigure(p Policy, now time.Time) {
	t.gate = t.gate.renewed()
	t.limiter = newLimiter(p)
	t.servedAgain(now)
}

// servedAgain tries the events again for which no backend was asked.
func (t *target) servedAgain(now time.Time) {
	if len(t.unserved) > 0 {
		clear(t.unserved)
		t.next.add(now)
	}
}

// unservable passes an event over.
func (t *target) unservable(number int64, p Policy) {
	if t.unserved == nil {
		t.unserved = map[int64]bool{}
	}
	if len(t.unserved) == 0 {
		t.until = time.Now().Add(p.LongestRetry)
	}
	t.unserved[number] = true
}

// dispatch starts attempts for a target, until none is to be started now. It
// returns how long to wait until one may be.
func (d *Dispatcher) dispatch(t *target, c *Config) (time.Duration, error) {
	for {
		d.mu.Lock()
		wait, fill := d.startNext(t, c)
		d.mu.Unlock()
		if !fill {
			return wait, nil
		}
		if err := d.fill(t); err != nil {
			return never, err
		}
	}
}

// startNext starts attempts until none is to be started now, or the queue is to be
// filled.
func (d *Dispatcher) startNext(t *target, c *Config) (wait time.Duration, fill bool) {
	for {
		if d.stopped || d.paused || d.current() != c {
			return never, false // until the alarm rings
		}
		now := time.Now()
		again := never
		if len(t.unserved) > 0 {
			if again = t.until.Sub(now); again <= 0 {
				t.servedAgain(d.clock.now())
				continue
			}
		}
		urgent := len(t.urgent) > 0
		switch {
		case urgent && (d.underWay(&t.urgent[0]) || !d.mayRedeliver(t, &t.urgent[0])):
			t.urgent = t.urgent[1:]
			continue
		case urgent:
		case len(t.unserved) >= maxUnserved:
			return again, false
		case len(t.queue) == 0:
			if wait := t.next.wait(d.clock.now()); wait > 0 {
				return min(wait, again), false
			}
		case d.notNow(t, &t.queue[0]):
			t.queue = t.queue[1:] // next tells when to look at it again
			continue
		}
		if wait := t.gate.wait(urgent, now, max(1, c.Policy.Concurrency)); wait > 0 {
			return min(wait, again), false
		}
		if !urgent && len(t.queue) == 0 {
			return 0, true
		}
		if t.limiter != nil && !t.limiter.AllowN(now, 1) {
			r := t.limiter.ReserveN(now, 1)
			wait := r.DelayFrom(now)
			r.CancelAt(now)
			return min(wait, again), false
		}
		var e Event
		if urgent {
			e, t.urgent = t.urgent[0], t.urgent[1:]
		} else {
			e, t.queue = t.queue[0], t.queue[1:]
		}
		var p pass
		d.change(t.gate, func() { p = t.gate.redeliver(suspectOf(&e)) })
		a := &attempt{number: e.Number, target: t, pass: &p, lane: d.lanes.hold(&e), urgent: urgent}
		d.busy[e.Number] = a
		d.running.Add(1)
		go d.redeliver(a, c)
	}
}

// notNow reports whether an event of the queue is not to be delivered now. When
// that changes, next has it again.
func (d *Dispatcher) notNow(t *target, e *Event) bool {
	return d.underWay(e) || t.unserved[e.Number] || !d.mayRedeliver(t, e)
}

// underWay reports whether an attempt to deliver an event is under way, or may be.
func (d *Dispatcher) underWay(e *Event) bool {
	return d.busy[e.Number] != nil || d.adding[identityOf(*e)] > 0
}

// mayRedeliver reports whether nothing of the lane of an event is in its way. If
// something is, the event is passed over until that changes.
func (d *Dispatcher) mayRedeliver(t *target, e *Event) bool {
	if d.lanes.mayRedeliver(e) {
		return true
	}
	d.blocked[e.Number] = t
	return false
}

// fill asks the store for events that are due. It is not called while queue has
// some.
func (d *Dispatcher) fill(t *target) error {
	d.mu.Lock()
	// What changes from here on is added to next.
	t.next, d.filling = soonest{}, t
	d.mu.Unlock()
	skip := func(number int64) bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.busy[number] != nil || t.unserved[number] || d.blocked[number] != nil
	}
	now := d.clock.now()
	due, err := d.store.Due(d.ctx, t.name, now, batch, skip)
	next := now
	if err == nil && len(due) < batch {
		next, err = d.store.NextDue(d.ctx, t.name, func(number int64) bool {
			return slices.ContainsFunc(due, func(e Event) bool { return e.Number == number }) || skip(number)
		})
		// A store may round times; it is not asked again for the same one.
		if !next.IsZero() && !next.After(now) {
			next = now.Add(time.Millisecond)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.filling = nil
	if err != nil {
		t.next.add(now)
		return err
	}
	t.queue = due
	t.next.add(next)
	return nil
}

// discover finds the targets of the events that wait.
func (d *Dispatcher) discover() error {
	names, err := d.store.Targets(d.ctx)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range names {
		d.target(name).next.add(d.clock.now())
	}
	return nil
}
