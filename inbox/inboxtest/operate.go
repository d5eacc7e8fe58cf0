package inboxtest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
)

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
