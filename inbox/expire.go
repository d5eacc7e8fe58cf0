package inbox

import "time"

const (
	// expireLimit is how many events expire at a time: others use the store in
	// between.
	expireLimit = 200
	// expirePause is the time before the store is asked again that had nothing to
	// expire although it was time, because it rounds times.
	expirePause = time.Second
)

// expireAt makes sure that expireLoop looks at the store then. The caller locks.
func (d *Dispatcher) expireAt(t time.Time) {
	if d.nextExpiry.add(t) {
		d.expiry.ring()
	}
}

// expireLoop declares events dead whose time is over, and removes dead and
// delivered ones that have been kept long enough, each when it is time.
func (d *Dispatcher) expireLoop() {
	failures := 0
	wait := time.Duration(0)
	for d.expiry.sleep(wait, d.done) {
		var err error
		if wait, err = d.expire(); err == nil {
			failures = 0
			continue
		}
		failures++
		d.trouble("expiring events of the inbox", err)
		if !newAlarm().sleep(storeBackoff.after(failures, 0), d.done) {
			return
		}
		wait = 0
	}
}

// expire makes one step, and returns how long it is until the next one.
func (d *Dispatcher) expire() (time.Duration, error) {
	now := d.clock.now()
	d.mu.Lock()
	c := d.current()
	wait := d.nextExpiry.wait(now)
	if c == nil || wait > 0 {
		d.mu.Unlock()
		if c == nil {
			wait = never // until one is active
		}
		return wait, nil
	}
	// What changes from here on is added.
	d.nextExpiry = soonest{}
	d.mu.Unlock()

	began := time.Now()
	changed, err := d.expireStep(c, now)
	next := now
	if err == nil && changed < expireLimit {
		next, err = d.oldestExpires(c.Policy)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.nextExpiry.add(now)
		return 0, err
	}
	d.nextExpiry.add(next)
	wait = d.nextExpiry.wait(d.clock.now())
	switch {
	case changed == expireLimit:
		wait = time.Since(began) // half of the time is for others
	case changed == 0 && wait == 0:
		wait = expirePause
	}
	return wait, nil
}

func (d *Dispatcher) expireStep(c *Config, now time.Time) (changed int, err error) {
	before := func(keep time.Duration) time.Time {
		if keep == 0 {
			return time.Time{}
		}
		return now.Add(-keep)
	}
	expired, err := d.store.Expire(d.ctx, now,
		before(c.Policy.DeadAfter), before(c.Policy.KeepDead), now.Add(-c.Policy.KeepDelivered), expireLimit)
	if c.Hooks.Removed != nil && expired.Dead+expired.Delivered > 0 {
		c.Hooks.Removed(expired.Dead, expired.Delivered)
	}
	changed, dead := expired.Changed(), expired.Died
	if len(dead) == 0 {
		return changed, err
	}
	d.mu.Lock()
	for _, number := range dead {
		if a := d.busy[number]; a != nil {
			a.died = true
		}
	}
	d.mu.Unlock()
	events, listErr := d.store.List(d.ctx, Filter{Number: dead}, 0, len(dead))
	if listErr != nil {
		// They are dead nevertheless.
		events = nil
		for _, number := range dead {
			events = append(events, Event{Number: number, State: Dead})
		}
		d.Wake() // they may let others pass
	}
	for _, e := range events {
		d.mu.Lock()
		d.nextOfLane(&e)
		d.mu.Unlock()
		d.tellDeath(e)
	}
	return changed, err
}

// oldestExpires returns when the next event expires, or zero.
func (d *Dispatcher) oldestExpires(p Policy) (time.Time, error) {
	waiting, dead, delivered, err := d.store.Oldest(d.ctx)
	if err != nil {
		return time.Time{}, err
	}
	var next soonest
	add := func(since time.Time, keep time.Duration) {
		if !since.IsZero() {
			// A little later, because Expire takes those from before.
			next.add(since.Add(keep + time.Millisecond))
		}
	}
	if p.DeadAfter > 0 {
		add(waiting, p.DeadAfter)
	}
	if p.KeepDead > 0 {
		add(dead, p.KeepDead)
	}
	add(delivered, p.KeepDelivered)
	return next.Time, nil
}
