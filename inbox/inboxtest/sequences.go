package inboxtest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
)

// testSequences runs random sequences of operations on a store and on the model,
// and compares their answers. After each operation it compares all events.
func testSequences(t *testing.T, c Config) {
	store, last := c.Open(t), int64(0)
	rapid.Check(t, func(rt *rapid.T) {
		s := &sequence{T: rt, tb: t, config: c, store: store, base: last, model: NewMemory()}
		s.model.last = last
		rt.Repeat(map[string]func(*rapid.T){
			"add":        s.add,
			"attempted":  s.attempted,
			"accepted":   s.accepted,
			"remembered": s.remembered,
			"expire":     s.expire,
			"retry":      s.retry,
			"discard":    s.discard,
			"due":        s.due,
			"advance":    s.advance,
			"oldest":     s.oldest,
			"list":       s.list,
			"pause":      s.pause,
			"reopen":     s.reopen,
			"":           s.compare,
		})
		s.empty()
		store, last = s.store, s.model.last
	})
}

type sequence struct {
	*rapid.T
	tb     testing.TB
	config Config
	store  inbox.Store
	model  *Memory
	base   int64 // the last number before this sequence
	clock  int
	places int64 // in lanes
}

// empty leaves the store to the next sequence.
func (s *sequence) empty() {
	ctx := context.Background()
	events, err := s.store.List(ctx, inbox.Filter{State: []inbox.State{inbox.Accepted}}, 0, 1000)
	for _, e := range events {
		err = errors.Join(err, s.store.Remembered(ctx, e.Number))
	}
	_, discardErr := s.store.Discard(ctx, inbox.Filter{}, func(inbox.Event) {})
	if err := errors.Join(err, discardErr, s.store.SetPaused(ctx, false)); err != nil {
		s.Fatal(err)
	}
}

// same fails unless two results are the same, which may be errors.
func (s *sequence) same(what string, got, want any) {
	gotErr, ok := got.(error)
	wantErr, wantOK := want.(error)
	if ok && wantOK && errors.Is(gotErr, wantErr) || reflect.DeepEqual(got, want) {
		return
	}
	s.Fatalf("%s: got %v, want %v", what, got, want)
}

func (s *sequence) sameEvents(what string, got, want []inbox.Event) {
	s.same(what, numbersOf(got), numbersOf(want))
	for i := range got {
		s.sameEvent(what, got[i], want[i])
	}
}

func (s *sequence) sameEvent(what string, got, want inbox.Event) {
	if d := difference(got, want); d != "" {
		s.Fatalf("%s: %s", what, d)
	}
}

// now returns a later time with each call.
func (s *sequence) now() time.Time { s.clock++; return after(s.clock) }

// sometime returns a time that is before or after others, or none.
func sometime(t *rapid.T, name string) time.Time {
	if seconds := rapid.IntRange(-10, 100).Draw(t, name); seconds >= 0 {
		return after(seconds)
	}
	return time.Time{}
}

func draw[T any](t *rapid.T, name string, from ...T) T { return rapid.SampledFrom(from).Draw(t, name) }

// number returns the number of an event that may exist.
func (s *sequence) number(t *rapid.T) int64 {
	return s.base + rapid.Int64Range(0, 12).Draw(t, "number")
}

func (s *sequence) filter(t *rapid.T) (f inbox.Filter) {
	switch rapid.IntRange(0, 9).Draw(t, "filter") {
	case 0:
		for range rapid.IntRange(1, 4).Draw(t, "numbers") {
			f.Number = append(f.Number, s.number(t))
		}
	case 1:
		f.State = rapid.SliceOfN(rapid.SampledFrom([]inbox.State{inbox.Waiting, inbox.Dead, inbox.Accepted, inbox.Delivered}), 1, 3).Draw(t, "states")
	case 2:
		f.ID = rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 2).Draw(t, "IDs")
	case 3:
		f.Type = []string{"message.sent"}
	case 4:
		f.Key = []string{"x"}
	case 5:
		f.Since, f.Until = sometime(t, "since"), sometime(t, "until")
	case 6:
		f.Status = []int{503}
	case 7:
		f.Target = []string{draw(t, "target", target, otherTarget)}
	case 8:
		f.State, f.Status = []inbox.State{inbox.Waiting}, []int{0}
	}
	return f
}

func (s *sequence) add(t *rapid.T) {
	e := NewEvent(draw(t, "ID", "a", "b", "c"), s.now())
	e.Scope = draw(t, "scope", "one", "two")
	e.Target = draw(t, "target", target, otherTarget)
	e.Digest = draw(t, "digest", dedupe.Digest(1), 2)
	e.Type = draw(t, "type", "message.received", "message.sent")
	if e.OrderKey = draw(t, "key", "", "x", "y"); e.OrderKey != "" {
		s.places += 2
		e.Sequence = s.places
		if rapid.Bool().Draw(t, "stored late") {
			e.Sequence -= 15 // no other event has an odd one
		}
	}
	e.Body = make([]byte, rapid.IntRange(0, 10).Draw(t, "size"))
	e.Due = sometime(t, "due")
	if e.Due.IsZero() {
		e.Due = e.Arrived
	}
	if rapid.Bool().Draw(t, "attempted") {
		e.Attempts, e.First, e.Last = 1, failure(e.Arrived), failure(e.Arrived)
	}
	maxSize := draw(t, "max size", 4*e.Size(), noLimit)
	if rapid.IntRange(0, 3).Draw(t, "delivered") == 0 {
		e.State, e.Settled, maxSize = inbox.Delivered, s.now(), noLimit
	}
	got, gotErr := s.store.Add(context.Background(), e, maxSize)
	want, wantErr := s.model.Add(context.Background(), e, maxSize)
	s.same("add", gotErr, wantErr)
	s.same("number", got, want)
}

func (s *sequence) attempted(t *rapid.T) {
	n, at, due, dead := s.number(t), s.now(), sometime(t, "due"), time.Time{}
	if due.IsZero() {
		due = at
	}
	if rapid.Bool().Draw(t, "dead") {
		dead = at
	}
	for range rapid.IntRange(1, 2).Draw(t, "times") {
		s.same("attempted", s.store.Attempted(context.Background(), n, failure(at), due, dead), s.model.Attempted(context.Background(), n, failure(at), due, dead))
	}
}

func (s *sequence) accepted(t *rapid.T) {
	n, at, keep := s.number(t), s.now(), rapid.Bool().Draw(t, "keep")
	s.same("accepted", s.store.Accepted(context.Background(), n, success(at), keep), s.model.Accepted(context.Background(), n, success(at), keep))
}

func (s *sequence) remembered(t *rapid.T) {
	n := s.number(t)
	s.same("remembered", s.store.Remembered(context.Background(), n), s.model.Remembered(context.Background(), n))
}

func (s *sequence) expire(t *rapid.T) {
	waiting, died, delivered, limit := sometime(t, "waiting"), sometime(t, "died"), sometime(t, "delivered"), rapid.IntRange(1, 5).Draw(t, "limit")
	got, err := s.store.Expire(context.Background(), expiry, waiting, died, delivered, limit)
	want, _ := s.model.Expire(context.Background(), expiry, waiting, died, delivered, limit)
	slices.Sort(got.Died)
	slices.Sort(want.Died)
	s.same("expire", fmt.Sprint(got, err), fmt.Sprint(want, nil))
}

func (s *sequence) retry(t *rapid.T) {
	f, now := s.filter(t), s.now()
	got, err := s.store.Retry(context.Background(), f, now)
	want, _ := s.model.Retry(context.Background(), f, now)
	s.same("retry", fmt.Sprint(got, err), fmt.Sprint(want, nil))
}

func (s *sequence) discard(t *rapid.T) {
	f := s.filter(t)
	var got, want []inbox.Event
	gotN, err := s.store.Discard(context.Background(), f, func(e inbox.Event) { got = append(got, e) })
	wantN, _ := s.model.Discard(context.Background(), f, func(e inbox.Event) { want = append(want, e) })
	s.same("discard", fmt.Sprint(gotN, err), fmt.Sprint(wantN, nil))
	s.sameEvents("discard", got, want)
}

func (s *sequence) due(t *rapid.T) {
	now, limit, skipped := sometime(t, "now"), rapid.IntRange(1, 4).Draw(t, "limit"), s.number(t)
	skip := func(n int64) bool { return n == skipped }
	target := draw(t, "target", target, otherTarget)
	got, err := s.store.Due(context.Background(), target, now, limit, skip)
	want, _ := s.model.Due(context.Background(), target, now, limit, skip)
	s.same("due", err, nil)
	s.sameEvents("due", got, want)
	next, err := s.store.NextDue(context.Background(), target, skip)
	wantNext, _ := s.model.NextDue(context.Background(), target, skip)
	if err != nil || !next.Equal(wantNext) {
		s.Fatalf("the next is due at %v, error %v; want %v", next, err, wantNext)
	}
}

func (s *sequence) advance(t *rapid.T) {
	latest := s.now()
	got, err := s.store.Advance(context.Background(), latest, 1000)
	want, _ := s.model.Advance(context.Background(), latest, 1000)
	s.same("advance", fmt.Sprint(got, err), fmt.Sprint(want, nil))
}

func (s *sequence) oldest(t *rapid.T) {
	lane := inbox.LaneOf(draw(t, "target", target, otherTarget), draw(t, "scope", "one", "two"), draw(t, "key", "x", "y"))
	gotWaits, waitsErr := s.store.Waits(context.Background(), lane)
	wantWaits, _ := s.model.Waits(context.Background(), lane)
	s.same("waits", fmt.Sprint(gotWaits, waitsErr), fmt.Sprint(wantWaits, nil))
	got, err := s.store.Targets(context.Background())
	want, _ := s.model.Targets(context.Background())
	slices.Sort(got)
	s.same("targets", fmt.Sprint(got, err), fmt.Sprint(want, nil))
	waiting, dead, delivered, err := s.store.Oldest(context.Background())
	wantWaiting, wantDead, wantDelivered, _ := s.model.Oldest(context.Background())
	if err != nil || !waiting.Equal(wantWaiting) || !dead.Equal(wantDead) || !delivered.Equal(wantDelivered) {
		s.Fatalf("the oldest are of %v, %v and %v, error %v; want %v, %v and %v", waiting, dead, delivered, err, wantWaiting, wantDead, wantDelivered)
	}
}

func (s *sequence) list(t *rapid.T) {
	f, after, limit := s.filter(t), s.number(t), rapid.IntRange(1, 4).Draw(t, "limit")
	got, err := s.store.List(context.Background(), f, after, limit)
	want, _ := s.model.List(context.Background(), f, after, limit)
	s.same("list", err, nil)
	s.sameEvents("list", got, want)
	n, err := s.store.Count(context.Background(), f)
	wantN, _ := s.model.Count(context.Background(), f)
	s.same("count", fmt.Sprint(n, err), fmt.Sprint(wantN, nil))
}

func (s *sequence) pause(t *rapid.T) {
	paused := rapid.Bool().Draw(t, "paused")
	s.same("pause", s.store.SetPaused(context.Background(), paused), s.model.SetPaused(context.Background(), paused))
}

func (s *sequence) reopen(*rapid.T) {
	if s.config.Reopen != nil {
		s.store = s.config.Reopen(s.tb, s.store)
	}
}

// compare compares everything that the store keeps with the model.
func (s *sequence) compare(*rapid.T) {
	ctx := context.Background()
	got, err := s.store.List(ctx, inbox.Filter{}, 0, 1000)
	want, _ := s.model.List(ctx, inbox.Filter{}, 0, 1000)
	s.same("list all", err, nil)
	s.sameEvents("list all", got, want)
	for _, e := range want {
		got, err := s.store.Load(ctx, e.Number)
		want, _ := s.model.Load(ctx, e.Number)
		s.same("load", err, nil)
		s.sameEvent("load", got, want)
		got, err = s.store.Find(ctx, e.Scope, e.Key)
		want, _ = s.model.Find(ctx, e.Scope, e.Key)
		s.same("find", err, nil)
		s.sameEvent("find", got, want)
	}
	gotGroups, err := s.store.Groups(ctx, 100)
	wantGroups, _ := s.model.Groups(ctx, 100)
	s.same("groups", err, nil)
	s.same("groups", groupsDiffer(gotGroups, wantGroups), "")
	gotStats, wantStats := s.store.Stats(), s.model.Stats()
	if !gotStats.Oldest.Equal(wantStats.Oldest) || gotStats.Paused.IsZero() != wantStats.Paused.IsZero() {
		s.Fatalf("stats: got %+v, want %+v", gotStats, wantStats)
	}
	gotStats.Backing, gotStats.Oldest, gotStats.Paused = wantStats.Backing, wantStats.Oldest, wantStats.Paused
	s.same("stats", gotStats, wantStats)
}
