package inbox

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
)

// Lane identifies events that are delivered one at a time, in the order in which
// they have arrived. It is 0 for an event without an order key.
type Lane uint64

// LaneOf returns the lane of the events with a target, a scope and an order key. It is
// a hash: in the improbable case that two lanes have the same one, they are one lane.
func LaneOf(target, scope, orderKey string) Lane {
	if orderKey == "" {
		return 0
	}
	var d xxhash.Digest
	d.Reset()
	for _, part := range []string{target, scope, orderKey} {
		_, _ = d.WriteString(part)
		_, _ = d.Write([]byte{0})
	}
	return Lane(max(d.Sum64(), 1))
}

// ErrNotItsTurn means that an event of the same lane that arrived earlier has neither
// been accepted nor given up.
var ErrNotItsTurn = errors.New("earlier events with the same key of order_by are still to be delivered")

// Lanes keep events in order. They take memory only for lanes in which something is
// under way. They are safe for concurrent use.
type Lanes struct {
	mu       *sync.Mutex
	lanes    map[Lane]*lane
	sequence func() int64 // called with mu held
	// stored reports whether an event of a lane waits in a store, or is nil.
	stored func(context.Context, Lane) (bool, error)
	// unblock is called, with mu held, when an event may be delivered again that
	// redeliver has rejected.
	unblock func(number int64)
}

// lane is a lane in which something is under way.
type lane struct {
	id Lane
	// turns are the events that have arrived, and neither have ended nor are
	// stored, in order of arrival.
	turns    []*Turn
	underway int   // attempts, of turns and of events that are stored
	waiting  int64 // bytes that turns take that wait
	rejected int64 // the number of a stored event that redeliver has rejected, or 0
}

// NewLanes returns lanes for events that are not stored.
func NewLanes() *Lanes {
	last := int64(0)
	return &Lanes{mu: new(sync.Mutex), lanes: map[Lane]*lane{}, sequence: func() int64 { last++; return last }}
}

// Turn is the place of an event in its lane, from its arrival until it has ended or is
// stored. The methods of a nil Turn do nothing: it is that of an event without an order
// key.
type Turn struct {
	lanes    *Lanes
	lane     *lane
	sequence int64

	// mu of lanes is held.
	holders  int
	underway bool          // counts in lane.underway
	granted  chan struct{} // not nil while Await waits; closed when it is underway
}

// Enter gives an event that has arrived its place in its lane. [Turn.Leave] must be
// called when the event has ended or is stored.
func (l *Lanes) Enter(id Lane) *Turn {
	l.mu.Lock()
	defer l.mu.Unlock()
	in := l.lane(id)
	t := &Turn{lanes: l, lane: in, sequence: l.sequence(), holders: 1}
	in.turns = append(in.turns, t)
	return t
}

// Hold makes that Leave must be called once more.
func (t *Turn) Hold() {
	if t == nil {
		return
	}
	t.lanes.mu.Lock()
	defer t.lanes.mu.Unlock()
	t.holders++
}

// Leave lets the next event of the lane pass.
func (t *Turn) Leave() {
	if t == nil {
		return
	}
	l := t.lanes
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.holders--; t.holders > 0 {
		return
	}
	t.lane.turns = slices.DeleteFunc(t.lane.turns, func(other *Turn) bool { return other == t })
	t.end()
	l.changed(t.lane)
}

// Sequence returns the sequence of the event, or 0.
func (t *Turn) Sequence() int64 {
	if t == nil {
		return 0
	}
	return t.sequence
}

// Try begins an attempt to deliver the event, if no event of its lane that arrived
// earlier is under way or waits.
func (t *Turn) Try(ctx context.Context) bool {
	if t == nil {
		return true
	}
	t.lanes.mu.Lock()
	begun := t.lane.next() == t
	if begun {
		t.begin()
	}
	t.lanes.mu.Unlock()
	return begun && t.nothingStored(ctx) == nil
}

// Await is Try, but waits for the events that are under way, until wait has passed or
// ctx is done. It does not if the events that wait in the lane would take more than
// most bytes, of which this one takes cost; one always may.
func (t *Turn) Await(ctx context.Context, wait time.Duration, cost, most int64) error {
	if t == nil {
		return nil
	}
	if err := t.await(ctx, wait, cost, most); err != nil {
		return err
	}
	return t.nothingStored(ctx)
}

func (t *Turn) await(ctx context.Context, wait time.Duration, cost, most int64) error {
	l := t.lanes
	l.mu.Lock()
	if t.lane.next() == t {
		t.begin()
		l.mu.Unlock()
		return nil
	}
	if t.lane.waiting > 0 && t.lane.waiting+cost > most {
		l.mu.Unlock()
		return ErrNotItsTurn
	}
	t.lane.waiting += cost
	granted := make(chan struct{})
	t.granted = granted
	l.mu.Unlock()

	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-granted:
	case <-timer.C:
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t.lane.waiting -= cost
	t.granted = nil
	if !t.underway {
		return ErrNotItsTurn
	}
	return nil
}

// nothingStored ends the attempt, with an error, if an event of the lane waits in the
// store. Such an event has arrived earlier, or an operator wants it to be retried.
func (t *Turn) nothingStored(ctx context.Context) error {
	if t.lanes.stored == nil {
		return nil
	}
	waits, err := t.lanes.stored(ctx, t.lane.id)
	if err == nil && waits {
		err = ErrNotItsTurn
	}
	if err != nil {
		t.cancel()
	}
	return err
}

// cancel takes back that an attempt has begun.
func (t *Turn) cancel() {
	if t == nil {
		return
	}
	t.lanes.mu.Lock()
	defer t.lanes.mu.Unlock()
	t.end()
	t.lanes.changed(t.lane)
}

// The methods below are called with mu held.

func (t *Turn) begin() {
	t.underway = true
	t.lane.underway++
}

func (t *Turn) end() {
	if t.underway {
		t.underway = false
		t.lane.underway--
	}
}

// lane returns a lane, which the caller puts something into.
func (l *Lanes) lane(id Lane) *lane {
	in := l.lanes[id]
	if in == nil {
		in = &lane{id: id}
		l.lanes[id] = in
	}
	return in
}

// next returns the turn that may begin, or nil.
func (in *lane) next() *Turn {
	if in.underway > 0 || len(in.turns) == 0 {
		return nil
	}
	return in.turns[0]
}

// changed lets events pass that may pass now.
func (l *Lanes) changed(in *lane) {
	if t := in.next(); t != nil && t.granted != nil {
		t.begin()
		close(t.granted)
	}
	if in.rejected != 0 {
		number := in.rejected
		in.rejected = 0
		l.unblock(number)
	}
	if in.underway == 0 && len(in.turns) == 0 {
		delete(l.lanes, in.id)
	}
}

// mayRedeliver reports whether an event that is stored may be delivered: nothing of its
// lane is under way, and none that arrived earlier is still to be stored.
func (l *Lanes) mayRedeliver(e *Event) bool {
	in := l.lanes[e.Lane()]
	if in == nil || in.underway == 0 && (len(in.turns) == 0 || in.turns[0].sequence > e.Sequence) {
		return true
	}
	if in.rejected != 0 && in.rejected != e.Number {
		l.unblock(in.rejected)
	}
	in.rejected = e.Number
	return false
}

// hold begins an attempt to deliver an event that is stored, until release. The lane is
// nil for an event without an order key.
func (l *Lanes) hold(e *Event) *lane {
	id := e.Lane()
	if id == 0 {
		return nil
	}
	in := l.lane(id)
	in.underway++
	return in
}

func (l *Lanes) release(in *lane) {
	if in != nil {
		in.underway--
		l.changed(in)
	}
}
