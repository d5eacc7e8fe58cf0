package inboxtest

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
)

// Memory is the model of an [inbox.Store]: it does what the interface says, in
// the simplest way, and keeps events in memory only. It is for tests.
type Memory struct {
	arrivals atomic.Int64

	mu     sync.Mutex
	last   int64
	events map[int64]*inbox.Event // with requests, and bodies unless they are gone
	sizes  map[int64]int64        // of the events when they were added
	paused time.Time
}

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{events: make(map[int64]*inbox.Event), sizes: make(map[int64]int64)}
}

// Add implements [inbox.Store].
func (m *Memory) Add(_ context.Context, e inbox.Event, maxSize int64) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, kept := range m.events {
		if kept.Scope == e.Scope && kept.Key == e.Key && kept.Digest == e.Digest {
			return 0, inbox.ErrKept
		}
	}
	if e.State != inbox.Delivered && m.bytes()+e.Size() > maxSize {
		return 0, inbox.ErrFull
	}
	m.last++
	e.Blocked = false
	if e.Number = m.last; e.State == inbox.Delivered {
		e.Since = time.Time{}
	} else {
		e.State, e.Since, e.Settled = inbox.Waiting, e.Arrived, time.Time{}
	}
	if e.Body == nil {
		e.Body = []byte{}
	}
	m.events[e.Number], m.sizes[e.Number] = &e, e.Size()
	return e.Number, nil
}

func (m *Memory) bytes() (n int64) {
	for number, e := range m.events {
		if e.State == inbox.Waiting || e.State == inbox.Dead {
			n += m.sizes[number]
		}
	}
	return n
}

// whole returns an event as it is now.
func (m *Memory) whole(e *inbox.Event) inbox.Event {
	w := *e
	w.Blocked = m.blocked(e)
	return w
}

// bare returns an event without its request and its body.
func (m *Memory) bare(e *inbox.Event) inbox.Event {
	b := m.whole(e)
	b.Request, b.Body = inbox.Request{}, nil
	return b
}

// blocked reports whether an event waits behind another one.
func (m *Memory) blocked(e *inbox.Event) bool {
	lane := e.Lane()
	if lane == 0 || e.State != inbox.Waiting {
		return false
	}
	for _, other := range m.events {
		if other.State == inbox.Waiting && other.Sequence < e.Sequence && other.Lane() == lane {
			return true
		}
	}
	return false
}

// Find implements [inbox.Store].
func (m *Memory) Find(_ context.Context, scope string, key dedupe.Key) (inbox.Event, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found *inbox.Event
	for _, e := range m.events {
		if e.Scope == scope && e.Key == key && (found == nil || e.Number > found.Number) {
			found = e
		}
	}
	if found == nil {
		return inbox.Event{}, inbox.ErrNotFound
	}
	return m.bare(found), nil
}

// Load implements [inbox.Store].
func (m *Memory) Load(_ context.Context, number int64) (inbox.Event, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.events[number]
	if e == nil {
		return inbox.Event{}, inbox.ErrNotFound
	}
	return m.whole(e), nil
}

// Arrival implements [inbox.Store].
func (m *Memory) Arrival() int64 { return m.arrivals.Add(1) }

// Waits implements [inbox.Store].
func (m *Memory) Waits(_ context.Context, lane inbox.Lane) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.events {
		if e.State == inbox.Waiting && e.Lane() == lane {
			return true, nil
		}
	}
	return false, nil
}

// waiting returns the events of a target that wait and are not blocked, by when they
// are due and then by number. It calls skip without the lock, and then looks again.
func (m *Memory) waiting(target string, skip func(int64) bool) (events []inbox.Event) {
	m.mu.Lock()
	numbers := slices.Collect(maps.Keys(m.events))
	m.mu.Unlock()
	numbers = slices.DeleteFunc(numbers, skip)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, number := range numbers {
		if e := m.events[number]; e != nil && e.State == inbox.Waiting && e.Target == target && !m.blocked(e) {
			events = append(events, m.bare(e))
		}
	}
	slices.SortFunc(events, func(a, b inbox.Event) int { return cmp.Or(a.Due.Compare(b.Due), cmp.Compare(a.Number, b.Number)) })
	return events
}

// Targets implements [inbox.Store].
func (m *Memory) Targets(context.Context) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	targets := make(map[string]struct{})
	for _, e := range m.events {
		if e.State == inbox.Waiting {
			targets[e.Target] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(targets)), nil
}

// Due implements [inbox.Store].
func (m *Memory) Due(_ context.Context, target string, now time.Time, limit int, skip func(int64) bool) (due []inbox.Event, _ error) {
	for _, e := range m.waiting(target, skip) {
		if len(due) < limit && !e.Due.After(now) {
			due = append(due, e)
		}
	}
	return due, nil
}

// NextDue implements [inbox.Store].
func (m *Memory) NextDue(_ context.Context, target string, skip func(int64) bool) (time.Time, error) {
	for _, e := range m.waiting(target, skip) {
		return e.Due, nil
	}
	return time.Time{}, nil
}

// Advance implements [inbox.Store].
func (m *Memory) Advance(_ context.Context, latest time.Time, limit int) (changed int, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.events {
		if e.State == inbox.Waiting && e.Due.After(latest) && changed < limit {
			e.Due = latest
			changed++
		}
	}
	return changed, nil
}

// Oldest implements [inbox.Store].
func (m *Memory) Oldest(context.Context) (waiting, dead, delivered time.Time, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	older := func(oldest *time.Time, t time.Time) {
		if oldest.IsZero() || t.Before(*oldest) {
			*oldest = t
		}
	}
	for _, e := range m.events {
		switch e.State {
		case inbox.Waiting:
			older(&waiting, e.Since)
		case inbox.Dead:
			older(&dead, e.Settled)
		case inbox.Delivered:
			older(&delivered, e.Settled)
		}
	}
	return waiting, dead, delivered, nil
}

func record(e *inbox.Event, a inbox.Attempt) {
	if e.Attempts > 0 && e.Last.Time.Equal(a.Time) {
		return
	}
	if e.Attempts == 0 {
		e.First = a
	}
	e.Last = a
	e.Attempts++
}

// Attempted implements [inbox.Store].
func (m *Memory) Attempted(_ context.Context, number int64, a inbox.Attempt, due, dead time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.events[number]
	switch {
	case e == nil:
		return inbox.ErrNotFound
	case e.State != inbox.Waiting:
		return nil
	}
	record(e, a)
	e.Due = due
	if !dead.IsZero() {
		die(e, dead)
	}
	return nil
}

func die(e *inbox.Event, at time.Time) { e.State, e.Settled, e.Since = inbox.Dead, at, time.Time{} }

// Accepted implements [inbox.Store].
func (m *Memory) Accepted(_ context.Context, number int64, a inbox.Attempt, keepBody bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.events[number]
	switch {
	case e == nil:
		return inbox.ErrNotFound
	case e.State != inbox.Waiting && e.State != inbox.Dead:
		return nil
	}
	record(e, a)
	e.State, e.Settled, e.Since = inbox.Accepted, a.Time, time.Time{}
	if !keepBody {
		e.Request, e.Body = inbox.Request{}, nil
	}
	return nil
}

// Remembered implements [inbox.Store].
func (m *Memory) Remembered(_ context.Context, number int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.events[number]
	switch {
	case e == nil:
		return inbox.ErrNotFound
	case e.State != inbox.Accepted:
	case e.Body == nil:
		delete(m.events, number)
	default:
		e.State = inbox.Delivered
	}
	return nil
}

// Expire implements [inbox.Store]. It takes the oldest first.
func (m *Memory) Expire(_ context.Context, now, waitingBefore, diedBefore, deliveredBefore time.Time, limit int) (result inbox.Expired, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	since := func(e *inbox.Event) time.Time {
		if e.State == inbox.Waiting {
			return e.Since
		}
		return e.Settled
	}
	expired := func(state inbox.State, before time.Time) (events []*inbox.Event) {
		for _, e := range m.events {
			if e.State == state && !before.IsZero() && since(e).Before(before) {
				events = append(events, e)
			}
		}
		slices.SortFunc(events, func(a, b *inbox.Event) int {
			return cmp.Or(since(a).Compare(since(b)), cmp.Compare(a.Number, b.Number))
		})
		return events[:min(len(events), limit-result.Changed())]
	}
	for _, e := range expired(inbox.Waiting, waitingBefore) {
		die(e, now)
		result.Died = append(result.Died, e.Number)
	}
	for _, e := range expired(inbox.Dead, diedBefore) {
		delete(m.events, e.Number)
		result.Dead++
	}
	for _, e := range expired(inbox.Delivered, deliveredBefore) {
		delete(m.events, e.Number)
		result.Delivered++
	}
	return result, nil
}

// matching returns the events that match f, by number.
func (m *Memory) matching(f inbox.Filter) (events []*inbox.Event) {
	for _, number := range slices.Sorted(maps.Keys(m.events)) {
		if e := m.events[number]; f.Matches(e) {
			events = append(events, e)
		}
	}
	return events
}

// List implements [inbox.Store].
func (m *Memory) List(_ context.Context, f inbox.Filter, after int64, limit int) (events []inbox.Event, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.matching(f) {
		if e.Number > after && len(events) < limit {
			events = append(events, m.bare(e))
		}
	}
	return events, nil
}

// Count implements [inbox.Store].
func (m *Memory) Count(_ context.Context, f inbox.Filter) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.matching(f)), nil
}

// Groups implements [inbox.Store].
func (m *Memory) Groups(_ context.Context, limit int) ([]inbox.Group, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	groups := make(map[inbox.Group]*inbox.Group)
	for _, e := range m.events {
		if e.State != inbox.Waiting && e.State != inbox.Dead {
			continue
		}
		key := inbox.Group{State: e.State, Status: e.Last.Status, Cause: e.Last.Cause, Error: e.Last.Error}
		g := groups[key]
		if g == nil {
			g = new(key)
			groups[key] = g
		}
		g.Events++
		if g.Since.IsZero() || e.Arrived.Before(g.Since) {
			g.Since = e.Arrived
		}
		if e.State == inbox.Waiting && (g.Next.IsZero() || e.Due.Before(g.Next)) {
			g.Next = e.Due
		}
	}
	var all []inbox.Group
	for _, g := range groups {
		all = append(all, *g)
	}
	slices.SortFunc(all, func(a, b inbox.Group) int { return cmp.Compare(b.Events, a.Events) })
	return all[:min(len(all), limit)], nil
}

// Retry implements [inbox.Store].
func (m *Memory) Retry(_ context.Context, f inbox.Filter, now time.Time) (n int, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.matching(f) {
		if e.State == inbox.Accepted {
			continue
		}
		e.State, e.Due, e.Since, e.Settled = inbox.Waiting, now, now, time.Time{}
		e.Attempts, e.First, e.Last = 0, inbox.Attempt{}, inbox.Attempt{}
		n++
	}
	return n, nil
}

// Discard implements [inbox.Store].
func (m *Memory) Discard(_ context.Context, f inbox.Filter, discarded func(inbox.Event)) (int, error) {
	m.mu.Lock()
	var removed []inbox.Event
	for _, e := range m.matching(f) {
		if e.State != inbox.Accepted {
			removed = append(removed, m.bare(e))
			delete(m.events, e.Number)
		}
	}
	m.mu.Unlock()
	for _, e := range removed {
		discarded(e)
	}
	return len(removed), nil
}

// SetPaused implements [inbox.Store].
func (m *Memory) SetPaused(_ context.Context, paused bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !paused:
		m.paused = time.Time{}
	case m.paused.IsZero():
		m.paused = time.Now()
	}
	return nil
}

// Stats implements [inbox.Store].
func (m *Memory) Stats() inbox.Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	stats := inbox.Stats{Backing: "memory of a test", Bytes: m.bytes(), Paused: m.paused}
	for _, e := range m.events {
		switch e.State {
		case inbox.Waiting:
			stats.Waiting++
			if since := e.Since; stats.Oldest.IsZero() || since.Before(stats.Oldest) {
				stats.Oldest = since
			}
		case inbox.Dead:
			stats.Dead++
		case inbox.Delivered:
			stats.Delivered++
		}
	}
	return stats
}
