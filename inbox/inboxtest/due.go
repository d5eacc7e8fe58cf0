package inboxtest

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/buzzbip/caddy-webhook/inbox"
)

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
