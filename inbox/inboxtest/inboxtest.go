// Package inboxtest is the test suite that every [inbox.Store] must pass. A store
// runs it from a test of its own:
//
//	func TestStore(t *testing.T) {
//		inboxtest.Test(t, inboxtest.Config{
//			Open: func(t testing.TB) inbox.Store { return open(t) },
//		})
//	}
//
// The suite tests the behaviors that [inbox.Store] describes by name, and compares
// random sequences of operations with a model, which is [Memory].
package inboxtest

import (
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
)

// Config describes the store to test.
type Config struct {
	// Open returns a new store, which is empty. It must release the store in a
	// cleanup of t.
	Open func(t testing.TB) inbox.Store
	// Reopen, if it is not nil, ends a store as the end of the process does, and
	// returns one with the same events.
	Reopen func(t testing.TB, s inbox.Store) inbox.Store
}

// Test runs the suite.
func Test(t *testing.T, c Config) {
	for _, test := range []struct {
		name string
		run  func(*suite)
	}{
		{"an event is kept with all of its parts", whole},
		{"any bytes of a request are kept", anyBytes},
		{"an event is kept once", once},
		{"the event that was kept last is found", lastFound},
		{"numbers increase and are not used again", numbers},
		{"what is not delivered is bounded in bytes", bound},
		{"events are due by time and then by number", due},
		{"events that are skipped are not due", skipped},
		{"an event whose delivery ends meanwhile is not due", endsMeanwhile},
		{"events are due for their targets", targets},
		{"events that are due too late are advanced", advanced},
		{"events of a lane are due one after another", inOrder},
		{"an event that was stored late comes first if it arrived first", storedLate},
		{"an event that does not wait any more lets the next of its lane pass", passes},
		{"a retry takes the place of its event in its lane", retriedInOrder},
		{"lanes do not block each other", lanes},
		{"arrivals increase", arrivals},
		{"the oldest of each state", oldest},
		{"a failed attempt counts, and the event waits", attempts},
		{"a failed attempt may be the last", lastAttempt},
		{"an attempt is recorded once", repeated},
		{"a late failure changes nothing", lateFailure},
		{"an accepted event is kept until its ID is remembered", accepted},
		{"an accepted event is kept for replay", delivered},
		{"a delivered event is added for replay", deliveredAdded},
		{"a dead event can still be accepted", deadAccepted},
		{"events that wait too long die", oldDie},
		{"dead and delivered events expire", oldLeave},
		{"events expire in steps", expiresInSteps},
		{"a retry makes an event wait as if it was new", retried},
		{"a retry of an old event gets it all the time of a new one", retriedOld},
		{"accepted events are neither retried nor discarded", acceptedStay},
		{"discarded events are gone", discarded},
		{"filters", filters},
		{"what waits or is dead is grouped by how the last attempt has ended", groups},
		{"what is unknown is not found", unknown},
		{"redelivery is paused and resumed", paused},
		{"stats", stats},
		{"one of many gets the last place", lastPlace},
		{"one of many adds an event", oneAdds},
		{"concurrent changes all count", concurrent},
		{"many events are listed in pages", pages},
		{"many events are retried and discarded", many},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(&suite{T: t, config: c, store: c.Open(t)}) })
	}
	t.Run("sequences agree with a model", func(t *testing.T) { testSequences(t, c) })
}

// noLimit is more than any test adds.
const noLimit = 1 << 40

// start is when the events of a test begin to arrive, long ago.
var start = time.Date(2020, 1, 2, 3, 4, 5, 123456789, time.UTC)

func after(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }

// Target is that of the events that [NewEvent] returns.
const (
	Target      = "example.com/webhook"
	target      = Target
	otherTarget = "example.org/webhook"
)

// expiry is when the events of a test expire.
var expiry = after(1e6)

func none(int64) bool { return false }

type suite struct {
	*testing.T
	config Config
	store  inbox.Store
}

// NewEvent returns an event with an ID, which arrived at a time and is due 5
// seconds after that.
func NewEvent(id string, arrived time.Time) inbox.Event {
	body := []byte(`{"id":"` + id + `"}`)
	return inbox.Event{
		Target: Target, Scope: "scope", Key: dedupe.KeyOf(id), Digest: dedupe.DigestOf(body), ID: id, Type: "message.received",
		Secret: "1", Arrived: arrived, Since: arrived, Due: arrived.Add(5 * time.Second), Body: body,
		Request: inbox.Request{Server: "srv0", Host: "example.com", URI: "/webhook", Proto: "HTTP/1.1", Header: http.Header{"Content-Type": {"application/json"}}},
	}
}

func (s *suite) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *suite) is(err, want error) {
	s.Helper()
	if !errors.Is(err, want) {
		s.Fatalf("the error is %v, want %v", err, want)
	}
}

func (s *suite) add(e inbox.Event) int64 {
	s.Helper()
	number, err := s.store.Add(s.Context(), e, noLimit)
	s.ok(err)
	return number
}

// addNew adds a new event with an ID, which arrived at seconds after start.
func (s *suite) addNew(id string, seconds int) int64 {
	s.Helper()
	return s.add(NewEvent(id, after(seconds)))
}

func (s *suite) load(number int64) inbox.Event {
	s.Helper()
	e, err := s.store.Load(s.Context(), number)
	s.ok(err)
	return e
}

func (s *suite) gone(number int64) {
	s.Helper()
	_, err := s.store.Load(s.Context(), number)
	s.is(err, inbox.ErrNotFound)
}

func (s *suite) state(number int64, want inbox.State) {
	s.Helper()
	if e := s.load(number); e.State != want {
		s.Errorf("event %d is %s, want %s", number, e.State, want)
	}
}

func failure(at time.Time) inbox.Attempt {
	return inbox.Attempt{Time: at, Duration: 0.125, Status: 503, Cause: "status", Error: "the backend answered 503"}
}

func success(at time.Time) inbox.Attempt { return inbox.Attempt{Time: at, Duration: 0.25, Status: 200} }

// kill makes an event dead at a time.
func (s *suite) kill(number int64, at time.Time) {
	s.Helper()
	s.ok(s.store.Attempted(s.Context(), number, failure(at), at, at))
}

// accept makes an event accepted or, if it is kept, delivered.
func (s *suite) accept(number int64, at time.Time, keep bool) {
	s.Helper()
	s.ok(s.store.Accepted(s.Context(), number, success(at), keep))
	if keep {
		s.ok(s.store.Remembered(s.Context(), number))
	}
}

func (s *suite) due(now time.Time, want ...int64) {
	s.Helper()
	events, err := s.store.Due(s.Context(), target, now, 100, none)
	s.ok(err)
	s.are(events, want...)
}

func (s *suite) are(events []inbox.Event, want ...int64) {
	s.Helper()
	if got := numbersOf(events); !slices.Equal(got, want) {
		s.Errorf("got the events %d, want %d", got, want)
	}
	for _, e := range events {
		if e.Body != nil || !reflect.DeepEqual(e.Request, inbox.Request{}) {
			s.Errorf("event %d has its body or its request", e.Number)
		}
	}
}

func numbersOf(events []inbox.Event) (numbers []int64) {
	for _, e := range events {
		numbers = append(numbers, e.Number)
	}
	return numbers
}

func (s *suite) counts(waiting, dead, delivered int) {
	s.Helper()
	got := s.store.Stats()
	if got.Waiting != waiting || got.Dead != dead || got.Delivered != delivered {
		s.Errorf("%d events wait, %d are dead, %d delivered; want %d, %d and %d", got.Waiting, got.Dead, got.Delivered, waiting, dead, delivered)
	}
}

// difference says how two events differ, or is empty. Times are the same if they
// are the same instants.
func difference(got, want inbox.Event) string {
	got, want = normal(got), normal(want)
	if reflect.DeepEqual(got, want) {
		return ""
	}
	return fmt.Sprintf("got\n%+v, want\n%+v", got, want)
}

func normal(e inbox.Event) inbox.Event {
	for _, t := range []*time.Time{&e.Arrived, &e.Due, &e.Since, &e.Settled, &e.First.Time, &e.Last.Time} {
		*t = t.Round(0).UTC()
	}
	return e
}

func (s *suite) same(what string, got, want inbox.Event) {
	s.Helper()
	if d := difference(got, want); d != "" {
		s.Errorf("%s: %s", what, d)
	}
}
