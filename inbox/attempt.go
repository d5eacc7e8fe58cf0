package inbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// maxUnrecorded is how many outcomes may be still to be recorded before no further
// attempt is made. It is reached only if a store fails without saying so in its
// [Stats]: otherwise a single one is enough.
const maxUnrecorded = 64

// attempt is an event that must not be delivered by another attempt. The dispatcher
// locks.
type attempt struct {
	number int64
	event  Event // without request and body
	target *target
	pass   *pass
	lane   *lane // nil without an order key, and for a first attempt, which has a turn
	urgent bool
	// died means that the event was declared dead in the meantime, retried that
	// an operator has asked for a retry.
	died, retried bool
}

// record is the outcome of an attempt that is still to be recorded.
type record struct {
	*attempt
	write    func(context.Context) error
	accepted bool
	due      time.Time // of the next attempt, unless accepted or dead
	dead     time.Time // zero if not dead
	failures int
	retry    time.Time // of write, on the monotonic clock
}

// redeliver makes an attempt.
func (d *Dispatcher) redeliver(a *attempt, c *Config) {
	defer d.running.Done()
	e, err := d.store.Load(d.ctx, a.number)
	now := d.clock.now()
	switch {
	case err != nil:
		d.mu.Lock()
		if kept(err) != nil {
			// One event that cannot be read does not hold up the others.
			a.target.unservable(a.number, c.Policy)
		}
		d.abandon(a)
		d.mu.Unlock()
		if kept(err) != nil {
			d.trouble("reading an event from the inbox", err)
		}
		return
	case e.State != Waiting || e.Blocked || e.Due.After(now):
		// It has changed since it was put in the queue.
		d.mu.Lock()
		if e.State == Waiting && !e.Blocked {
			d.dueAt(a.target, e.Due)
		}
		d.abandon(a)
		d.mu.Unlock()
		return
	}
	o := d.deliver(c, e)
	e.Request, e.Body = Request{}, nil
	a.event = e
	if c.Hooks.Redelivered != nil {
		c.Hooks.Redelivered(e, o)
	}
	d.mu.Lock()
	d.learn(a.pass, o, c.Policy)
	if a.urgent && a.pass.gate.closed {
		a.target.urgent = nil // they wait for the backend, as all do
	}
	if o.NoAttempt {
		if d.current() == c {
			a.target.unservable(a.number, c.Policy)
		} else {
			d.dueAt(a.target, d.clock.now()) // the new configuration may serve it
		}
		d.release(a)
		d.mu.Unlock()
		return
	}
	d.mu.Unlock()
	d.record(a, c, o)
}

// deliver calls c.Deliver.
func (d *Dispatcher) deliver(c *Config, e Event) (o Outcome) {
	began, wall := time.Now(), d.clock.now()
	defer func() {
		if p := recover(); p != nil {
			// A panic with every attempt would end the process again and again.
			o = Outcome{Attempt: Attempt{Cause: "panic"}}
			d.trouble("delivering an event", fmt.Errorf("panic with a %T", p))
		}
		o.Time, o.Duration = wall, time.Since(began).Seconds()
		if d.ctx.Err() != nil && !o.Accepted {
			o.NoAttempt = true
		}
	}()
	return c.Deliver(d.ctx, e)
}

// record records the outcome of an attempt. If that fails, it is tried again in the
// background, and the event stays busy.
func (d *Dispatcher) record(a *attempt, c *Config, o Outcome) {
	r := d.newRecord(a, c.Policy, o)
	ctx := d.writes
	if ctx.Err() != nil { // a first attempt has gone on after Stop
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.Background(), lastWrites)
		defer cancel()
	}
	if err := r.write(ctx); err != nil {
		d.trouble("recording an outcome in the inbox", err)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.leave(a.pass)
		r.failed()
		d.unrecorded = append(d.unrecorded, r)
		d.wake.ring()
		return
	}
	remembered := o.Accepted && d.rememberNow(a.event)
	d.recorded(r)
	if o.Accepted && !remembered {
		d.remember.ring()
	}
}

func (d *Dispatcher) newRecord(a *attempt, p Policy, o Outcome) *record {
	r := &record{attempt: a, accepted: o.Accepted}
	if o.Accepted {
		r.write = func(ctx context.Context) error {
			return kept(d.store.Accepted(ctx, a.number, o.Attempt, p.KeepDelivered > 0))
		}
		return r
	}
	now := d.clock.now()
	d.mu.Lock()
	attempts, since := a.event.Attempts+1, a.event.Since
	if a.retried {
		attempts, since = 1, now
	}
	if a.event.Attempts, a.event.Last = attempts, o.Attempt; attempts == 1 {
		a.event.First = o.Attempt
	}
	d.mu.Unlock()
	if p.isDead(o, since, now) {
		r.dead = now
	} else {
		r.due = p.due(o, attempts, now, d.random)
	}
	r.write = func(ctx context.Context) error {
		return kept(d.store.Attempted(ctx, a.number, o.Attempt, r.due, r.dead))
	}
	return r
}

// kept accepts that an event is gone: an operator has discarded it in the meantime.
func kept(err error) error {
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// failed sets the time of the next try.
func (r *record) failed() {
	r.failures++
	r.retry = time.Now().Add(storeBackoff.after(r.failures, 0))
}

// recorded ends an attempt whose outcome has been recorded.
func (d *Dispatcher) recorded(r *record) {
	d.mu.Lock()
	d.dueAt(r.target, r.due)
	if r.accepted || !r.dead.IsZero() {
		d.nextOfLane(&r.event)
	}
	d.release(r.attempt)
	died := !r.dead.IsZero() && !r.died
	c := d.current()
	if died && c != nil && c.Policy.KeepDead > 0 {
		d.expireAt(r.dead.Add(c.Policy.KeepDead))
	}
	d.mu.Unlock()
	if died {
		d.tellDeath(r.event)
	}
}

func (d *Dispatcher) tellDeath(e Event) {
	if c := d.config(); c.Hooks.Died != nil {
		c.Hooks.Died(e)
	}
}

// writeUnrecorded tries again to record outcomes, all of them or those whose time
// has come. It returns how long it is until the next try.
func (d *Dispatcher) writeUnrecorded(all bool) time.Duration {
	d.mu.Lock()
	unrecorded := slices.Clone(d.unrecorded)
	d.mu.Unlock()
	wait := never
	for _, r := range unrecorded {
		if until := time.Until(r.retry); until > 0 && !all {
			wait = min(wait, until)
			continue
		}
		if err := r.write(d.writes); err != nil {
			d.trouble("recording an outcome in the inbox", err)
			r.failed()
			wait = min(wait, time.Until(r.retry))
			continue
		}
		d.mu.Lock()
		d.unrecorded = slices.DeleteFunc(d.unrecorded, func(other *record) bool { return other == r })
		d.mu.Unlock()
		d.recorded(r)
		if r.accepted {
			d.remember.ring()
		}
	}
	return wait
}

// abandon ends an attempt that was not made. The caller locks.
func (d *Dispatcher) abandon(a *attempt) {
	d.learn(a.pass, Outcome{NoAttempt: true}, Policy{})
	d.release(a)
}

// release ends an attempt. The caller locks.
func (d *Dispatcher) release(a *attempt) {
	delete(d.busy, a.number)
	d.leave(a.pass)
	d.lanes.release(a.lane)
	d.checkDrained()
	d.wake.ring()
}
