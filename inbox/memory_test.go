package inbox

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// memory is a Store for tests.
type memory struct {
	commit time.Duration // how long a commit takes
	lag    time.Duration // how long after a commit Add returns

	arrivals atomic.Int64

	mu     sync.Mutex
	last   int64
	events map[int64]*Event
	byID   map[identity]int64
	due    map[string][]*Event // those that wait and are not blocked, sorted by Due and Number
	lanes  map[Lane][]*Event   // those that wait and have an order key, sorted by Sequence
	paused time.Time
	fail   error // of all operations that change something
	broken error // of all operations
	calls  map[string]int
	asked  int // events that Due has looked at
	// unreadable is the number of an event that cannot be loaded.
	unreadable int64
	// listFails makes List fail.
	listFails error
	// retryFails makes Retry fail after the first event.
	retryFails error
}

func newMemory() *memory {
	return &memory{events: map[int64]*Event{}, byID: map[identity]int64{}, due: map[string][]*Event{}, lanes: map[Lane][]*Event{}, calls: map[string]int{}}
}

func (m *memory) begin(call string, write bool) error {
	m.mu.Lock()
	commit := m.commit
	if write && commit > 0 {
		m.mu.Unlock()
		time.Sleep(commit)
		m.mu.Lock()
	}
	m.calls[call]++
	if m.broken != nil {
		return m.broken
	}
	if write {
		return m.fail
	}
	return nil
}

// set makes a change that decides whether an event is due.
func (m *memory) set(e *Event, change func()) {
	m.setDue(e, false)
	if lane := e.Lane(); lane == 0 {
		change()
	} else {
		m.setInLane(lane, e, change)
	}
	m.setDue(e, e.State == Waiting && !e.Blocked)
}

// setDue adds an event to those that can be due, or removes it.
func (m *memory) setDue(e *Event, wanted bool) {
	due := m.due[e.Target]
	i, found := slices.BinarySearchFunc(due, e, func(a, b *Event) int { return cmp.Or(a.Due.Compare(b.Due), cmp.Compare(a.Number, b.Number)) })
	switch {
	case found && !wanted:
		copy(due[1:], due[:i]) // mostly few: the oldest ones go first
		due[0] = nil
		m.due[e.Target] = due[1:]
	case wanted && !found:
		m.due[e.Target] = slices.Insert(due, i, e)
	}
}

// setInLane makes a change of an event in a lane, and unblocks its first event.
func (m *memory) setInLane(lane Lane, e *Event, change func()) {
	bySequence := func(a, b *Event) int { return cmp.Compare(a.Sequence, b.Sequence) }
	if i, found := slices.BinarySearchFunc(m.lanes[lane], e, bySequence); found {
		m.lanes[lane] = slices.Delete(m.lanes[lane], i, i+1)
	}
	change()
	if e.State == Waiting {
		i, _ := slices.BinarySearchFunc(m.lanes[lane], e, bySequence)
		m.lanes[lane] = slices.Insert(m.lanes[lane], i, e)
	}
	e.Blocked = e.State == Waiting
	for i, first := range m.lanes[lane][:min(2, len(m.lanes[lane]))] {
		first.Blocked = i > 0
		m.setDue(first, !first.Blocked)
	}
}

func (m *memory) Arrival() int64 { return m.arrivals.Add(1) }

func (m *memory) Waits(_ context.Context, lane Lane) (bool, error) {
	err := m.begin("Waits", false)
	defer m.mu.Unlock()
	return len(m.lanes[lane]) > 0, err
}

func (m *memory) remove(e *Event) {
	m.set(e, func() { e.State = "" })
	delete(m.events, e.Number)
	delete(m.byID, identityOf(*e))
}

func (m *memory) Add(_ context.Context, e Event, _ int64) (int64, error) {
	if m.lag > 0 {
		defer time.Sleep(m.lag) // after m.mu is unlocked
	}
	err := m.begin("Add", true)
	defer m.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if _, kept := m.byID[identityOf(e)]; kept {
		return 0, ErrKept
	}
	m.last++
	e.Number = m.last
	m.events[e.Number] = &e
	m.byID[identityOf(e)] = e.Number
	if e.State != Delivered {
		e.Since = e.Arrived
		m.set(&e, func() { e.State = Waiting })
	}
	return e.Number, nil
}

func (m *memory) Find(_ context.Context, scope string, key dedupe.Key) (Event, error) {
	err := m.begin("Find", false)
	defer m.mu.Unlock()
	found := Event{}
	for _, e := range m.events {
		if e.Scope == scope && e.Key == key && e.Number > found.Number {
			found = *e
		}
	}
	if err == nil && found.Number == 0 {
		err = ErrNotFound
	}
	return found, err
}

func (m *memory) Count(_ context.Context, f Filter) (int, error) {
	err := m.begin("Count", false)
	defer m.mu.Unlock()
	return len(m.matching(f)), err
}

func (m *memory) Groups(context.Context, int) ([]Group, error) {
	err := m.begin("Groups", false)
	defer m.mu.Unlock()
	return nil, err
}

func (m *memory) Load(_ context.Context, number int64) (Event, error) {
	err := m.begin("Load", false)
	defer m.mu.Unlock()
	if err != nil {
		return Event{}, err
	}
	if number == m.unreadable {
		return Event{}, errors.New("malformed page")
	}
	if e := m.events[number]; e != nil {
		return *e, nil
	}
	return Event{}, ErrNotFound
}

func (m *memory) Targets(context.Context) ([]string, error) {
	err := m.begin("Targets", false)
	defer m.mu.Unlock()
	var targets []string
	for name, due := range m.due {
		if len(due) > 0 {
			targets = append(targets, name)
		}
	}
	return targets, err
}

// Due calls skip with its lock held: a dispatcher must not hold its own when it
// calls a store.
func (m *memory) Due(_ context.Context, target string, now time.Time, limit int, skip func(int64) bool) ([]Event, error) {
	err := m.begin("Due", false)
	defer m.mu.Unlock()
	var found []Event
	for _, e := range m.due[target] {
		if len(found) == limit || e.Due.After(now) {
			break
		}
		m.asked++
		if !skip(e.Number) {
			found = append(found, *e)
		}
	}
	return found, err
}

func (m *memory) NextDue(_ context.Context, target string, skip func(int64) bool) (time.Time, error) {
	err := m.begin("NextDue", false)
	defer m.mu.Unlock()
	for _, e := range m.due[target] {
		if !skip(e.Number) {
			return e.Due, err
		}
	}
	return time.Time{}, err
}

func (m *memory) Advance(_ context.Context, latest time.Time, limit int) (int, error) {
	err := m.begin("Advance", true)
	defer m.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n := 0
	for _, e := range m.events {
		if e.State == Waiting && e.Due.After(latest) && n < limit {
			m.set(e, func() { e.Due = latest })
			n++
		}
	}
	return n, nil
}

// attempted records an attempt, unless that was done before.
func (e *Event) attempted(a Attempt) {
	if e.Attempts > 0 && e.Last.Time.Equal(a.Time) {
		return
	}
	if e.Attempts++; e.Attempts == 1 {
		e.First = a
	}
	e.Last = a
}

func (e *Event) settle(s State, at time.Time) { e.State, e.Since, e.Settled = s, time.Time{}, at }

func (m *memory) Attempted(_ context.Context, number int64, a Attempt, due, dead time.Time) error {
	err := m.begin("Attempted", true)
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	e := m.events[number]
	switch {
	case e == nil:
		return ErrNotFound
	case e.State != Waiting:
		return nil
	}
	m.set(e, func() {
		e.attempted(a)
		e.Due = due
		if !dead.IsZero() {
			e.settle(Dead, dead)
		}
	})
	return nil
}

func (m *memory) Accepted(_ context.Context, number int64, a Attempt, keepBody bool) error {
	err := m.begin("Accepted", true)
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	e := m.events[number]
	switch {
	case e == nil:
		return ErrNotFound
	case e.State != Waiting && e.State != Dead:
		return nil
	}
	m.set(e, func() {
		e.attempted(a)
		e.settle(Accepted, a.Time)
	})
	if !keepBody {
		e.Body = nil
	}
	return nil
}

func (m *memory) Remembered(_ context.Context, number int64) error {
	err := m.begin("Remembered", true)
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	e := m.events[number]
	switch {
	case e == nil:
		return ErrNotFound
	case e.State != Accepted:
	case e.Body != nil:
		e.State = Delivered
	default:
		m.remove(e)
	}
	return nil
}

func (m *memory) Expire(_ context.Context, now, waiting, died, delivered time.Time, limit int) (expired Expired, err error) {
	err = m.begin("Expire", true)
	defer m.mu.Unlock()
	if err != nil {
		return expired, err
	}
	for _, e := range m.events {
		switch {
		case expired.Changed() == limit:
			return expired, nil
		case e.State == Waiting && e.Since.Before(waiting):
			m.set(e, func() { e.settle(Dead, now) })
			expired.Died = append(expired.Died, e.Number)
		case e.State == Dead && e.Settled.Before(died):
			m.remove(e)
			expired.Dead++
		case e.State == Delivered && e.Settled.Before(delivered):
			m.remove(e)
			expired.Delivered++
		}
	}
	return expired, nil
}

func (m *memory) Oldest(context.Context) (waiting, dead, delivered time.Time, err error) {
	err = m.begin("Oldest", false)
	defer m.mu.Unlock()
	var w, d, k soonest
	for _, e := range m.events {
		switch e.State {
		case Waiting:
			w.add(e.Since)
		case Dead:
			d.add(e.Settled)
		case Delivered:
			k.add(e.Settled)
		}
	}
	return w.Time, d.Time, k.Time, err
}

func (m *memory) matching(f Filter) []*Event {
	var found []*Event
	for _, e := range m.events {
		if f.Matches(e) {
			found = append(found, e)
		}
	}
	slices.SortFunc(found, func(a, b *Event) int { return cmp.Compare(a.Number, b.Number) })
	return found
}

func (m *memory) List(_ context.Context, f Filter, after int64, limit int) ([]Event, error) {
	err := m.begin("List", false)
	defer m.mu.Unlock()
	err = errors.Join(err, m.listFails)
	var found []Event
	for _, e := range m.matching(f) {
		if e.Number > after && len(found) < limit {
			found = append(found, *e)
		}
	}
	return found, err
}

func (m *memory) Retry(_ context.Context, f Filter, now time.Time) (int, error) {
	err := m.begin("Retry", true)
	defer m.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n := 0
	for _, e := range m.matching(f) {
		if e.State != Accepted {
			m.set(e, func() {
				e.State, e.Due, e.Since, e.Settled = Waiting, now, now, time.Time{}
				e.Attempts, e.First, e.Last = 0, Attempt{}, Attempt{}
			})
			if n++; m.retryFails != nil {
				return n, m.retryFails
			}
		}
	}
	return n, nil
}

func (m *memory) Discard(_ context.Context, f Filter, discarded func(Event)) (n int, _ error) {
	err := m.begin("Discard", true)
	if err != nil {
		m.mu.Unlock()
		return 0, err
	}
	var removed []Event
	for _, e := range m.matching(f) {
		if e.State != Accepted {
			m.remove(e)
			removed = append(removed, *e)
		}
	}
	m.mu.Unlock()
	for _, e := range removed {
		discarded(e)
	}
	return len(removed), nil
}

func (m *memory) SetPaused(_ context.Context, paused bool) error {
	err := m.begin("SetPaused", true)
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	m.paused = time.Time{}
	if paused {
		m.paused = time.Now()
	}
	return nil
}

func (m *memory) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Stats{Paused: m.paused, Err: errors.Join(m.fail, m.broken)}
}

// commitsIn sets how long a commit takes.
func (m *memory) commitsIn(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.commit = d
}

// stop makes the operations fail that change something, or work again.
func (m *memory) stop(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

func (m *memory) breakAll(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken = err
}

// states counts events by state.
func (m *memory) states() map[State]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	states := map[State]int{}
	for _, e := range m.events {
		states[e.State]++
	}
	return states
}

func (m *memory) event(number int64) Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.events[number]; e != nil {
		return *e
	}
	return Event{}
}

// count returns how often the store was called, for all methods if there is no
// name.
func (m *memory) count(names ...string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for name, calls := range m.calls {
		if len(names) == 0 || slices.Contains(names, name) {
			n += calls
		}
	}
	return n
}
