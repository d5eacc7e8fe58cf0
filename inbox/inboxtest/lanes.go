package inboxtest

import (
	"fmt"
	"slices"
	"time"

	"github.com/buzzbip/caddy-webhook/inbox"
)

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
