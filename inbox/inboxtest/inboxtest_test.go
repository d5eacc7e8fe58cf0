package inboxtest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
)

// faulty is a store with a fault: a function that is set is called instead.
type faulty struct {
	inbox.Store
	add        func(s inbox.Store, e inbox.Event, maxSize int64) (int64, error)
	find       func(s inbox.Store, scope string, key dedupe.Key) (inbox.Event, error)
	event      func(e *inbox.Event) // changes what Load returns
	targets    func(s inbox.Store) ([]string, error)
	arrival    func(s inbox.Store) int64
	waits      func(s inbox.Store, lane inbox.Lane) (bool, error)
	due        func(s inbox.Store, target string, now time.Time, limit int, skip func(int64) bool) ([]inbox.Event, error)
	nextDue    func(s inbox.Store, target string, skip func(int64) bool) (time.Time, error)
	advance    func(s inbox.Store, latest time.Time, limit int) (int, error)
	attempted  func(s inbox.Store, n int64, a inbox.Attempt, due, dead time.Time) error
	accepted   func(s inbox.Store, n int64, a inbox.Attempt, keep bool) error
	remembered func(s inbox.Store, n int64) error
	expire     func(s inbox.Store, now, waiting, died, delivered time.Time, limit int) (inbox.Expired, error)
	oldest     func(s inbox.Store) (waiting, dead, delivered time.Time, err error)
	list       func(s inbox.Store, f inbox.Filter, after int64, limit int) ([]inbox.Event, error)
	count      func(s inbox.Store, f inbox.Filter) (int, error)
	retry      func(s inbox.Store, f inbox.Filter, now time.Time) (int, error)
	discard    func(s inbox.Store, f inbox.Filter, discarded func(inbox.Event)) (int, error)
	groups     func(s inbox.Store, limit int) ([]inbox.Group, error)
	pause      func(s inbox.Store, paused bool) error
	stats      func(stats *inbox.Stats)
}

var ctx = context.Background()

func (f faulty) Add(_ context.Context, e inbox.Event, maxSize int64) (int64, error) {
	if f.add != nil {
		return f.add(f.Store, e, maxSize)
	}
	return f.Store.Add(ctx, e, maxSize)
}

func (f faulty) Find(_ context.Context, scope string, key dedupe.Key) (inbox.Event, error) {
	if f.find != nil {
		return f.find(f.Store, scope, key)
	}
	return f.Store.Find(ctx, scope, key)
}

func (f faulty) Load(_ context.Context, n int64) (inbox.Event, error) {
	e, err := f.Store.Load(ctx, n)
	if f.event != nil && err == nil {
		f.event(&e)
	}
	return e, err
}

func (f faulty) Targets(context.Context) ([]string, error) {
	if f.targets != nil {
		return f.targets(f.Store)
	}
	return f.Store.Targets(ctx)
}

func (f faulty) Advance(_ context.Context, latest time.Time, limit int) (int, error) {
	if f.advance != nil {
		return f.advance(f.Store, latest, limit)
	}
	return f.Store.Advance(ctx, latest, limit)
}

func (f faulty) Oldest(context.Context) (waiting, dead, delivered time.Time, err error) {
	if f.oldest != nil {
		return f.oldest(f.Store)
	}
	return f.Store.Oldest(ctx)
}

func (f faulty) Arrival() int64 {
	if f.arrival != nil {
		return f.arrival(f.Store)
	}
	return f.Store.Arrival()
}

func (f faulty) Waits(_ context.Context, lane inbox.Lane) (bool, error) {
	if f.waits != nil {
		return f.waits(f.Store, lane)
	}
	return f.Store.Waits(ctx, lane)
}

func (f faulty) Due(_ context.Context, target string, now time.Time, limit int, skip func(int64) bool) ([]inbox.Event, error) {
	if f.due != nil {
		return f.due(f.Store, target, now, limit, skip)
	}
	return f.Store.Due(ctx, target, now, limit, skip)
}

func (f faulty) NextDue(_ context.Context, target string, skip func(int64) bool) (time.Time, error) {
	if f.nextDue != nil {
		return f.nextDue(f.Store, target, skip)
	}
	return f.Store.NextDue(ctx, target, skip)
}

func (f faulty) Attempted(_ context.Context, n int64, a inbox.Attempt, due, dead time.Time) error {
	if f.attempted != nil {
		return f.attempted(f.Store, n, a, due, dead)
	}
	return f.Store.Attempted(ctx, n, a, due, dead)
}

func (f faulty) Accepted(_ context.Context, n int64, a inbox.Attempt, keep bool) error {
	if f.accepted != nil {
		return f.accepted(f.Store, n, a, keep)
	}
	return f.Store.Accepted(ctx, n, a, keep)
}

func (f faulty) Remembered(_ context.Context, n int64) error {
	if f.remembered != nil {
		return f.remembered(f.Store, n)
	}
	return f.Store.Remembered(ctx, n)
}

func (f faulty) Expire(_ context.Context, now, waiting, died, delivered time.Time, limit int) (inbox.Expired, error) {
	if f.expire != nil {
		return f.expire(f.Store, now, waiting, died, delivered, limit)
	}
	return f.Store.Expire(ctx, now, waiting, died, delivered, limit)
}

func (f faulty) List(_ context.Context, filter inbox.Filter, after int64, limit int) ([]inbox.Event, error) {
	if f.list != nil {
		return f.list(f.Store, filter, after, limit)
	}
	return f.Store.List(ctx, filter, after, limit)
}

func (f faulty) Count(_ context.Context, filter inbox.Filter) (int, error) {
	if f.count != nil {
		return f.count(f.Store, filter)
	}
	return f.Store.Count(ctx, filter)
}

func (f faulty) Retry(_ context.Context, filter inbox.Filter, now time.Time) (int, error) {
	if f.retry != nil {
		return f.retry(f.Store, filter, now)
	}
	return f.Store.Retry(ctx, filter, now)
}

func (f faulty) Discard(_ context.Context, filter inbox.Filter, discarded func(inbox.Event)) (int, error) {
	if f.discard != nil {
		return f.discard(f.Store, filter, discarded)
	}
	return f.Store.Discard(ctx, filter, discarded)
}

func (f faulty) Groups(_ context.Context, limit int) ([]inbox.Group, error) {
	if f.groups != nil {
		return f.groups(f.Store, limit)
	}
	return f.Store.Groups(ctx, limit)
}

func (f faulty) SetPaused(_ context.Context, paused bool) error {
	if f.pause != nil {
		return f.pause(f.Store, paused)
	}
	return f.Store.SetPaused(ctx, paused)
}

func (f faulty) Stats() inbox.Stats {
	stats := f.Store.Stats()
	if f.stats != nil {
		f.stats(&stats)
	}
	return stats
}

var faults = map[string]faulty{
	"there is no bound": {add: func(s inbox.Store, e inbox.Event, _ int64) (int64, error) { return s.Add(ctx, e, noLimit) }},
	"the bound is one event too high": {add: func(s inbox.Store, e inbox.Event, maxSize int64) (int64, error) {
		return s.Add(ctx, e, maxSize+e.Size())
	}},
	"the bound is one byte too high": {add: func(s inbox.Store, e inbox.Event, maxSize int64) (int64, error) { return s.Add(ctx, e, maxSize+1) }},
	"the bound is checked before the event is added": {add: func(s inbox.Store, e inbox.Event, maxSize int64) (int64, error) {
		if s.Stats().Bytes+e.Size() > maxSize {
			return 0, inbox.ErrFull
		}
		time.Sleep(time.Millisecond)
		return s.Add(ctx, e, noLimit)
	}},
	"an event is kept twice": {add: func(s inbox.Store, e inbox.Event, maxSize int64) (int64, error) {
		n, err := s.Add(ctx, e, maxSize)
		if err == inbox.ErrKept {
			return n + 1, nil
		}
		return n, err
	}},
	"the digest is not compared": {add: func(s inbox.Store, e inbox.Event, maxSize int64) (int64, error) {
		if _, err := s.Find(ctx, e.Scope, e.Key); err == nil {
			return 0, inbox.ErrKept
		}
		return s.Add(ctx, e, maxSize)
	}},
	"a delivered event waits when it is added": {add: func(s inbox.Store, e inbox.Event, maxSize int64) (int64, error) {
		e.State = ""
		return s.Add(ctx, e, maxSize)
	}},
	"the scope is ignored": {find: func(s inbox.Store, _ string, key dedupe.Key) (e inbox.Event, err error) {
		for _, scope := range []string{"scope", "other", "one", "two"} {
			if e, err = s.Find(ctx, scope, key); err == nil {
				return e, nil
			}
		}
		return e, err
	}},
	"nothing is found":  {find: func(inbox.Store, string, dedupe.Key) (inbox.Event, error) { return inbox.Event{}, inbox.ErrNotFound }},
	"the body is cut":   {event: func(e *inbox.Event) { e.Body = e.Body[:len(e.Body)/2] }},
	"headers are lost":  {event: func(e *inbox.Event) { e.Request.Header = nil }},
	"times are rounded": {event: func(e *inbox.Event) { e.Due = e.Due.Truncate(time.Second) }},
	"the due time is passed": {due: func(s inbox.Store, target string, now time.Time, limit int, skip func(int64) bool) ([]inbox.Event, error) {
		return s.Due(ctx, target, now.Add(time.Second), limit, skip)
	}},
	"there is no limit": {due: func(s inbox.Store, target string, now time.Time, _ int, skip func(int64) bool) ([]inbox.Event, error) {
		return s.Due(ctx, target, now, 100, skip)
	}},
	"nothing is skipped": {due: func(s inbox.Store, target string, now time.Time, limit int, _ func(int64) bool) ([]inbox.Event, error) {
		return s.Due(ctx, target, now, limit, none)
	}},
	"skipped events count to the limit": {due: func(s inbox.Store, target string, now time.Time, limit int, skip func(int64) bool) (due []inbox.Event, err error) {
		events, err := s.Due(ctx, target, now, limit, none)
		for _, e := range events {
			if !skip(e.Number) {
				due = append(due, e)
			}
		}
		return due, err
	}},
	"events are due as they were before": {due: func(s inbox.Store, target string, now time.Time, limit int, skip func(int64) bool) (due []inbox.Event, _ error) {
		events, err := s.Due(ctx, target, now, 1000, none)
		for _, e := range events {
			if len(due) < limit && !skip(e.Number) {
				due = append(due, e)
			}
		}
		return due, err
	}},
	"skipped events are next": {nextDue: func(s inbox.Store, target string, _ func(int64) bool) (time.Time, error) {
		return s.NextDue(ctx, target, none)
	}},
	"all have one target": {event: func(e *inbox.Event) { e.Target = "" }},
	"targets are those of all events": {targets: func(s inbox.Store) (targets []string, err error) {
		events, err := s.List(ctx, inbox.Filter{}, 0, 1e6)
		for _, e := range events {
			targets = append(targets, e.Target)
		}
		slices.Sort(targets)
		return slices.Compact(targets), err
	}},
	"targets come more than once": {targets: func(s inbox.Store) (targets []string, err error) {
		events, err := s.List(ctx, inbox.Filter{State: []inbox.State{inbox.Waiting}}, 0, 1e6)
		for _, e := range events {
			targets = append(targets, e.Target)
		}
		return targets, err
	}},
	"there is one target": {targets: func(s inbox.Store) ([]string, error) {
		targets, err := s.Targets(ctx)
		return targets[:min(len(targets), 1)], err
	}},
	"events of another target are due": {due: func(s inbox.Store, _ string, now time.Time, limit int, skip func(int64) bool) ([]inbox.Event, error) {
		return s.Due(ctx, otherTarget, now, limit, skip)
	}},
	"the next event is one of another target": {nextDue: func(s inbox.Store, _ string, skip func(int64) bool) (time.Time, error) {
		return s.NextDue(ctx, target, skip)
	}},
	"blocked events are due": {due: func(s inbox.Store, target string, now time.Time, limit int, skip func(int64) bool) (due []inbox.Event, err error) {
		events, err := s.List(ctx, inbox.Filter{State: []inbox.State{inbox.Waiting}, Target: []string{target}}, 0, 1e6)
		slices.SortStableFunc(events, func(a, b inbox.Event) int { return a.Due.Compare(b.Due) })
		for _, e := range events {
			if len(due) < limit && !e.Due.After(now) && !skip(e.Number) {
				due = append(due, e)
			}
		}
		return due, err
	}},
	"blocked events are next": {nextDue: func(s inbox.Store, target string, skip func(int64) bool) (next time.Time, err error) {
		events, err := s.List(ctx, inbox.Filter{State: []inbox.State{inbox.Waiting}, Target: []string{target}}, 0, 1e6)
		for _, e := range events {
			if !skip(e.Number) && (next.IsZero() || e.Due.Before(next)) {
				next = e.Due
			}
		}
		return next, err
	}},
	"events are in the order in which they were stored": {add: func(s inbox.Store, e inbox.Event, maxSize int64) (int64, error) {
		e.Sequence = s.Arrival()
		return s.Add(ctx, e, maxSize)
	}},
	"lanes are those of targets": {add: func(s inbox.Store, e inbox.Event, maxSize int64) (int64, error) {
		e.OrderKey = min(e.OrderKey, "x")
		return s.Add(ctx, e, maxSize)
	}},
	"nothing of a lane waits":     {waits: func(inbox.Store, inbox.Lane) (bool, error) { return false, nil }},
	"what is blocked is not said": {event: func(e *inbox.Event) { e.Blocked = false }},
	"arrivals repeat":             {arrival: func(s inbox.Store) int64 { return s.Arrival() / 2 }},
	"nothing is advanced":         {advance: func(inbox.Store, time.Time, int) (int, error) { return 0, nil }},
	"all are advanced":            {advance: func(s inbox.Store, latest time.Time, _ int) (int, error) { return s.Advance(ctx, latest, 1e6) }},
	"events are advanced to an earlier time": {advance: func(s inbox.Store, latest time.Time, limit int) (int, error) {
		return s.Advance(ctx, latest.Add(-time.Nanosecond), limit)
	}},
	"the oldest that waits is not known": {oldest: func(s inbox.Store) (_, dead, delivered time.Time, err error) {
		_, dead, delivered, err = s.Oldest(ctx)
		return time.Time{}, dead, delivered, err
	}},
	"the oldest that died is not known": {oldest: func(s inbox.Store) (waiting, _, delivered time.Time, err error) {
		waiting, _, delivered, err = s.Oldest(ctx)
		return waiting, time.Time{}, delivered, err
	}},
	"the oldest that was delivered is not known": {oldest: func(s inbox.Store) (waiting, dead, _ time.Time, err error) {
		waiting, dead, _, err = s.Oldest(ctx)
		return waiting, dead, time.Time{}, err
	}},
	"events died when they could first": {expire: func(s inbox.Store, _, waiting, died, delivered time.Time, limit int) (inbox.Expired, error) {
		return s.Expire(ctx, waiting, waiting, died, delivered, limit)
	}},
	"since when an event waits is not known": {event: func(e *inbox.Event) { e.Since = e.Arrived }},
	"filters of targets are ignored": {list: func(s inbox.Store, f inbox.Filter, after int64, limit int) ([]inbox.Event, error) {
		f.Target = nil
		return s.List(ctx, f, after, limit)
	}},
	"failures are not recorded": {attempted: func(inbox.Store, int64, inbox.Attempt, time.Time, time.Time) error { return nil }},
	"nothing dies of a failure": {attempted: func(s inbox.Store, n int64, a inbox.Attempt, due, _ time.Time) error {
		return s.Attempted(ctx, n, a, due, time.Time{})
	}},
	"repeated attempts count": {attempted: func(s inbox.Store, n int64, a inbox.Attempt, due, dead time.Time) error {
		a.Time = time.Now()
		return s.Attempted(ctx, n, a, due, dead)
	}},
	"a late failure is an error": {attempted: func(s inbox.Store, n int64, a inbox.Attempt, due, dead time.Time) error {
		if e, _ := s.Load(ctx, n); e.State != inbox.Waiting {
			return inbox.ErrNotFound
		}
		return s.Attempted(ctx, n, a, due, dead)
	}},
	"bodies are always kept": {accepted: func(s inbox.Store, n int64, a inbox.Attempt, _ bool) error { return s.Accepted(ctx, n, a, true) }},
	"bodies are never kept":  {accepted: func(s inbox.Store, n int64, a inbox.Attempt, _ bool) error { return s.Accepted(ctx, n, a, false) }},
	"accepted events are removed": {accepted: func(s inbox.Store, n int64, a inbox.Attempt, keep bool) error {
		err := s.Accepted(ctx, n, a, keep)
		_ = s.Remembered(ctx, n)
		return err
	}},
	"accepted events stay": {remembered: func(s inbox.Store, n int64) error { _, err := s.Load(ctx, n); return err }},
	"nothing expires": {expire: func(inbox.Store, time.Time, time.Time, time.Time, time.Time, int) (inbox.Expired, error) {
		return inbox.Expired{}, nil
	}},
	"everything expires at once": {expire: func(s inbox.Store, now, waiting, died, delivered time.Time, _ int) (inbox.Expired, error) {
		return s.Expire(ctx, now, waiting, died, delivered, 1000)
	}},
	"no time is always": {expire: func(s inbox.Store, now, waiting, died, delivered time.Time, limit int) (inbox.Expired, error) {
		if died.IsZero() {
			died = time.Now()
		}
		return s.Expire(ctx, now, waiting, died, delivered, limit)
	}},
	"expired events are not reported": {expire: func(s inbox.Store, now, waiting, died, delivered time.Time, limit int) (inbox.Expired, error) {
		expired, err := s.Expire(ctx, now, waiting, died, delivered, limit)
		expired.Died = nil
		return expired, err
	}},
	"removed events are not counted": {expire: func(s inbox.Store, now, waiting, died, delivered time.Time, limit int) (inbox.Expired, error) {
		expired, err := s.Expire(ctx, now, waiting, died, delivered, limit)
		expired.Dead = 0
		return expired, err
	}},
	"filters are ignored": {list: func(s inbox.Store, _ inbox.Filter, after int64, limit int) ([]inbox.Event, error) {
		return s.List(ctx, inbox.Filter{}, after, limit)
	}},
	"pages overlap": {list: func(s inbox.Store, f inbox.Filter, after int64, limit int) ([]inbox.Event, error) {
		return s.List(ctx, f, after-1, limit)
	}},
	"pages have no limit": {list: func(s inbox.Store, f inbox.Filter, after int64, _ int) ([]inbox.Event, error) {
		return s.List(ctx, f, after, 1e6)
	}},
	"the count is capped": {count: func(s inbox.Store, f inbox.Filter) (int, error) { n, err := s.Count(ctx, f); return min(n, 1000), err }},
	"retries are not due": {retry: func(s inbox.Store, f inbox.Filter, now time.Time) (int, error) {
		return s.Retry(ctx, f, now.Add(time.Hour))
	}},
	"retries are capped": {retry: func(s inbox.Store, f inbox.Filter, now time.Time) (int, error) {
		events, _ := s.List(ctx, f, 0, 1000)
		if len(events) == 0 {
			return 0, nil
		}
		return s.Retry(ctx, inbox.Filter{Number: numbersOf(events)}, now)
	}},
	"discarding does nothing": {discard: func(s inbox.Store, f inbox.Filter, _ func(inbox.Event)) (int, error) { return s.Count(ctx, f) }},
	"discarding reports nothing": {discard: func(s inbox.Store, f inbox.Filter, _ func(inbox.Event)) (int, error) {
		return s.Discard(ctx, f, func(inbox.Event) {})
	}},
	"there is no limit of groups": {groups: func(s inbox.Store, _ int) ([]inbox.Group, error) { return s.Groups(ctx, 1e6) }},
	"groups come in any order": {groups: func(s inbox.Store, limit int) ([]inbox.Group, error) {
		groups, err := s.Groups(ctx, limit)
		slices.Reverse(groups)
		return groups, err
	}},
	"dead events have no groups": {groups: func(s inbox.Store, limit int) ([]inbox.Group, error) {
		groups, err := s.Groups(ctx, limit)
		return slices.DeleteFunc(groups, func(g inbox.Group) bool { return g.State == inbox.Dead }), err
	}},
	"groups do not say when they are due": {groups: func(s inbox.Store, limit int) ([]inbox.Group, error) {
		groups, err := s.Groups(ctx, limit)
		for i := range groups {
			groups[i].Next = time.Time{}
		}
		return groups, err
	}},
	"pausing does nothing":         {pause: func(inbox.Store, bool) error { return nil }},
	"pausing again begins anew":    {pause: func(s inbox.Store, paused bool) error { _ = s.SetPaused(ctx, false); return s.SetPaused(ctx, paused) }},
	"delivered events are backlog": {stats: func(s *inbox.Stats) { s.Waiting += s.Delivered }},
	"dead events are not counted":  {stats: func(s *inbox.Stats) { s.Dead = 0 }},
	"bytes are not counted":        {stats: func(s *inbox.Stats) { s.Bytes = 0 }},
	"the oldest is not known":      {stats: func(s *inbox.Stats) { s.Oldest = time.Time{} }},
	"the store has no name":        {stats: func(s *inbox.Stats) { s.Backing = "" }},
}

const faultVariable = "INBOXTEST_FAULT"

// TestModel passes, unless the variable names a fault.
func TestModel(t *testing.T) {
	f := faults[os.Getenv(faultVariable)]
	Test(t, Config{Open: func(testing.TB) inbox.Store {
		f := f
		f.Store = NewMemory()
		return f
	}})
}

func TestSuiteFindsFaults(t *testing.T) {
	for fault := range faults {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run=^TestModel$", "-test.failfast", "-test.timeout=2m", "-rapid.nofailfile")
			cmd.Env = append(os.Environ(), faultVariable+"="+fault)
			out, err := cmd.CombinedOutput()
			if err == nil || !bytes.Contains(out, []byte("--- FAIL: TestModel/")) {
				t.Errorf("the fault was not found: %v\n%.2000s", err, out)
			}
		})
	}
}
