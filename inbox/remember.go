package inbox

// failuresThatStop is how many events in a row cannot be remembered before the
// others are not tried either for a while.
const failuresThatStop = 3

// rememberNow has the ID of an accepted event remembered, and removes the event. It
// returns false if that did not work: then rememberLoop does it.
func (d *Dispatcher) rememberNow(e Event) bool {
	d.mu.Lock()
	c, forgetful := d.current(), d.forgetful
	d.mu.Unlock()
	if c == nil || forgetful || d.ctx.Err() != nil {
		return false
	}
	e.Settled = d.clock.now()
	if err := d.rememberEvent(e, c); err != nil {
		d.trouble("remembering an accepted event", err)
		d.setForgetful(true)
		return false
	}
	return true
}

func (d *Dispatcher) rememberEvent(e Event, c *Config) error {
	if err := c.Remember(d.ctx, e); err != nil {
		return err
	}
	if err := kept(d.store.Remembered(d.ctx, e.Number)); err != nil {
		return err
	}
	if c.Policy.KeepDelivered > 0 {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.expireAt(e.Settled.Add(c.Policy.KeepDelivered))
	}
	return nil
}

func (d *Dispatcher) setForgetful(forgetful bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forgetful = forgetful
}

// rememberLoop remembers accepted events that were not remembered at once: because
// that failed, or because the process ended.
func (d *Dispatcher) rememberLoop() {
	after := int64(0)
	for d.remember.sleep(never, d.done) {
		for failures := 1; ; failures++ {
			err := d.rememberAll(&after)
			d.setForgetful(err != nil)
			if err == nil {
				break
			}
			d.trouble("remembering accepted events", err)
			// Without the alarm: else each change would make it try again.
			if !newAlarm().sleep(storeBackoff.after(failures, 0), d.done) {
				return
			}
		}
	}
}

// rememberAll remembers all accepted events, beginning with those after a number
// and, if too many fail, leaving off there: so that a few that always fail do not
// keep it from the others.
func (d *Dispatcher) rememberAll(after *int64) (failed error) {
	failures := 0
	for wrapped := *after == 0; ; {
		d.mu.Lock()
		c := d.current()
		d.mu.Unlock()
		if c == nil {
			return failed
		}
		events, err := d.store.List(d.ctx, Filter{State: []State{Accepted}}, *after, batch)
		if err != nil {
			return err
		}
		if len(events) == 0 {
			*after = 0
			if wrapped {
				return failed
			}
			wrapped = true
		}
		for _, e := range events {
			*after = e.Number
			d.mu.Lock()
			busy := d.busy[e.Number] != nil
			d.mu.Unlock()
			if busy {
				continue // who is at it calls again if need be
			}
			err := d.rememberEvent(e, c)
			if err == nil {
				failures = 0
				continue
			}
			failed = err
			if failures++; failures == failuresThatStop || d.ctx.Err() != nil {
				return failed
			}
		}
	}
}
