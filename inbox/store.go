// Package inbox keeps events that a backend did not take, until it does.
//
// A [Store] keeps them durably. A [Dispatcher] decides when which event is
// delivered again. How an event is delivered is up to the program that uses them.
package inbox

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// Store keeps events. Its methods are safe for concurrent use. A change has been
// committed when the method that made it returns nil: it survives a crash. If a
// method returns an error, nothing of its change was made, unless ctx ended
// before.
//
// Methods that change one event return [ErrNotFound] if there is no such event,
// and may be repeated: what was recorded is not recorded again.
//
// A store belongs to one process. It outlives the configuration that uses it.
// It keeps times by the clock of the system: if that is put forward or back,
// events become due, die and expire earlier or later by as much.
type Store interface {
	// Add keeps an event that waits for its next attempt or, if its State is
	// [Delivered], has been accepted at Settled, and returns its number. Numbers
	// increase, and are not used again. Add returns [ErrKept] if an event
	// with the same scope, key and digest is kept already, in whatever state, and
	// [ErrFull] if the events that wait or are dead would take more than maxSize
	// bytes: see [Event.Size]. It fails if no configuration uses the store any more,
	// for nobody would deliver the event. Also if ctx has ended, Add returns only when
	// it is known whether the event is kept.
	Add(ctx context.Context, e Event, maxSize int64) (number int64, err error)

	// Find returns the event with a scope and a key that was kept last, without
	// its request and its body, or [ErrNotFound]. It is called for every event
	// that arrives: while nothing is kept, it does not read from the disk.
	Find(ctx context.Context, scope string, key dedupe.Key) (Event, error)

	// Load returns an event with its request and its body, or [ErrNotFound].
	Load(ctx context.Context, number int64) (Event, error)

	// Targets returns the targets of the events that wait, each once, in any
	// order. It takes no longer because more events wait.
	Targets(ctx context.Context) ([]string, error)

	// Arrival returns a number for [Event.Sequence] that is greater than all that
	// were returned before, also by earlier processes. It takes no lock.
	Arrival() int64

	// Waits reports whether an event of a lane waits. It is called for events that
	// arrive: while no event waits, it does not read from the disk.
	Waits(ctx context.Context, lane Lane) (bool, error)

	// Due returns up to limit events of a target that wait, are not blocked, and
	// are due at now, without their requests and bodies, ordered by when they
	// became due and then by number. It leaves out those for which skip returns
	// true, and those that do not wait any more, or are not due, when skip has
	// returned false: an event whose delivery ends while Due looks is not returned
	// as it was before. It takes no longer because more events wait, for this
	// target or for others, or because more of them are blocked.
	Due(ctx context.Context, target string, now time.Time, limit int, skip func(number int64) bool) ([]Event, error)

	// NextDue returns the earliest time at which an event of a target that waits
	// and is not blocked is due, for which skip returns false. It returns the zero
	// time if there is none. An event that changes in the meantime may count as it
	// was before.
	NextDue(ctx context.Context, target string, skip func(number int64) bool) (time.Time, error)

	// Advance makes up to limit events that wait and are due after latest due at
	// latest, also blocked ones, and returns how many it changed. A clock that was
	// put back leaves such events.
	Advance(ctx context.Context, latest time.Time, limit int) (int, error)

	// Attempted records an attempt to deliver an event that failed: the event
	// waits until due or, if dead is not zero, is dead since then. An event that
	// does not wait any more is left as it is.
	Attempted(ctx context.Context, number int64, a Attempt, due, dead time.Time) error

	// Accepted records that the backend has accepted an event that waits or is
	// dead. If keepBody is false, its request and its body are removed. The event
	// is kept in the state [Accepted] until [Store.Remembered].
	Accepted(ctx context.Context, number int64, a Attempt, keepBody bool) error

	// Remembered removes an accepted event, because its ID is remembered as
	// delivered elsewhere. If its body was kept, the event becomes [Delivered]
	// instead. Events in other states are left as they are.
	Remembered(ctx context.Context, number int64) error

	// Expire declares events dead, since now, that wait since before
	// waitingBefore; removes dead events that died before diedBefore, and
	// delivered ones that were accepted before deliveredBefore. It changes up to
	// limit events. Zero times mean never.
	Expire(ctx context.Context, now, waitingBefore, diedBefore, deliveredBefore time.Time, limit int) (Expired, error)

	// Oldest returns the earliest Since of the events that wait, and the earliest
	// Settled of the dead and of the delivered ones, each zero if there is none.
	Oldest(ctx context.Context) (waiting, dead, delivered time.Time, err error)

	// List returns up to limit events that match f and have numbers greater than
	// after, by number, without their bodies.
	List(ctx context.Context, f Filter, after int64, limit int) ([]Event, error)

	// Count returns how many events match f.
	Count(ctx context.Context, f Filter) (int, error)

	// Groups returns up to limit groups of the events that wait or are dead, the
	// largest first. It takes no longer because more events do. A store may leave
	// out the errors of those whose attempts have ended in very many ways.
	Groups(ctx context.Context, limit int) ([]Group, error)

	// Retry makes all events that match f wait, due at now and with their
	// attempts counted anew, and returns how many there were. It skips accepted
	// ones. Many events are changed in steps, so that others do not wait. An
	// error means that the steps before it were made, for as many events as
	// Retry returns.
	Retry(ctx context.Context, f Filter, now time.Time) (int, error)

	// Discard removes all events that match f, and returns how many there were.
	// It skips accepted ones, and makes steps like Retry. After each step it
	// calls discarded with every event that was removed, without its request and
	// body, for its ID may be unseen again.
	Discard(ctx context.Context, f Filter, discarded func(Event)) (int, error)

	// SetPaused pauses or resumes redelivery. It says only what was asked for;
	// the [Dispatcher] keeps to it.
	SetPaused(ctx context.Context, paused bool) error

	// Stats describes the store, using only what this process knows.
	Stats() Stats
}

// Starter is implemented by stores that acquire something exclusive, such as a
// file lock, when their configuration becomes active. Validating a
// configuration does not start its stores.
type Starter interface {
	// Start makes the store ready for use. An error fails the load.
	Start() error
}

// State is the state of an event in a [Store].
type State string

// The states. No other is used.
const (
	// Waiting: the event is to be delivered again.
	Waiting State = "waiting"
	// Dead: the event is not delivered again unless an operator asks for it.
	Dead State = "dead"
	// Accepted: the backend has accepted the event, and its ID is still to be
	// remembered.
	Accepted State = "accepted"
	// Delivered: the backend has accepted the event, and its body is kept.
	Delivered State = "delivered"
)

// Event is an event in a [Store].
type Event struct {
	Number int64 // set by the store
	State  State // set by the store, unless Delivered is passed to Add

	// Target names what the event is delivered to, such as a site. Targets do not
	// hold each other up when one of them fails.
	Target string
	// Scope, Key and Digest are as in [dedupe.Request].
	Scope  string
	Key    dedupe.Key
	Digest dedupe.Digest
	// ID and Type are those of the event.
	ID, Type string
	// OrderKey is what events have in common that are delivered in order, or
	// empty. See [LaneOf].
	OrderKey string
	// Sequence is the place of the event in its lane, from [Store.Arrival].
	Sequence int64
	// Blocked means that the event waits behind another one: an event of its lane
	// waits that has a smaller Sequence. When that one does not wait any more, the
	// same change of the store unblocks the next. Set by the store.
	Blocked bool
	// Secret is the label of the secret that matched.
	Secret string

	Arrived time.Time
	// Since is since when the event waits: its arrival or, if an operator has
	// asked for a retry, the last time. Zero if it does not wait. Set by the store.
	// An event dies when it has waited for [Policy.DeadAfter].
	Since time.Time
	// Due is the time of the next attempt.
	Due time.Time
	// Settled is when the event died or was accepted. Zero if it waits.
	Settled time.Time
	// Attempts counts the attempts since the event arrived, or since an operator
	// has asked for a retry. First and Last are the first and the last of them.
	Attempts    int
	First, Last Attempt

	Request Request // zero where it was not asked for
	Body    []byte  // nil where it was not asked for
}

// eventOverhead is about what an event takes on the disk besides its strings and its
// body: columns of a fixed size, its two attempts, and its part of the indexes.
const eventOverhead = 1024

// Size returns how many bytes e counts for in a [Store]: those of its body, of its
// request and of its other strings, and 1 KiB for all the rest.
func (e *Event) Size() int64 {
	n := eventOverhead + len(e.Body)
	r := &e.Request
	for _, s := range []string{e.Target, e.Scope, e.ID, e.Type, e.OrderKey, e.Secret, r.Server, r.Host, r.URI, r.Proto, r.RemoteAddr} {
		n += len(s)
	}
	for name, values := range r.Header {
		for _, value := range values {
			n += len(name) + len(value)
		}
	}
	return int64(n)
}

// Lane returns the lane of the event.
func (e *Event) Lane() Lane { return LaneOf(e.Target, e.Scope, e.OrderKey) }

// Request is what is needed of the sender's request to repeat it.
type Request struct {
	Server     string      `json:"server"` // the name of Caddy's server
	Host       string      `json:"host"`
	URI        string      `json:"uri"`
	Proto      string      `json:"proto"`
	TLS        bool        `json:"tls"`
	RemoteAddr string      `json:"remote_addr"`
	Header     http.Header `json:"header"`
}

// Attempt is the outcome of one attempt to deliver an event.
type Attempt struct {
	Time     time.Time `json:"time"`
	Duration float64   `json:"duration"`         // in seconds
	Status   int       `json:"status,omitempty"` // of the backend; 0: it did not answer
	Cause    string    `json:"cause,omitempty"`  // of the failure
	Error    string    `json:"error,omitempty"`  // at most 500 bytes
}

// Filter selects events. The zero value selects all. Several values of one field
// are alternatives; all fields that are set must match.
type Filter struct {
	Number Values[int64]  `json:"number,omitempty"`
	Target Values[string] `json:"target,omitempty"`
	State  Values[State]  `json:"state,omitempty"`
	Type   Values[string] `json:"type,omitempty"`
	ID     Values[string] `json:"id,omitempty"`
	Key    Values[string] `json:"key,omitempty"` // OrderKey
	// Since and Until bound when events arrived: at Since or later, and before
	// Until.
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`
	// Status is that of the last attempt.
	Status Values[int] `json:"status,omitempty"`
}

// Values are alternatives. In JSON, they may be a list or a single value.
type Values[T any] []T

// UnmarshalJSON implements [json.Unmarshaler]. An empty list is an error: as a part
// of a filter it would select everything.
func (v *Values[T]) UnmarshalJSON(text []byte) error {
	if text[0] != '[' && string(text) != "null" {
		*v = make(Values[T], 1)
		return json.Unmarshal(text, &(*v)[0])
	}
	err := json.Unmarshal(text, (*[]T)(v))
	if err == nil && len(*v) == 0 {
		err = errors.New("there is no value: leave the name out to select all")
	}
	return err
}

// Matches reports whether f selects an event.
func (f *Filter) Matches(e *Event) bool {
	return among(f.Number, e.Number) && among(f.Target, e.Target) && among(f.State, e.State) && among(f.Type, e.Type) &&
		among(f.ID, e.ID) && among(f.Key, e.OrderKey) && among(f.Status, e.Last.Status) &&
		(f.Since.IsZero() || !e.Arrived.Before(f.Since)) && (f.Until.IsZero() || e.Arrived.Before(f.Until))
}

// ByState reports whether f selects events by nothing but their states.
func (f *Filter) ByState() bool {
	return len(f.Number)+len(f.Target)+len(f.Type)+len(f.ID)+len(f.Key)+len(f.Status) == 0 && f.Since.IsZero() && f.Until.IsZero()
}

func among[T comparable](alternatives []T, value T) bool {
	return len(alternatives) == 0 || slices.Contains(alternatives, value)
}

// Expired is what [Store.Expire] has changed.
type Expired struct {
	// Died has the numbers of the events that were declared dead.
	Died []int64
	// Dead and Delivered are how many events were removed that had these states.
	Dead, Delivered int
}

// Changed returns how many events were changed.
func (e Expired) Changed() int { return len(e.Died) + e.Dead + e.Delivered }

// Group are the events in one state whose last attempts have ended in the same way.
type Group struct {
	State State // Waiting or Dead
	// Status, Cause and Error are as in [Attempt], and zero if no attempt was made.
	Status       int
	Cause, Error string
	Events       int
	Since        time.Time // the earliest Arrived
	Next         time.Time // the earliest Due; zero if they are dead
}

// Stats describes a [Store] at one moment.
type Stats struct {
	// Backing names where the events are kept. Stores with the same backing
	// share them.
	Backing string
	// Waiting, Dead and Delivered count events by state. Accepted ones are
	// nowhere counted.
	Waiting, Dead, Delivered int
	// Bytes is the sum of [Event.Size] of the events that wait or are dead.
	Bytes int64
	// Oldest is the earliest Since of the events that wait, or zero.
	Oldest time.Time
	// Paused is since when redelivery is paused, or zero.
	Paused time.Time
	// Err is why events cannot be kept at present, or nil.
	Err error
}

var (
	// ErrFull means that there is no room for another event.
	ErrFull = errors.New("the inbox is full")
	// ErrKept means that the event is kept already.
	ErrKept = errors.New("the event is in the inbox already")
	// ErrNotFound means that there is no such event.
	ErrNotFound = errors.New("no such event in the inbox")
)
