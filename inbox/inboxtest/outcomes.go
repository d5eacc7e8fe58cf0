package inboxtest

import (
	"fmt"
	"slices"
	"time"

	"github.com/buzzbip/caddy-webhook/inbox"
)

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
