package inbox

import (
	"context"
	"errors"
	"math"
	"sync"
)

// First is the first attempt to deliver an event. If [First.Try] says so, its caller
// makes the attempt, and must call [First.End] when it has ended. The methods are safe for
// concurrent use after that.
type First struct {
	d      *Dispatcher
	target string
	turn   *Turn // nil without an order key
	began  int64 // in this epoch, if the target was calm
	pass   pass  // zero if the target was calm, unless the dispatcher must know the outcome

	mu      sync.Mutex
	ended   bool
	failure *Outcome      // if it has ended, unless the backend has accepted the event
	keeping chan struct{} // closed when Keep has stored the event, or has failed
	held    *attempt      // the event, if it was stored while the attempt was under way
}

// Enter gives an event that has arrived its place among those with the same target,
// scope and order key. It returns nil for an event without an order key.
func (d *Dispatcher) Enter(target, scope, orderKey string) *Turn {
	if orderKey == "" {
		return nil
	}
	return d.lanes.Enter(LaneOf(target, scope, orderKey))
}

// Try says whether to try to deliver a new event, which has a turn if it has an order
// key. If not, because redelivery is paused, or because the target is known to be
// unreachable, or because it is not its turn, the event goes to [Dispatcher.Add]. Once
// in each interval of the backoff a new event is tried nevertheless, if nothing else
// asks the target. It is called once, for a zero First.
func (f *First) Try(ctx context.Context, d *Dispatcher, target string, turn *Turn) bool {
	f.d, f.target, f.turn = d, target, turn
	if !turn.Try(ctx) {
		return false
	}
	if c := d.calm.Load(); c.has(target) {
		f.began = c.epoch
		return true
	}
	try := d.passFirst(f)
	if !try {
		turn.cancel()
	}
	return try
}

// passFirst asks the gate of the target.
func (d *Dispatcher) passFirst(f *First) (try bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.paused || d.stopped {
		return false
	}
	f.pass, try = d.target(f.target).gate.first(d.suspectOfFirst(f))
	return try
}

// suspectOfFirst is suspectOf for an event that has no number yet. The caller locks.
func (d *Dispatcher) suspectOfFirst(f *First) suspect {
	if f.turn != nil {
		return suspect{lane: f.turn.lane.id}
	}
	d.firsts++
	return suspect{event: -d.firsts}
}

// Keep stores the event, because the attempt has failed or is still under way, and
// returns its number, or an error of [Store.Add]; it fails if the dispatcher is stopped.
// It returns 0 if the backend has accepted the event in the meantime: then there is
// nothing to keep. Of e, it sets Target, Sequence, Due, Attempts, First and Last.
func (f *First) Keep(ctx context.Context, e Event, maxSize int64) (number int64, err error) {
	d := f.d
	f.mu.Lock()
	ended, failure := f.ended, f.failure
	if !ended {
		f.keeping = make(chan struct{})
	}
	f.mu.Unlock()
	switch {
	case !ended:
		number, f.held, err = d.addHeld(ctx, f, e, maxSize)
		close(f.keeping)
		return number, err
	case failure == nil:
		return 0, nil
	case failure.NoAttempt:
		return d.Add(ctx, f.target, f.turn, e, maxSize)
	}
	o := *failure
	c := d.config()
	now := d.clock.now()
	if c.Policy.isDead(o, e.Arrived, now) {
		var held *attempt
		number, held, err = d.addHeld(ctx, f, e, maxSize)
		if err == nil {
			d.record(held, c, o)
		}
		return number, err
	}
	e.Attempts, e.First, e.Last = 1, o.Attempt, o.Attempt
	e.Due = c.Policy.due(o, 1, now, d.random)
	return d.add(ctx, f.target, f.turn, e, maxSize)
}

// End tells the outcome of the attempt. If the event was stored in the meantime, it
// is recorded there, as that of a redelivery.
func (f *First) End(o Outcome) {
	d := f.d
	f.mu.Lock()
	f.ended = true
	if !o.Accepted {
		failure := o
		f.failure = &failure
	}
	keeping := f.keeping
	f.mu.Unlock()
	if o.Accepted && keeping == nil && f.pass.gate == nil && d.calm.Load().has(f.target) {
		return // the dispatcher would learn nothing
	}
	c := d.config()
	d.mu.Lock()
	if f.pass.gate == nil && f.began >= d.configured {
		f.pass = pass{gate: d.target(f.target).gate, suspect: d.suspectOfFirst(f), began: f.began}
	}
	if d.learn(&f.pass, o, c.Policy) {
		d.wake.ring()
	}
	d.mu.Unlock()
	if o.NoAttempt {
		f.turn.cancel()
	}
	if keeping == nil {
		return
	}
	select {
	case <-keeping:
		f.recordHeld(c, o)
	default: // that may last as long as the disk does not respond
		go func() {
			<-keeping
			f.recordHeld(c, o)
		}()
	}
}

// recordHeld records the outcome of an attempt that has ended after Keep was called.
func (f *First) recordHeld(c *Config, o Outcome) {
	d := f.d
	switch {
	case f.held == nil: // it could not be stored
	case o.NoAttempt:
		d.mu.Lock()
		defer d.mu.Unlock()
		d.dueAt(f.held.target, f.held.event.Due)
		d.release(f.held)
	default:
		d.record(f.held, c, o)
	}
}

// Add stores an event that no attempt was made to deliver, which has a turn if it has
// an order key. It is due at once. Of e, it sets Target, Sequence and Due. It fails if
// the dispatcher is stopped. Like [Store.Add], whose errors it returns, it does not
// return before it is known whether the event is stored; its turn must last as long.
func (d *Dispatcher) Add(ctx context.Context, target string, turn *Turn, e Event, maxSize int64) (number int64, err error) {
	e.Due = d.clock.now()
	return d.add(ctx, target, turn, e, maxSize)
}

// AddDelivered keeps an event for replay that the backend has accepted at the first
// attempt, for [Policy.KeepDelivered], and which has a turn if it has an order key. Of e,
// it sets Target, Sequence and what is of the attempt. Errors are those of [Store.Add].
func (d *Dispatcher) AddDelivered(ctx context.Context, target string, turn *Turn, e Event, a Attempt) error {
	e.Target, e.Sequence, e.State, e.Settled, e.Due = target, turn.Sequence(), Delivered, a.Time, a.Time
	e.Attempts, e.First, e.Last = 1, a, a
	_, err := d.store.Add(ctx, e, math.MaxInt64) // only events that are not delivered are bounded
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.current(); c != nil {
		d.expireAt(a.Time.Add(c.Policy.KeepDelivered))
	}
	return err
}

// errStopped is why an event is not stored that a dispatcher would not deliver: if the
// store is open again, it has another one, which would not know of the event.
var errStopped = errors.New("the inbox was removed from the configuration")

func (d *Dispatcher) add(ctx context.Context, target string, turn *Turn, e Event, maxSize int64) (number int64, err error) {
	d.mu.Lock()
	stopped := d.stopped
	d.mu.Unlock()
	if stopped {
		return 0, errStopped
	}
	e.Target, e.Sequence = target, turn.Sequence()
	number, err = d.store.Add(ctx, e, maxSize)
	if err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.added(e)
	return number, nil
}

// addHeld stores an event of which an attempt is under way. It is due at once, for
// the case that the process ends, but not delivered before the attempt has ended.
func (d *Dispatcher) addHeld(ctx context.Context, f *First, e Event, maxSize int64) (int64, *attempt, error) {
	e.Target, e.Sequence, e.Due = f.target, f.turn.Sequence(), d.clock.now()
	id := identityOf(e)
	d.mu.Lock()
	if d.stopped {
		d.mu.Unlock()
		return 0, nil, errStopped
	}
	d.adding[id]++
	d.mu.Unlock()
	number, err := d.store.Add(ctx, e, maxSize)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.adding[id]--; d.adding[id] == 0 {
		delete(d.adding, id)
	}
	// Also if it failed: another event with this identity may have been passed
	// over.
	d.added(e)
	if err != nil {
		return 0, nil, err
	}
	e.Number, e.State, e.Since = number, Waiting, e.Arrived
	e.Request, e.Body = Request{}, nil
	a := &attempt{number: number, event: e, target: d.target(f.target), pass: &f.pass}
	d.busy[number] = a
	return number, a, nil
}

// added takes a new event into account. The caller locks.
func (d *Dispatcher) added(e Event) {
	d.dueAt(d.target(e.Target), e.Due)
	if c := d.current(); c != nil && c.Policy.DeadAfter > 0 {
		d.expireAt(e.Arrived.Add(c.Policy.DeadAfter))
	}
}
