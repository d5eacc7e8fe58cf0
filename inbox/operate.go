package inbox

import (
	"context"
	"time"
)

// SetPaused pauses or resumes redelivery, as [Store.SetPaused] does. While it is
// paused, nothing is delivered, not even new events; what is under way goes on.
func (d *Dispatcher) SetPaused(ctx context.Context, paused bool) error {
	err := d.store.SetPaused(ctx, paused)
	d.Wake()
	return err
}

// Retry makes all events that match f wait, as [Store.Retry] does. They are delivered
// at once and before others, also if the target is known to be unreachable, until it
// fails again. If they are many, only the first maxUrgent of them go before others.
func (d *Dispatcher) Retry(ctx context.Context, f Filter) (int, error) {
	urgent, err := d.store.List(ctx, f, 0, maxUrgent)
	if err != nil {
		return 0, err
	}
	n, err := d.store.Retry(ctx, f, d.clock.now())
	if n == 0 {
		return 0, err
	}
	d.mu.Lock()
	for _, e := range urgent {
		if a := d.busy[e.Number]; a != nil {
			a.retried = true
		} else if t := d.target(e.Target); len(t.urgent) < maxUrgent {
			t.urgent = append(t.urgent, e)
		}
	}
	d.mu.Unlock()
	d.Wake()
	return n, err
}

// Discard removes all events that match f, as [Store.Discard] does, and returns how
// many there were. An attempt that is under way goes on. The next events with the same
// order keys pass.
func (d *Dispatcher) Discard(ctx context.Context, f Filter) (int, error) {
	ordered := 0
	n, err := d.store.Discard(ctx, f, func(e Event) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.nextOfLane(&e)
		if e.OrderKey != "" {
			ordered++
		}
	})
	if c := d.config(); n > 0 && c.Hooks.Discarded != nil {
		c.Hooks.Discarded(n, ordered)
	}
	return n, err
}

// NextAttempt returns when an event that waits is delivered at the earliest: when it is
// due or, if its target fails, when that is asked again.
func (d *Dispatcher) NextAttempt(e Event) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.targets[e.Target]
	if t == nil || !t.gate.closed {
		return e.Due
	}
	if asked := d.clock.now().Add(time.Until(t.gate.until)); asked.After(e.Due) {
		return asked
	}
	return e.Due
}
