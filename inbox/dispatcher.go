package inbox

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// Policy is how a [Dispatcher] delivers events again. Concurrency and Rate count for
// each target by itself.
type Policy struct {
	// FirstRetry is the time from the first failed attempt to the next one. It
	// doubles with each further attempt, up to LongestRetry, with jitter.
	FirstRetry, LongestRetry time.Duration
	// DeadAfter is how long after its arrival, or after an operator has asked for
	// a retry, an event is declared dead.
	DeadAfter time.Duration
	// DeadOn reports whether a status of the backend is one that no retry will
	// change.
	DeadOn func(status int) bool
	// Concurrency is how many events are delivered again at once, while the
	// backend accepts them.
	Concurrency int
	// Rate is how many events are delivered again in a second at most, or 0 if
	// there is no limit.
	Rate int
	// KeepDelivered is how long delivered events are kept. 0: not at all.
	KeepDelivered time.Duration
	// KeepDead is how long dead events are kept. 0: until they are discarded.
	KeepDead time.Duration
}

// backoff is that of events and of backends that fail.
func (p Policy) backoff(random func() float64) backoff {
	return backoff{first: p.FirstRetry, longest: p.LongestRetry, random: random}
}

// longestWait is LongestRetry with jitter.
func (p Policy) longestWait() time.Duration { return p.LongestRetry + p.LongestRetry/5 }

// due returns when an event is due again after so many failed attempts, the last of
// which ended with o, at now.
func (p Policy) due(o Outcome, attempts int, now time.Time, random func() float64) time.Time {
	asked := o.RetryAfter
	if o.Down {
		asked = 0 // it counts for the target
	}
	return now.Add(p.backoff(random).after(attempts, asked))
}

// isDead reports whether an event is dead after an attempt that failed with o, at
// now. since is the time from which it waits.
func (p Policy) isDead(o Outcome, since, now time.Time) bool {
	return o.Status != 0 && p.DeadOn != nil && p.DeadOn(o.Status) ||
		p.DeadAfter > 0 && !now.Before(since.Add(p.DeadAfter))
}

// Outcome is how an attempt ended.
type Outcome struct {
	Attempt
	// Accepted means that the backend has accepted the event.
	Accepted bool
	// NoAttempt means that no backend was asked: nothing serves the event, or
	// Caddy is stopping. It does not count as an attempt.
	NoAttempt bool
	// Down means that the backend fails as such, not only this event:
	// it is unreachable, or does not answer in time, or says that it is
	// overloaded or away (429, 502, 503, 504).
	Down bool
	// RetryAfter is how long the backend has asked to wait, or 0. It counts up to
	// LongestRetry: for the whole target if Down, else for this event.
	RetryAfter time.Duration
}

// Deliver makes one attempt to deliver an event, which has its request and its
// body. The dispatcher sets Time and Duration of the outcome. ctx ends when the
// dispatcher is stopped and the grace period has passed.
type Deliver func(ctx context.Context, e Event) Outcome

// Config is what a [Dispatcher] works by: it comes and goes with the
// configuration of the program.
type Config struct {
	Policy  Policy
	Deliver Deliver
	// Remember records the ID of an event that the backend has accepted, so that
	// it is a duplicate from then on. The event has no request and no body. It is
	// called until it returns nil, and may be called again for the same event
	// after that, also in another process.
	Remember func(context.Context, Event) error
	Hooks    Hooks
}

// Hooks tell what happens. They are optional, are called from several goroutines,
// and must not block. Events have neither requests nor bodies.
type Hooks struct {
	// Redelivered is called after each attempt that the dispatcher has made.
	Redelivered func(Event, Outcome)
	// Died is called when an event has been declared dead, with its last attempt.
	Died func(Event)
	// Removed is called when events were removed because of their age, with how
	// many there were of the dead and of the delivered ones.
	Removed func(dead, delivered int)
	// Discarded is called when an operator has discarded events, with how many
	// there were and how many of them had an order key.
	Discarded func(events, ordered int)
	// Trouble is called when something fails that is tried again, at most once a
	// minute for each thing that the dispatcher does.
	Trouble func(doing string, err error)
}

// troubleInterval is the time between two calls of Hooks.Trouble for the same
// thing.
const troubleInterval = time.Minute

// advanceLimit is how many events are made due earlier at a time.
const advanceLimit = 1000

// maxIdleTargets is how many targets are known at most, or twice as many as those that
// something waits for, if that is more: who sends events can choose their paths.
const maxIdleTargets = 1000

// lastWrites is how long [Dispatcher.Stop] waits for the store after the grace
// period.
const lastWrites = 5 * time.Second

// Dispatcher delivers the events of a [Store] again. There is one for each store
// that is open in the process. It outlives configurations: it knows which events
// are under way, how the backends are, and which outcomes are still to be
// recorded.
//
// All changes of the store are made through its methods, so that it knows of them.
// They are safe for concurrent use.
type Dispatcher struct {
	store  Store
	clock  clock
	random func() float64

	wake, remember, expiry alarm
	ctx                    context.Context // of attempts and reads; ends with the grace period
	cancel                 context.CancelFunc
	writes                 context.Context // ends lastWrites later
	cancelWrites           context.CancelFunc
	done                   chan struct{} // closed with the grace period
	running                sync.WaitGroup

	// advance means that events may be due later than they should: the clock may
	// have been put back, or the longest backoff may be shorter than before.
	advance atomic.Bool

	calm atomic.Pointer[calm] // changed with mu held

	waking sync.Mutex // held by Wake, so that the last one knows best

	// mu is not held when the store is called, which may call back.
	mu         sync.Mutex
	configs    []*Config // the active ones, the newest last
	targets    map[string]*target
	sweepAt    int     // number of targets at which idle ones are forgotten
	filling    *target // its queue is being filled
	rediscover bool    // targets are to be asked for
	paused     bool
	stopped    bool
	// epoch is one more after each closing of a gate and each change of the
	// configuration. Attempts that began before the epoch configured say nothing about
	// the present backends.
	epoch, configured int64
	drained           chan struct{} // closed when stopped and nothing is busy
	// busy has the events that must not be delivered: an attempt is under way,
	// or its outcome is still to be recorded.
	busy map[int64]*attempt
	// adding has the events that are being stored while an attempt is under way.
	adding map[identity]int
	// lanes have the events with order keys that are under way.
	lanes *Lanes
	// blocked has the targets of the events that wait for a lane, by number.
	blocked    map[int64]*target
	unrecorded []*record
	// forgetful means that Remember has failed last.
	forgetful  bool
	nextExpiry soonest // the earliest time at which an event is to expire
	firsts     int64   // counts first attempts
	troubles   map[string]time.Time
}

// identity is what no two events in a store have in common.
type identity struct {
	scope  string
	key    dedupe.Key
	digest dedupe.Digest
}

func identityOf(e Event) identity { return identity{e.Scope, e.Key, e.Digest} }

// NewDispatcher returns the dispatcher of a store. It delivers nothing before a
// configuration is active. [Dispatcher.Stop] ends it, before the store is closed.
func NewDispatcher(store Store) *Dispatcher {
	return newDispatcher(store, time.Now, rand.Float64)
}

func newDispatcher(store Store, wall func() time.Time, random func() float64) *Dispatcher {
	d := &Dispatcher{
		store:    store,
		random:   random,
		wake:     newAlarm(),
		remember: newAlarm(),
		expiry:   newAlarm(),
		done:     make(chan struct{}),
		drained:  make(chan struct{}),
		targets:  map[string]*target{},
		sweepAt:  maxIdleTargets,
		epoch:    1,
		busy:     map[int64]*attempt{},
		adding:   map[identity]int{},
		blocked:  map[int64]*target{},
		troubles: map[string]time.Time{},
	}
	d.lanes = &Lanes{mu: &d.mu, lanes: map[Lane]*lane{}, sequence: store.Arrival, stored: store.Waits, unblock: d.unblock}
	d.clock = clock{wall: wall, back: func() {
		d.advance.Store(true)
		d.ringAll()
	}}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.writes, d.cancelWrites = context.WithCancel(context.Background())
	d.Wake()
	d.running.Go(d.dispatchLoop)
	d.running.Go(d.rememberLoop)
	d.running.Go(d.expireLoop)
	return d
}

// Activate makes c the configuration that the dispatcher works by, until
// deactivate is called or another one becomes active. When the newest one is
// deactivated, the one before it counts again: so it is when a reload fails. While
// none is active, nothing is delivered, and nothing dies. Attempts that are under
// way end with the configuration that they began with. Backends that failed are
// asked at once: the configuration may have moved them.
func (d *Dispatcher) Activate(c Config) (deactivate func()) {
	d.setConfigs(func(active []*Config) []*Config { return append(active, &c) })
	return func() {
		d.setConfigs(func(active []*Config) []*Config {
			return slices.DeleteFunc(active, func(other *Config) bool { return other == &c })
		})
	}
}

func (d *Dispatcher) setConfigs(change func([]*Config) []*Config) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.current()
	d.configs = change(d.configs)
	if c := d.current(); c != before && c != nil {
		d.epoch++
		d.configured = d.epoch
		for _, t := range d.targets {
			t.reconfigure(c.Policy, d.clock.now())
		}
		d.nextExpiry.add(d.clock.now())
		d.advance.Store(true)
	}
	d.checkCalm()
	d.ringAll()
}

// current returns the configuration to work by, or nil.
func (d *Dispatcher) current() *Config {
	if n := len(d.configs); n > 0 {
		return d.configs[n-1]
	}
	return nil
}

// config is current for callers that do not lock. If none is active, it returns
// one that waits for nothing and calls nothing.
func (d *Dispatcher) config() *Config {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.current(); c != nil {
		return c
	}
	return &Config{}
}

// target returns what is known about a target. The caller locks. Idle targets may be
// forgotten when it is called for another one.
func (d *Dispatcher) target(name string) *target {
	t := d.targets[name]
	if t == nil {
		if len(d.targets) >= d.sweepAt {
			d.forgetIdle()
		}
		t = &target{name: name, gate: newGate(&d.epoch)}
		if c := d.current(); c != nil {
			t.limiter = newLimiter(c.Policy)
		}
		d.targets[name] = t
	}
	return t
}

// forgetIdle forgets the targets that nothing waits for, and with them how their
// backends were. The caller locks.
func (d *Dispatcher) forgetIdle() {
	used := map[*target]bool{d.filling: true}
	for _, a := range d.busy {
		used[a.target] = true
	}
	maps.DeleteFunc(d.targets, func(_ string, t *target) bool { return t.idle() && !used[t] })
	d.sweepAt = max(maxIdleTargets, 2*len(d.targets))
	d.checkCalm()
}

func (d *Dispatcher) ringAll() {
	d.wake.ring()
	d.remember.ring()
	d.expiry.ring()
}

// Wake looks at everything again. The methods of d do it by themselves where it is
// needed; it is for changes from outside, such as those of the system's clock.
func (d *Dispatcher) Wake() {
	d.waking.Lock()
	defer d.waking.Unlock()
	paused := !d.store.Stats().Paused.IsZero()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.paused = paused
	d.checkCalm()
	d.rediscover = true
	d.nextExpiry.add(d.clock.now())
	d.ringAll()
}

// Stop ends the dispatcher. It starts no attempt any more, and waits for those
// under way until ctx ends: then their contexts end too, and what is cut off does
// not count as an attempt. Events that would wait are not stored any more. When it
// returns, nothing uses the store, except that the outcomes of first attempts are
// recorded.
func (d *Dispatcher) Stop(ctx context.Context) {
	d.mu.Lock()
	d.stopped = true
	d.checkCalm()
	d.checkDrained()
	d.mu.Unlock()
	select {
	case <-d.drained:
	case <-ctx.Done():
	}
	d.cancel()
	defer time.AfterFunc(lastWrites, d.cancelWrites).Stop()
	defer d.cancelWrites()
	close(d.done)
	d.running.Wait()
	d.writeUnrecorded(true)
}

// checkDrained tells Stop when nothing is under way any more.
func (d *Dispatcher) checkDrained() {
	if d.stopped && len(d.busy) == 0 {
		select {
		case <-d.drained:
		default:
			close(d.drained)
		}
	}
}

// dispatchLoop starts attempts when they are due. It looks at everything whenever
// it wakes up, and sleeps until there is something to do.
func (d *Dispatcher) dispatchLoop() {
	failures := 0
	wait := time.Duration(0)
	for d.wake.sleep(wait, d.done) {
		var err error
		if wait, err = d.dispatchAll(); err == nil {
			failures = 0
			continue
		}
		failures++
		d.trouble("picking events from the inbox", err)
		// Without the alarm: else each change would make it ask the store again.
		if !newAlarm().sleep(storeBackoff.after(failures, 0), d.done) {
			return
		}
		wait = 0
	}
}

// dispatchAll starts all attempts that are to be started now, and returns how long
// it is until the next one.
func (d *Dispatcher) dispatchAll() (time.Duration, error) {
	wait := d.writeUnrecorded(false)
	d.mu.Lock()
	c, rediscover := d.current(), d.rediscover
	d.rediscover = false
	idle := c == nil
	unrecorded := len(d.unrecorded)
	d.mu.Unlock()
	if unrecorded >= maxUnrecorded || unrecorded > 0 && d.store.Stats().Err != nil {
		idle = true
	}
	if idle {
		if rediscover {
			d.discoverLater()
		}
		return wait, nil
	}
	if d.advance.Swap(false) {
		rediscover = true
		if err := d.advanceLate(c.Policy); err != nil {
			d.advance.Store(true)
			d.discoverLater()
			return 0, err
		}
	}
	if rediscover {
		if err := d.discover(); err != nil {
			d.discoverLater()
			return 0, err
		}
	}
	d.mu.Lock()
	targets := slices.Collect(maps.Values(d.targets))
	d.mu.Unlock()
	var failed error
	for _, t := range targets {
		until, err := d.dispatch(t, c)
		wait = min(wait, until)
		failed = errors.Join(failed, err)
	}
	return wait, failed
}

// dueAt makes sure that dispatchLoop looks at a target then. The caller locks.
func (d *Dispatcher) dueAt(t *target, due time.Time) {
	if due.IsZero() {
		return
	}
	t = d.target(t.name) // t may have been forgotten since
	if t.next.add(due) {
		d.wake.ring()
	}
	// The clock may have been put back since due was computed.
	if c := d.current(); c != nil && due.After(d.clock.now().Add(c.Policy.longestWait())) {
		d.advance.Store(true)
		d.wake.ring()
	}
}

// nextOfLane makes sure that dispatchLoop looks at the next event of a lane: e does not
// wait any more. The caller locks.
func (d *Dispatcher) nextOfLane(e *Event) {
	if e.OrderKey != "" {
		d.dueAt(d.target(e.Target), d.clock.now())
	}
}

// unblock makes sure that dispatchLoop looks at an event again that waited for its lane.
// The caller locks.
func (d *Dispatcher) unblock(number int64) {
	if t := d.blocked[number]; t != nil {
		delete(d.blocked, number)
		d.dueAt(t, d.clock.now())
		d.wake.ring()
	}
}

// advanceLate makes sure that no event waits longer than the longest backoff.
func (d *Dispatcher) advanceLate(p Policy) error {
	n, err := d.store.Advance(d.ctx, d.clock.now().Add(p.longestWait()), advanceLimit)
	if n == advanceLimit {
		d.advance.Store(true)
		d.wake.ring()
	}
	return err
}

func (d *Dispatcher) discoverLater() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rediscover = true
}

// trouble tells of something that failed and is tried again.
func (d *Dispatcher) trouble(doing string, err error) {
	d.mu.Lock()
	now := time.Now()
	last, known := d.troubles[doing]
	c := d.current()
	tell := c != nil && c.Hooks.Trouble != nil && d.ctx.Err() == nil && (!known || now.Sub(last) >= troubleInterval)
	if tell {
		d.troubles[doing] = now
	}
	d.mu.Unlock()
	if tell {
		c.Hooks.Trouble(doing, err)
	}
}
