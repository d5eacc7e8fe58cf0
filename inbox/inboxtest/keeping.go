package inboxtest

import (
	"bytes"
	"fmt"
	"net/http"
	"reflect"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
)

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

func unknown(s *suite) {
	for _, n := range []int64{-1, 0, 1, 1 << 62} {
		s.gone(n)
		s.is(s.store.Attempted(s.Context(), n, failure(start), start, time.Time{}), inbox.ErrNotFound)
		s.is(s.store.Accepted(s.Context(), n, success(start), false), inbox.ErrNotFound)
		s.is(s.store.Remembered(s.Context(), n), inbox.ErrNotFound)
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
