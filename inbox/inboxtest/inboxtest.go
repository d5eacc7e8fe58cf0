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
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"sync"
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

func whole(s *suite) {
	e := NewEvent("evt_1", start)
	e.OrderKey, e.Sequence, e.Attempts, e.First, e.Last = "conversation 7", 1<<62, 1, failure(start), failure(start)
	e.Due = after(77)
	e.Digest = 1<<64 - 1
	e.Request.TLS, e.Request.RemoteAddr = true, "192.0.2.1:1234"
	e.Request.Header.Add("X-Twice", "a")
	e.Request.Header.Add("X-Twice", "b")
	e.Body = bytes.Repeat([]byte{0, 1, 0xff, '"'}, 100_000)
	e.Number = s.add(e)
	e.State = inbox.Waiting
	s.same("loaded", s.load(e.Number), e)
	e.Body, e.Request = nil, inbox.Request{}
	found, err := s.store.Find(s.Context(), e.Scope, e.Key)
	s.ok(err)
	s.same("found", found, e)
	events, err := s.store.Due(s.Context(), target, e.Due, 1, none)
	s.ok(err)
	s.are(events, e.Number)
	s.same("due", events[0], e)
	events, err = s.store.List(s.Context(), inbox.Filter{}, 0, 1)
	s.ok(err)
	s.are(events, e.Number)
	s.same("listed", events[0], e)
}

func anyBytes(s *suite) {
	e := NewEvent("evt_1", start)
	e.Request.URI, e.Request.Host = "/caf\xe9?\xff", "é.example"
	e.Request.Header = http.Header{"X-Latin": {"\xe9\x80"}, "X-\xe9": {"", "a\tb", "\u00e9\ufffd"}}
	got := s.load(s.add(e)).Request
	if !reflect.DeepEqual(got, e.Request) {
		s.Errorf("got %+v, want %+v", got, e.Request)
	}
}

func once(s *suite) {
	e := NewEvent("evt_1", start)
	number := s.add(e)
	again := e
	again.Arrived = after(9)
	for _, change := range []func(){
		func() {},
		func() { s.kill(number, after(10)) },
		func() { s.ok(s.store.Accepted(s.Context(), number, success(after(20)), true)) },
		func() { s.ok(s.store.Remembered(s.Context(), number)) },
	} {
		change()
		_, err := s.store.Add(s.Context(), again, 1) // full, too
		s.is(err, inbox.ErrKept)
	}
	again.Digest++
	s.add(again)
	again.Scope = "other"
	s.add(again)
	s.counts(2, 0, 1)
}

func lastFound(s *suite) {
	find := func(scope, id string, want int64) {
		s.Helper()
		e, err := s.store.Find(s.Context(), scope, dedupe.KeyOf(id))
		if want == 0 {
			s.is(err, inbox.ErrNotFound)
			return
		}
		s.ok(err)
		s.are([]inbox.Event{e}, want)
	}
	find("scope", "a", 0)
	a := NewEvent("a", start)
	first := s.add(a)
	a.Digest++
	second := s.add(a)
	a.Scope = "other"
	other := s.add(a)
	s.addNew("b", 0)
	find("scope", "a", second)
	find("other", "a", other)
	find("third", "a", 0)
	find("scope", "c", 0)
	s.accept(second, after(1), false)
	s.ok(s.store.Remembered(s.Context(), second))
	find("scope", "a", first)
	s.accept(first, after(1), true)
	find("scope", "a", first)
	n, err := s.store.Discard(s.Context(), inbox.Filter{}, func(inbox.Event) {})
	if s.ok(err); n != 3 {
		s.Errorf("%d were discarded", n)
	}
	find("scope", "a", 0)
	s.addNew("a", 2)
	find("scope", "c", 0)
}

func numbers(s *suite) {
	last := int64(0)
	for i := range 5 {
		number := s.addNew(fmt.Sprint(i), 0)
		if number <= last {
			s.Errorf("%d follows %d", number, last)
		}
		last = number
		if n, err := s.store.Discard(s.Context(), inbox.Filter{Number: []int64{number}}, func(inbox.Event) {}); n != 1 || err != nil {
			s.Errorf("%d were discarded, error %v", n, err)
		}
	}
}

func bound(s *suite) {
	const size, maxSize = 3000, 4 * 3000
	sized := func(id string, size int64) inbox.Event {
		e := NewEvent(id, start)
		e.Body = nil
		e.Body = make([]byte, size-e.Size())
		return e
	}
	full := func() {
		s.Helper()
		_, err := s.store.Add(s.Context(), sized("one more", size/2), maxSize)
		s.is(err, inbox.ErrFull)
	}
	var added []int64
	for i := range 4 {
		e := sized(fmt.Sprint(i), size+1)
		if i == 3 {
			_, err := s.store.Add(s.Context(), e, maxSize)
			s.is(err, inbox.ErrFull)
		}
		e.Body = e.Body[1:]
		n, err := s.store.Add(s.Context(), e, maxSize)
		s.ok(err)
		added = append(added, n)
	}
	full()
	s.kill(added[0], after(1)) // still to be delivered, if someone asks for it
	full()
	if got := s.store.Stats().Bytes; got != maxSize {
		s.Errorf("%d bytes are counted, want %d", got, maxSize)
	}
	room := func(id string) int64 {
		s.Helper()
		n, err := s.store.Add(s.Context(), sized(id, size), maxSize)
		s.ok(err)
		full()
		return n
	}
	s.ok(s.store.Accepted(s.Context(), added[1], success(after(1)), true))
	room("accepted")
	s.accept(added[2], after(1), false)
	n := room("accepted and gone")
	s.ok(s.store.Remembered(s.Context(), added[1]))
	s.ok(s.store.Remembered(s.Context(), added[2]))
	full()
	if _, err := s.store.Retry(s.Context(), inbox.Filter{Number: []int64{added[1]}}, after(2)); err != nil { // it counts again
		s.Fatal(err)
	}
	if got := s.store.Stats().Bytes; got != maxSize*5/4 {
		s.Errorf("%d bytes are counted, want %d", got, maxSize*5/4)
	}
	_, err := s.store.Discard(s.Context(), inbox.Filter{Number: []int64{n, added[0]}}, func(inbox.Event) {})
	s.ok(err)
	room("discarded")
}

func due(s *suite) {
	next := func(want time.Time) {
		s.Helper()
		if got, err := s.store.NextDue(s.Context(), target, none); err != nil || !got.Equal(want) {
			s.Errorf("the next is due at %v, error %v; want %v", got, err, want)
		}
	}
	next(time.Time{})
	s.due(after(1000))
	at := func(id string, due int) int64 {
		e := NewEvent(id, start)
		e.Due = after(due)
		return s.add(e)
	}
	c, a, b, a2 := at("c", 30), at("a", 10), at("b", 20), at("a2", 10)
	next(after(10))
	s.due(after(9))
	s.due(after(10).Add(-1))
	s.due(after(10), a, a2)
	s.due(after(1000), a, a2, b, c)
	events, err := s.store.Due(s.Context(), target, after(1000), 3, none)
	s.ok(err)
	s.are(events, a, a2, b)
	s.accept(a, after(11), true)
	s.kill(a2, after(11))
	next(after(20))
	s.ok(s.store.Attempted(s.Context(), b, failure(after(20)), after(40), time.Time{}))
	next(after(30))
	s.due(after(1000), c, b)
}

func targets(s *suite) {
	other := func(id string) int64 {
		e := NewEvent(id, start)
		e.Target = otherTarget
		return s.add(e)
	}
	are := func(want ...string) {
		s.Helper()
		got, err := s.store.Targets(s.Context())
		s.ok(err)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			s.Errorf("the targets are %q, want %q", got, want)
		}
	}
	are()
	a, b := s.addNew("a", 0), other("b")
	are(target, otherTarget)
	s.due(after(1000), a)
	events, err := s.store.Due(s.Context(), otherTarget, after(1000), 100, none)
	s.ok(err)
	s.are(events, b)
	s.kill(a, after(1))
	are(otherTarget)
	s.due(after(1000))
	if next, err := s.store.NextDue(s.Context(), otherTarget, none); err != nil || next.IsZero() {
		s.Errorf("the next is due at %v, error %v", next, err)
	}
	other("c")
	are(otherTarget)
}

func advanced(s *suite) {
	at := func(id, target string, due int) int64 {
		e := NewEvent(id, start)
		e.Target, e.Due = target, after(due)
		return s.add(e)
	}
	a, b := at("a", target, 10), at("b", target, 30)
	at("c", otherTarget, 40)
	for i := range 3 {
		e := NewEvent(fmt.Sprint("in a lane ", i), start)
		e.Target, e.OrderKey, e.Sequence, e.Due = otherTarget, "x", int64(i), after(40+40*i)
		s.add(e)
	}
	advance := func(latest, limit, want int) {
		s.Helper()
		if n, err := s.store.Advance(s.Context(), after(latest), limit); err != nil || n != want {
			s.Errorf("%d were advanced, error %v; want %d", n, err, want)
		}
	}
	advance(50, 10, 2)
	advance(20, 1, 1)
	advance(20, 10, 4)
	advance(20, 10, 0)
	s.due(after(20), a, b)
	if next, err := s.store.NextDue(s.Context(), otherTarget, none); err != nil || !next.Equal(after(20)) {
		s.Errorf("the next is due at %v, error %v", next, err)
	}
}

// addInLane adds a new event with the order key x and a sequence. It is due at once.
func (s *suite) addInLane(id string, sequence int64) int64 {
	s.Helper()
	e := NewEvent(id, start)
	e.OrderKey, e.Sequence, e.Due = "x", sequence, start
	return s.add(e)
}

// blocked checks which of the events are blocked.
func (s *suite) blocked(want ...int64) {
	s.Helper()
	events, err := s.store.List(s.Context(), inbox.Filter{}, 0, 100)
	s.ok(err)
	var got []int64
	for _, e := range events {
		if e.Blocked {
			got = append(got, e.Number)
		}
		if one := s.load(e.Number); one.Blocked != e.Blocked {
			s.Errorf("whether event %d is blocked is not clear", e.Number)
		}
	}
	if !slices.Equal(got, want) {
		s.Errorf("blocked are %d, want %d", got, want)
	}
}

func (s *suite) waits(key string, want bool) {
	s.Helper()
	if got, err := s.store.Waits(s.Context(), inbox.LaneOf(target, "scope", key)); got != want || err != nil {
		s.Errorf("something of lane %q waits: %t, error %v; want %t", key, got, err, want)
	}
}

func inOrder(s *suite) {
	s.waits("x", false)
	a, b, c := s.addInLane("a", 1), s.addInLane("b", 2), s.addInLane("c", 3)
	s.waits("x", true)
	s.blocked(b, c)
	s.due(after(1000), a)
	s.ok(s.store.Attempted(s.Context(), a, failure(after(1)), after(60), time.Time{}))
	s.blocked(b, c)
	s.due(after(59))
	if next, err := s.store.NextDue(s.Context(), target, none); err != nil || !next.Equal(after(60)) {
		s.Errorf("the next is due at %v, error %v", next, err)
	}
	if next, err := s.store.NextDue(s.Context(), target, func(n int64) bool { return n == a }); err != nil || !next.IsZero() {
		s.Errorf("behind the first, the next is due at %v, error %v", next, err)
	}
	for i, n := range []int64{a, b, c} {
		s.due(after(1000), n)
		s.waits("x", true)
		s.ok(s.store.Accepted(s.Context(), n, success(after(70)), i > 0))
	}
	s.waits("x", false)
	s.blocked()
	s.due(after(1000))
}

func storedLate(s *suite) {
	c, b := s.addInLane("c", 3), s.addInLane("b", 2)
	s.blocked(c)
	s.due(after(1000), b)
	a := s.addInLane("a", 1)
	s.blocked(c, b)
	s.due(after(1000), a)
	s.accept(a, after(1), false)
	s.due(after(1000), b)
	s.ok(s.store.Accepted(s.Context(), c, success(after(1)), false)) // out of turn: it was under way
	s.blocked()
	s.due(after(1000), b)
}

func passes(s *suite) {
	ctx := s.Context()
	ways := []func(n int64){
		func(n int64) { s.kill(n, after(1)) },
		func(n int64) { s.accept(n, after(1), true) },
		func(n int64) { s.discard(inbox.Filter{Number: []int64{n}}, n) },
		func(n int64) { s.expire(after(10), time.Time{}, time.Time{}, 1, 0, 0, n) },
		func(n int64) { s.ok(s.store.Attempted(ctx, n, failure(after(2)), after(3), after(2))) },
	}
	var n []int64
	for i := range len(ways) + 1 {
		n = append(n, s.addInLane(fmt.Sprint(i), int64(i)))
	}
	for i, leave := range ways {
		s.due(after(1000), n[i])
		leave(n[i])
	}
	s.due(after(1000), n[len(ways)])
	s.blocked()
}

func retriedInOrder(s *suite) {
	a, b, c, d := s.addInLane("a", 1), s.addInLane("b", 2), s.addInLane("c", 3), s.addInLane("d", 4)
	s.kill(a, after(1))
	s.accept(b, after(1), true)
	s.due(after(1000), c)
	s.retry(inbox.Filter{Number: []int64{b}}, after(2), 1)
	s.blocked(c, d)
	s.due(after(1000), b)
	s.retry(inbox.Filter{Number: []int64{a}}, after(3), 1)
	s.blocked(b, c, d)
	s.due(after(1000), a)
	s.retry(inbox.Filter{}, after(4), 4)
	s.blocked(b, c, d)
	s.due(after(1000), a)
}

func lanes(s *suite) {
	add := func(id string, change func(e *inbox.Event)) int64 {
		e := NewEvent(id, start)
		e.OrderKey, e.Sequence, e.Due = "x", 5, start
		change(&e)
		return s.add(e)
	}
	x := add("x", func(*inbox.Event) {})
	key := add("key", func(e *inbox.Event) { e.OrderKey = "y" })
	scope := add("scope", func(e *inbox.Event) { e.Scope = "other" })
	none1 := add("none 1", func(e *inbox.Event) { e.OrderKey, e.Sequence = "", 0 })
	none2 := add("none 2", func(e *inbox.Event) { e.OrderKey, e.Sequence = "", 0 })
	other := add("target", func(e *inbox.Event) { e.Target = otherTarget })
	s.blocked()
	s.due(after(1000), x, key, scope, none1, none2)
	s.addInLane("behind", 6)
	s.accept(other, after(1), false)
	s.waits("y", true)
	s.waits("z", false)
	targets, err := s.store.Targets(s.Context())
	if s.ok(err); !slices.Equal(targets, []string{target}) {
		s.Errorf("the targets are %q", targets)
	}
	s.due(after(1000), x, key, scope, none1, none2)
}

func arrivals(s *suite) {
	last := s.store.Arrival()
	next := func(n int64) {
		s.Helper()
		if n <= last {
			s.Errorf("%d follows %d", n, last)
		}
		last = n
	}
	for range 1000 {
		next(s.store.Arrival())
	}
	if s.config.Reopen == nil {
		return
	}
	for range 3 {
		s.store = s.config.Reopen(s, s.store)
		for range 10 {
			next(s.store.Arrival())
		}
	}
}

func oldest(s *suite) {
	are := func(waiting, dead, delivered time.Time) {
		s.Helper()
		w, d, v, err := s.store.Oldest(s.Context())
		if err != nil || !w.Equal(waiting) || !d.Equal(dead) || !v.Equal(delivered) {
			s.Errorf("the oldest are of %v, %v and %v, error %v; want %v, %v and %v", w, d, v, err, waiting, dead, delivered)
		}
	}
	are(time.Time{}, time.Time{}, time.Time{})
	a, b, c := s.addNew("a", 1), s.addNew("b", 2), s.addNew("c", 3)
	s.addNew("d", 4)
	are(after(1), time.Time{}, time.Time{})
	s.kill(a, after(11))
	s.kill(b, after(12))
	s.accept(c, after(13), true)
	are(after(4), after(11), after(13))
	s.retry(inbox.Filter{Number: []int64{a}}, after(20), 1)
	are(after(4), after(12), after(13))
}

func skipped(s *suite) {
	a, b, c := s.addNew("a", 1), s.addNew("b", 2), s.addNew("c", 3)
	skip := func(numbers ...int64) func(int64) bool {
		return func(n int64) bool { return slices.Contains(numbers, n) }
	}
	events, err := s.store.Due(s.Context(), target, after(1000), 1, skip(a))
	s.ok(err)
	s.are(events, b)
	if next, err := s.store.NextDue(s.Context(), target, skip(a, b)); err != nil || !next.Equal(after(3+5)) {
		s.Errorf("the next is due at %v, error %v", next, err)
	}
	events, err = s.store.Due(s.Context(), target, after(1000), 5, skip(a, b, c))
	s.ok(err)
	s.are(events)
	if next, err := s.store.NextDue(s.Context(), target, skip(a, b, c)); err != nil || !next.IsZero() {
		s.Errorf("the next is due at %v, error %v", next, err)
	}
}

// The caller of Due notes which events are under way. When one of these is done,
// this is recorded first, and then it is under way no more.
func endsMeanwhile(s *suite) {
	for name, end := range map[string]func(n int64) error{
		"removed": func(n int64) error {
			return errors.Join(s.store.Accepted(s.Context(), n, success(after(1)), false), s.store.Remembered(s.Context(), n))
		},
		"accepted": func(n int64) error { return s.store.Accepted(s.Context(), n, success(after(1)), false) },
		"failed": func(n int64) error {
			return s.store.Attempted(s.Context(), n, failure(after(1)), after(2000), time.Time{})
		},
	} {
		first, second := s.addNew(name, 0), s.addNew("after "+name, 1)
		ended := false
		events, err := s.store.Due(s.Context(), target, after(1000), 1, func(n int64) bool {
			if n == first && !ended {
				ended = true
				if err := end(n); err != nil {
					s.Error(err)
				}
			}
			return false
		})
		s.ok(err)
		s.are(events, second)
		s.accept(second, after(1), false)
	}
}

func attempts(s *suite) {
	n := s.addNew("a", 0)
	const failures = 50 // no more are kept than the first and the last
	for i := 1; i <= failures; i++ {
		s.ok(s.store.Attempted(s.Context(), n, failure(after(i)), after(i+10), time.Time{}))
		s.due(after(i + 9))
		s.due(after(i+10), n)
	}
	want := NewEvent("a", start)
	want.Number, want.State, want.Due = n, inbox.Waiting, after(failures+10)
	want.Attempts, want.First, want.Last = failures, failure(after(1)), failure(after(failures))
	s.same("after the attempts", s.load(n), want)
	s.counts(1, 0, 0)
}

func lastAttempt(s *suite) {
	n := s.addNew("a", 0)
	s.ok(s.store.Attempted(s.Context(), n, failure(after(1)), after(2), after(3)))
	e := s.load(n)
	if e.State != inbox.Dead || !e.Settled.Equal(after(3)) || e.Attempts != 1 || e.Body == nil {
		s.Errorf("it is %+v", e)
	}
	s.due(after(1000))
	s.counts(0, 1, 0)
}

func repeated(s *suite) {
	n := s.addNew("a", 0)
	for range 2 {
		s.ok(s.store.Attempted(s.Context(), n, failure(after(1)), after(2), time.Time{}))
	}
	if e := s.load(n); e.Attempts != 1 {
		s.Errorf("%d attempts are counted", e.Attempts)
	}
	for range 2 {
		s.ok(s.store.Accepted(s.Context(), n, success(after(3)), true))
	}
	if e := s.load(n); e.Attempts != 2 || !e.Settled.Equal(after(3)) {
		s.Errorf("it is %+v", e)
	}
	for range 2 {
		s.ok(s.store.Remembered(s.Context(), n))
	}
	s.ok(s.store.Accepted(s.Context(), n, success(after(4)), false))
	if e := s.load(n); e.State != inbox.Delivered || e.Attempts != 2 || e.Body == nil {
		s.Errorf("it is %+v", e)
	}
	s.counts(0, 0, 1)
}

func lateFailure(s *suite) {
	dead, accepted, delivered := s.addNew("a", 0), s.addNew("b", 0), s.addNew("c", 0)
	s.kill(dead, after(1))
	s.ok(s.store.Accepted(s.Context(), accepted, success(after(1)), false))
	s.accept(delivered, after(1), true)
	for _, n := range []int64{dead, accepted, delivered} {
		before := s.load(n)
		s.ok(s.store.Attempted(s.Context(), n, failure(after(2)), after(3), time.Time{}))
		s.ok(s.store.Attempted(s.Context(), n, failure(after(2)), after(3), after(3)))
		s.same("after the failure", s.load(n), before)
	}
	s.due(after(1000))
}

func accepted(s *suite) {
	n := s.addNew("a", 0)
	s.ok(s.store.Remembered(s.Context(), n)) // too early
	s.state(n, inbox.Waiting)
	s.ok(s.store.Attempted(s.Context(), n, failure(after(1)), after(2), time.Time{}))
	s.ok(s.store.Accepted(s.Context(), n, success(after(2)), false))
	e := s.load(n)
	if e.State != inbox.Accepted || e.Body != nil || e.Request.Header != nil || !e.Settled.Equal(after(2)) || e.Attempts != 2 || e.Last.Status != 200 {
		s.Errorf("it is %+v", e)
	}
	s.due(after(1000))
	s.counts(0, 0, 0)
	events, err := s.store.List(s.Context(), inbox.Filter{State: []inbox.State{inbox.Accepted}}, 0, 10)
	s.ok(err)
	s.are(events, n)
	s.expire(after(1e6), after(1e6), after(1e6), 10, 0, 0)
	s.ok(s.store.Remembered(s.Context(), n))
	s.gone(n)
	s.counts(0, 0, 0)
}

func delivered(s *suite) {
	n := s.addNew("a", 0)
	s.ok(s.store.Accepted(s.Context(), n, success(after(2)), true))
	s.state(n, inbox.Accepted)
	s.counts(0, 0, 0)
	s.ok(s.store.Remembered(s.Context(), n))
	e := s.load(n)
	if e.State != inbox.Delivered || string(e.Body) != `{"id":"a"}` || e.Request.Host == "" || !e.Settled.Equal(after(2)) {
		s.Errorf("it is %+v", e)
	}
	s.due(after(1000))
	s.counts(0, 0, 1)
}

func deliveredAdded(s *suite) {
	e := NewEvent("a", start)
	e.State, e.Settled, e.Since = inbox.Delivered, after(1), time.Time{}
	e.Attempts, e.First, e.Last = 1, success(after(1)), success(after(1))
	n, err := s.store.Add(s.Context(), e, noLimit)
	s.ok(err)
	e.Number = n
	s.same("loaded", s.load(n), e)
	s.due(after(1000))
	s.counts(0, 0, 1)
	if got := s.store.Stats().Bytes; got != 0 {
		s.Errorf("%d bytes are counted", got)
	}
	_, err = s.store.Add(s.Context(), e, noLimit)
	s.is(err, inbox.ErrKept)
	s.retry(inbox.Filter{State: []inbox.State{inbox.Delivered}}, after(10), 1)
	s.due(after(10), n)
	s.accept(n, after(11), true)
	s.expire(time.Time{}, time.Time{}, after(11), 10, 0, 0)
	s.expire(time.Time{}, time.Time{}, after(12), 10, 0, 1)
	s.gone(n)
}

func deadAccepted(s *suite) {
	n := s.addNew("a", 0)
	s.kill(n, after(1))
	s.ok(s.store.Accepted(s.Context(), n, success(after(2)), false))
	s.state(n, inbox.Accepted)
	s.counts(0, 0, 0)
}

func (s *suite) expire(waiting, died, delivered time.Time, limit, wantDead, wantDelivered int, wantDied ...int64) {
	s.Helper()
	got, err := s.store.Expire(s.Context(), expiry, waiting, died, delivered, limit)
	s.ok(err)
	if got.Dead != wantDead || got.Delivered != wantDelivered || !slices.Equal(got.Died, wantDied) {
		s.Errorf("expired: %+v, want %d dead and %d delivered, and %d to die", got, wantDead, wantDelivered, wantDied)
	}
}

func oldDie(s *suite) {
	a, b := s.addNew("a", 10), s.addNew("b", 20)
	s.expire(time.Time{}, time.Time{}, time.Time{}, 10, 0, 0)
	s.expire(after(10), after(1000), after(1000), 10, 0, 0)
	s.expire(after(11), time.Time{}, time.Time{}, 10, 0, 0, a)
	e := s.load(a)
	if e.State != inbox.Dead || !e.Settled.Equal(expiry) || e.Body == nil {
		s.Errorf("it is %+v", e)
	}
	s.due(after(1000), b)
	s.counts(1, 1, 0)
}

func oldLeave(s *suite) {
	dead, dead2, delivered, delivered2, waiting := s.addNew("a", 0), s.addNew("b", 0), s.addNew("c", 0), s.addNew("d", 0), s.addNew("e", 0)
	s.kill(dead, after(10))
	s.kill(dead2, after(20))
	s.accept(delivered, after(30), true)
	s.accept(delivered2, after(40), true)
	s.expire(time.Time{}, time.Time{}, time.Time{}, 10, 0, 0)
	s.expire(time.Time{}, after(10), after(30), 10, 0, 0)
	s.expire(time.Time{}, after(11), time.Time{}, 10, 1, 0)
	s.gone(dead)
	s.expire(time.Time{}, time.Time{}, after(31), 10, 0, 1)
	s.gone(delivered)
	s.counts(1, 1, 1)
	s.expire(time.Time{}, after(1000), after(1000), 10, 1, 1)
	s.gone(dead2)
	s.gone(delivered2)
	s.state(waiting, inbox.Waiting)
	s.counts(1, 0, 0)
}

func expiresInSteps(s *suite) {
	var n []int64
	for i := range 9 {
		n = append(n, s.addNew(fmt.Sprint(i), i))
	}
	s.kill(n[0], start)
	s.kill(n[1], start)
	s.accept(n[2], start, true)
	s.accept(n[3], start, true)
	s.expire(after(1000), after(1), after(1), 4, 0, 0, n[4:8]...)
	s.expire(after(1000), after(1), after(1), 2, 1, 0, n[8])
	s.expire(after(1000), after(1), after(1), 2, 1, 1)
	s.expire(after(1000), after(1), after(1), 2, 0, 1)
	s.expire(after(1000), after(1), after(1), 2, 0, 0)
	s.counts(0, 5, 0)
}

func (s *suite) retry(f inbox.Filter, now time.Time, want int) {
	s.Helper()
	if n, err := s.store.Retry(s.Context(), f, now); n != want || err != nil {
		s.Errorf("%d are retried, error %v; want %d", n, err, want)
	}
}

func retried(s *suite) {
	waiting, dead, delivered := s.addNew("a", 0), s.addNew("b", 0), s.addNew("c", 0)
	s.ok(s.store.Attempted(s.Context(), waiting, failure(after(1)), after(900), time.Time{}))
	s.kill(dead, after(1))
	s.accept(delivered, after(1), true)
	s.retry(inbox.Filter{}, after(50), 3)
	s.due(after(50).Add(-1))
	s.due(after(50), waiting, dead, delivered)
	for i, n := range []int64{waiting, dead, delivered} {
		want := NewEvent(string("abc"[i]), start)
		want.Number, want.State, want.Due, want.Since = n, inbox.Waiting, after(50), after(50)
		s.same("retried", s.load(n), want)
	}
	s.counts(3, 0, 0)
	s.ok(s.store.Attempted(s.Context(), dead, failure(after(51)), after(60), time.Time{}))
	e := s.load(dead)
	if e.Attempts != 1 || !e.First.Time.Equal(after(51)) || !e.Last.Time.Equal(after(51)) || !e.Since.Equal(after(50)) {
		s.Errorf("after another attempt, it is %+v", e)
	}
}

func retriedOld(s *suite) {
	n := s.addNew("a", 0)
	s.expire(after(1000), time.Time{}, time.Time{}, 10, 0, 0, n)
	s.retry(inbox.Filter{}, after(5000), 1)
	if got := s.store.Stats().Oldest; !got.Equal(after(5000)) {
		s.Errorf("the oldest has been waiting since %v", got)
	}
	s.expire(after(5000), time.Time{}, time.Time{}, 10, 0, 0)
	s.state(n, inbox.Waiting)
	s.expire(after(5001), time.Time{}, time.Time{}, 10, 0, 0, n)
}

func acceptedStay(s *suite) {
	gone, kept := s.addNew("a", 0), s.addNew("b", 0)
	s.ok(s.store.Accepted(s.Context(), gone, success(after(1)), false))
	s.ok(s.store.Accepted(s.Context(), kept, success(after(1)), true))
	s.retry(inbox.Filter{}, after(2), 0)
	s.retry(inbox.Filter{Number: []int64{gone, kept}}, after(2), 0)
	s.discard(inbox.Filter{State: []inbox.State{inbox.Accepted}})
	s.state(gone, inbox.Accepted)
	s.state(kept, inbox.Accepted)
}

func (s *suite) discard(f inbox.Filter, want ...int64) {
	s.Helper()
	var events []inbox.Event
	n, err := s.store.Discard(s.Context(), f, func(e inbox.Event) { events = append(events, e) })
	if err != nil || n != len(want) {
		s.Errorf("%d are discarded, error %v; want %d", n, err, want)
	}
	s.are(events, want...)
}

func discarded(s *suite) {
	waiting, dead, delivered, other := s.addNew("a", 0), s.addNew("b", 0), s.addNew("c", 0), s.addNew("d", 0)
	s.kill(dead, after(1))
	s.accept(delivered, after(1), true)
	s.discard(inbox.Filter{Number: []int64{waiting, dead, delivered, 999}}, waiting, dead, delivered)
	for _, n := range []int64{waiting, dead, delivered} {
		s.gone(n)
	}
	s.due(after(1000), other)
	s.counts(1, 0, 0)
	s.addNew("a", 0)
	var got inbox.Event
	n, err := s.store.Discard(s.Context(), inbox.Filter{ID: []string{"a"}}, func(e inbox.Event) { got = e })
	if s.ok(err); n != 1 || got.Key != dedupe.KeyOf("a") || got.Scope != "scope" {
		s.Errorf("%d were discarded: %+v", n, got)
	}
	s.discard(inbox.Filter{ID: []string{"a"}})
}

func filters(s *suite) {
	event := func(id, eventType, key string, arrived, status int) int64 {
		e := NewEvent(id, after(arrived))
		e.Type, e.OrderKey, e.Attempts = eventType, key, 1
		e.First = inbox.Attempt{Time: start, Status: 404}
		e.Last = inbox.Attempt{Time: start, Status: status}
		return s.add(e)
	}
	a := event("a", "message.received", "x", 10, 500)
	b := event("b", "message.sent", "x", 20, 0)
	c := event("c", "message.received", "", 30, 503)
	other := NewEvent("d", after(40))
	other.Target, other.Type, other.OrderKey = otherTarget, "contact.created", "y"
	d := s.add(other)
	s.ok(s.store.Attempted(s.Context(), c, inbox.Attempt{Time: after(50), Status: 503}, after(60), after(60)))
	s.ok(s.store.Accepted(s.Context(), d, inbox.Attempt{Time: after(50), Status: 500}, true))
	for _, test := range []struct {
		name   string
		filter inbox.Filter
		want   []int64
	}{
		{"all", inbox.Filter{}, []int64{a, b, c, d}},
		{"number", inbox.Filter{Number: []int64{c, a, a, 999}}, []int64{a, c}},
		{"state", inbox.Filter{State: []inbox.State{inbox.Dead}}, []int64{c}},
		{"states", inbox.Filter{State: []inbox.State{inbox.Dead, inbox.Waiting, inbox.Dead}}, []int64{a, b, c}},
		{"target", inbox.Filter{Target: []string{otherTarget}}, []int64{d}},
		{"targets", inbox.Filter{Target: []string{target, otherTarget, "x"}}, []int64{a, b, c, d}},
		{"no such target", inbox.Filter{Target: []string{""}}, nil},
		{"target and state", inbox.Filter{Target: []string{target}, State: []inbox.State{inbox.Waiting, inbox.Accepted}}, []int64{a, b}},
		{"no such state", inbox.Filter{State: []inbox.State{inbox.Delivered}}, nil},
		{"unknown state", inbox.Filter{State: []inbox.State{"x"}}, nil},
		{"type", inbox.Filter{Type: []string{"message.received"}}, []int64{a, c}},
		{"types", inbox.Filter{Type: []string{"contact.created", "message.sent"}}, []int64{b, d}},
		{"ID", inbox.Filter{ID: []string{"d"}}, []int64{d}},
		{"IDs", inbox.Filter{ID: []string{"d", "b", "unknown", "d"}}, []int64{b, d}},
		{"key", inbox.Filter{Key: []string{"x"}}, []int64{a, b}},
		{"no key", inbox.Filter{Key: []string{""}}, []int64{c}},
		{"since", inbox.Filter{Since: after(20)}, []int64{b, c, d}},
		{"until", inbox.Filter{Until: after(20)}, []int64{a}},
		{"since and until", inbox.Filter{Since: after(20), Until: after(40)}, []int64{b, c}},
		{"status", inbox.Filter{Status: []int{500}}, []int64{a, d}},
		{"no answer", inbox.Filter{Status: []int{0, 503}}, []int64{b, c}},
		{"number and state", inbox.Filter{Number: []int64{a, c}, State: []inbox.State{inbox.Dead}}, []int64{c}},
		{"number and ID", inbox.Filter{Number: []int64{a, c}, ID: []string{"a", "b"}}, []int64{a}},
		{"ID and type", inbox.Filter{ID: []string{"a", "b"}, Type: []string{"message.sent"}}, []int64{b}},
		{"state and status", inbox.Filter{State: []inbox.State{inbox.Waiting}, Status: []int{500}}, []int64{a}},
	} {
		events, err := s.store.List(s.Context(), test.filter, 0, 100)
		if err != nil || !slices.Equal(numbersOf(events), test.want) {
			s.Errorf("%s: got %d, error %v; want %d", test.name, numbersOf(events), err, test.want)
		}
		if n, err := s.store.Count(s.Context(), test.filter); n != len(test.want) || err != nil {
			s.Errorf("%s: %d are counted, error %v; want %d", test.name, n, err, len(test.want))
		}
	}
}

func groups(s *suite) {
	are := func(limit int, want ...inbox.Group) {
		s.Helper()
		got, err := s.store.Groups(s.Context(), limit)
		s.ok(err)
		if d := groupsDiffer(got, want); d != "" {
			s.Error(d)
		}
	}
	are(10)
	refused := inbox.Attempt{Status: 502, Cause: "unreachable", Error: "connection refused"}
	event := func(id string, arrived int, a inbox.Attempt) int64 {
		e := NewEvent(id, after(arrived))
		e.Attempts, e.First, e.Last = 1, a, a
		return s.add(e)
	}
	n := []int64{event("a", 3, refused), event("b", 1, refused), event("c", 2, refused), event("d", 4, failure(start)), event("e", 5, failure(start)), s.addNew("f", 6)}
	three := inbox.Group{State: inbox.Waiting, Status: 502, Cause: "unreachable", Error: "connection refused", Events: 3, Since: after(1), Next: after(6)}
	two := inbox.Group{State: inbox.Waiting, Status: 503, Cause: "status", Error: "the backend answered 503", Events: 2, Since: after(4), Next: after(9)}
	one := inbox.Group{State: inbox.Waiting, Events: 1, Since: after(6), Next: after(11)} // not tried
	are(10, three, two, one)
	are(2, three, two)
	s.ok(s.store.Attempted(s.Context(), n[1], failure(after(20)), after(90), time.Time{}))
	three.Events, three.Since, three.Next = 2, after(2), after(7)
	two.Events, two.Since = 3, after(1)
	are(10, two, three, one)
	s.ok(s.store.Attempted(s.Context(), n[1], failure(after(21)), after(91), time.Time{}))
	s.kill(n[4], after(20))
	s.accept(n[0], after(20), true)
	s.accept(n[2], after(20), false)
	dead := inbox.Group{State: inbox.Dead, Status: 503, Cause: "status", Error: "the backend answered 503", Events: 1, Since: after(5)}
	two.Events = 2
	are(1, two)
	s.ok(s.store.Attempted(s.Context(), n[5], failure(after(22)), after(92), time.Time{}))
	two.Events = 3
	are(10, two, dead)
	s.retry(inbox.Filter{Number: []int64{n[4], n[0]}}, after(50), 2)
	are(10, two, inbox.Group{State: inbox.Waiting, Events: 2, Since: after(3), Next: after(50)})
	s.discard(inbox.Filter{State: []inbox.State{inbox.Waiting}}, n[0], n[1], n[3], n[4], n[5])
	are(10)
}

// groupsDiffer says how groups differ, or is empty. The order of groups of the same
// size does not count.
func groupsDiffer(got, want []inbox.Group) string {
	bySize := slices.IsSortedFunc(got, func(a, b inbox.Group) int { return cmp.Compare(b.Events, a.Events) })
	normal := func(groups []inbox.Group) (all []string) {
		for _, g := range groups {
			g.Since, g.Next = g.Since.Round(0).UTC(), g.Next.Round(0).UTC()
			all = append(all, fmt.Sprintf("%+v", g))
		}
		slices.Sort(all)
		return all
	}
	if bySize && slices.Equal(normal(got), normal(want)) {
		return ""
	}
	return fmt.Sprintf("the groups are\n%+v, want\n%+v", got, want)
}

// A store may do this in steps, whose limits are to be crossed.
const manyEvents = 4321

func (s *suite) addMany() (numbers []int64) {
	numbers = make([]int64, manyEvents)
	var adding sync.WaitGroup
	for worker := range 64 {
		adding.Go(func() {
			for i := worker; i < manyEvents; i += 64 {
				e := NewEvent(fmt.Sprint(i), after(i))
				e.Type = []string{"message.sent", "message.received"}[i%2]
				n, err := s.store.Add(context.Background(), e, noLimit)
				if err != nil {
					s.Error(err)
				}
				numbers[i] = n
			}
		})
	}
	adding.Wait()
	slices.Sort(numbers)
	return numbers
}

func pages(s *suite) {
	numbers := s.addMany()
	for _, f := range []inbox.Filter{{}, {State: []inbox.State{inbox.Waiting}}, {Number: numbers}} {
		var got []int64
		after := int64(0)
		for {
			events, err := s.store.List(s.Context(), f, after, 1000)
			s.ok(err)
			if len(events) == 0 {
				break
			}
			if len(events) > 1000 || events[0].Number <= after {
				s.Fatalf("the page after %d has %d events, from %d", after, len(events), events[0].Number)
			}
			got = append(got, numbersOf(events)...)
			after = got[len(got)-1]
		}
		if !slices.Equal(got, numbers) {
			s.Errorf("%d events are listed, want %d", len(got), len(numbers))
		}
	}
	f := inbox.Filter{Type: []string{"message.sent"}}
	if n, err := s.store.Count(s.Context(), f); n != (manyEvents+1)/2 || err != nil {
		s.Errorf("%d are counted, error %v", n, err)
	}
}

func many(s *suite) {
	s.addMany()
	sent := inbox.Filter{Type: []string{"message.sent"}}
	s.retry(inbox.Filter{State: []inbox.State{inbox.Dead, inbox.Waiting}}, after(10_000), manyEvents)
	s.retry(sent, start.Add(-time.Hour), (manyEvents+1)/2)
	events, err := s.store.Due(s.Context(), target, start, 2*manyEvents, none)
	if s.ok(err); len(events) != (manyEvents+1)/2 {
		s.Errorf("%d are due", len(events))
	}
	seen := make(map[int64]bool)
	n, err := s.store.Discard(s.Context(), sent, func(e inbox.Event) {
		if e.Type != "message.sent" || seen[e.Number] {
			s.Errorf("it discarded %+v", e)
		}
		seen[e.Number] = true
	})
	if s.ok(err); n != (manyEvents+1)/2 || len(seen) != n {
		s.Errorf("%d were discarded, %d reported", n, len(seen))
	}
	s.counts(manyEvents/2, 0, 0)
}

func unknown(s *suite) {
	for _, n := range []int64{-1, 0, 1, 1 << 62} {
		s.gone(n)
		s.is(s.store.Attempted(s.Context(), n, failure(start), start, time.Time{}), inbox.ErrNotFound)
		s.is(s.store.Accepted(s.Context(), n, success(start), false), inbox.ErrNotFound)
		s.is(s.store.Remembered(s.Context(), n), inbox.ErrNotFound)
	}
}

func paused(s *suite) {
	if got := s.store.Stats().Paused; !got.IsZero() {
		s.Errorf("it is paused since %v", got)
	}
	s.ok(s.store.SetPaused(s.Context(), false))
	before := time.Now().Add(-time.Second) // the clock of a store may differ
	s.ok(s.store.SetPaused(s.Context(), true))
	since := s.store.Stats().Paused
	if since.Before(before) || since.After(time.Now().Add(time.Second)) {
		s.Errorf("it is paused since %v", since)
	}
	time.Sleep(time.Millisecond)
	s.ok(s.store.SetPaused(s.Context(), true))
	if again := s.store.Stats().Paused; !again.Equal(since) {
		s.Errorf("it is paused since %v, want %v", again, since)
	}
	n := s.addNew("a", 0)
	s.due(after(1000), n) // whether it is delivered is not up to the store
	s.ok(s.store.SetPaused(s.Context(), false))
	if got := s.store.Stats().Paused; !got.IsZero() {
		s.Errorf("it is paused since %v", got)
	}
}

func stats(s *suite) {
	got := s.store.Stats()
	if got.Backing == "" || got.Err != nil || !got.Oldest.IsZero() || got.Bytes != 0 {
		s.Errorf("an empty store describes itself as %+v", got)
	}
	eventA, eventB := NewEvent("a", after(10)), NewEvent("bb", after(20))
	b, a := s.add(eventB), s.add(eventA)
	got = s.store.Stats()
	if want := eventA.Size() + eventB.Size(); got.Waiting != 2 || got.Bytes != want || !got.Oldest.Equal(after(10)) || got.Err != nil {
		s.Errorf("got %+v, want %d bytes", got, want)
	}
	s.kill(a, after(30))
	got = s.store.Stats()
	if want := eventA.Size() + eventB.Size(); got.Waiting != 1 || got.Dead != 1 || got.Bytes != want || !got.Oldest.Equal(after(20)) {
		s.Errorf("got %+v, want %d bytes", got, want)
	}
	s.accept(b, after(30), true)
	got = s.store.Stats()
	if want := eventA.Size(); got.Waiting != 0 || got.Dead != 1 || got.Delivered != 1 || got.Bytes != want || !got.Oldest.IsZero() {
		s.Errorf("got %+v, want %d bytes", got, want)
	}
}

const racers = 16

// race calls f in many goroutines, and returns how many of them had no error. The
// others must have one.
func (s *suite) race(lost error, f func(racer int) error) (won int) {
	var mu sync.Mutex
	var running sync.WaitGroup
	begin := make(chan struct{})
	for racer := range racers {
		running.Go(func() {
			<-begin
			err := f(racer)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, lost) {
				s.Errorf("a racer got %v", err)
			}
		})
	}
	close(begin)
	running.Wait()
	return won
}

func lastPlace(s *suite) {
	e := NewEvent("round 10 racer 10", start)
	size := e.Size()
	for round := 10; round < 20; round++ {
		won := s.race(inbox.ErrFull, func(racer int) error {
			_, err := s.store.Add(s.Context(), NewEvent(fmt.Sprintf("round %d racer %d", round, racer+10), start), size*int64(round-9))
			return err
		})
		if won != 1 {
			s.Errorf("%d got the last place", won)
		}
	}
	s.counts(10, 0, 0)
}

func oneAdds(s *suite) {
	for round := range 10 {
		won := s.race(inbox.ErrKept, func(int) error {
			_, err := s.store.Add(s.Context(), NewEvent(fmt.Sprint(round), start), noLimit)
			return err
		})
		if won != 1 {
			s.Errorf("%d added one event", won)
		}
	}
	s.counts(10, 0, 0)
}

func concurrent(s *suite) {
	n := s.addNew("a", 0)
	if done := s.race(nil, func(racer int) error {
		return s.store.Attempted(s.Context(), n, failure(after(racer+1)), after(100), time.Time{})
	}); done != racers || s.load(n).Attempts != racers {
		s.Errorf("%d of %d attempts are counted", s.load(n).Attempts, done)
	}
	var removed sync.Map
	s.race(nil, func(racer int) error {
		_, err := s.store.Discard(s.Context(), inbox.Filter{}, func(e inbox.Event) {
			if _, twice := removed.LoadOrStore(e.Number, racer); twice {
				s.Errorf("event %d was discarded twice", e.Number)
			}
		})
		return err
	})
	s.gone(n)
}
