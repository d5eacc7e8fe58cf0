package sqlite

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/database"
)

// readTimeout bounds how long a read waits for a disk that does not respond. For
// writing, callers set a bound.
const readTimeout = 2 * time.Second

var errNotOpen = errors.New("the inbox is not open")

// arrivalBits are those of an arrival that count within one opening of the file. The
// bits above count openings.
const arrivalBits = 40

// state is the inbox in one file.
type state struct {
	db       *database.DB
	arrivals atomic.Int64 // the last one

	mu     sync.Mutex
	closed bool
	// counts and paused are what is committed. They are not known, and counts is
	// nil, once the state is closed.
	counts atomic.Pointer[counts]
	paused time.Time
}

func open(path string) (*state, error) {
	db, err := database.Open(path)
	if err != nil {
		return nil, err
	}
	st := &state{db: db}
	err = db.Use(tables)
	if err == nil {
		err = st.write(context.Background(), func(c *database.Conn) error { return errors.Join(st.readPaused(c), st.countOpening(c)) })
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return st, nil
}

// Destruct implements [caddy.Destructor].
func (st *state) Destruct() error {
	st.mu.Lock()
	st.closed = true
	st.counts.Store(nil)
	st.mu.Unlock()
	return st.db.Close()
}

// write makes a change. If ctx ends, that may go on after write has returned.
func (st *state) write(ctx context.Context, change func(*database.Conn) error) error {
	return st.db.Write(ctx, st.within(math.MaxInt64, change))
}

// within is a change that fails if more than maxSize bytes would be kept that are not
// delivered.
func (st *state) within(maxSize int64, change func(*database.Conn) error) func(*database.Conn) error {
	return func(c *database.Conn) error {
		if err := change(c); err != nil {
			return err
		}
		n, err := count(c)
		if err == nil && n.bytes > maxSize {
			err = inbox.ErrFull
		}
		if err != nil {
			return err
		}
		c.OnCommit(func() {
			st.mu.Lock()
			defer st.mu.Unlock()
			if !st.closed {
				st.counts.Store(&n)
			}
		})
		return nil
	}
}

func (st *state) read(ctx context.Context, read func(*database.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	return st.db.Read(ctx, read)
}

func (st *state) readPaused(c *database.Conn) error {
	return c.Query("SELECT paused FROM redelivery", func(row *sqlite3.Stmt) error {
		paused := timeOf(row.ColumnInt64(0))
		c.OnCommit(func() {
			st.mu.Lock()
			defer st.mu.Unlock()
			st.paused = paused
		})
		return nil
	})
}

// countOpening makes arrivals greater than those of earlier openings.
func (st *state) countOpening(c *database.Conn) error {
	return c.Query("UPDATE redelivery SET openings = openings + 1 RETURNING openings",
		func(row *sqlite3.Stmt) error { st.arrivals.Store(row.ColumnInt64(0) << arrivalBits); return nil })
}

func (st *state) add(ctx context.Context, e inbox.Event, maxSize int64) (int64, error) {
	var number int64
	err := st.db.WriteForCertain(ctx, st.within(maxSize, func(c *database.Conn) (err error) {
		number, err = insert(c, &e)
		return err
	}))
	if err != nil {
		return 0, err
	}
	return number, nil
}

func (st *state) find(ctx context.Context, scope string, key dedupe.Key) (inbox.Event, error) {
	var e inbox.Event
	err := st.read(ctx, func(c *database.Conn) (err error) {
		e, err = find(c, scope, key)
		return err
	})
	if err != nil {
		return inbox.Event{}, err
	}
	return e, nil
}

func (st *state) load(ctx context.Context, number int64) (inbox.Event, error) {
	var e inbox.Event
	err := st.read(ctx, func(c *database.Conn) (err error) {
		if e, err = get(c, number); err == nil {
			err = loadBody(c, &e)
		}
		return err
	})
	if err != nil {
		return inbox.Event{}, err
	}
	return e, nil
}

func (st *state) waits(ctx context.Context, lane inbox.Lane) (waits bool, err error) {
	found := false
	err = st.read(ctx, func(c *database.Conn) error {
		return c.Query("SELECT 1 FROM events INDEXED BY events_by_lane WHERE state = 'waiting' AND lane = ? LIMIT 1",
			func(*sqlite3.Stmt) error { found = true; return nil }, int64(lane))
	})
	return err == nil && found, err
}

// errEnough ends a query before its last row.
var errEnough = errors.New("enough")

// targets returns the targets of the events that wait. The query jumps from one to
// the next in the index.
func (st *state) targets(ctx context.Context) ([]string, error) {
	var targets []string
	err := st.read(ctx, func(c *database.Conn) (err error) {
		targets, err = targetsOf(c)
		return err
	})
	if err != nil {
		return nil, err
	}
	return targets, nil
}

func targetsOf(c *database.Conn) (targets []string, err error) {
	err = c.Query(`WITH RECURSIVE each(target) AS (
			SELECT min(target) FROM events INDEXED BY events_by_due WHERE state = 'waiting' AND blocked = 0
			UNION ALL
			SELECT (SELECT min(target) FROM events INDEXED BY events_by_due WHERE state = 'waiting' AND blocked = 0 AND target > each.target) FROM each WHERE each.target IS NOT NULL
		) SELECT target FROM each WHERE target IS NOT NULL`,
		func(row *sqlite3.Stmt) error { targets = append(targets, row.ColumnText(0)); return nil })
	return targets, err
}

// waiting calls each with events of a target that wait and are not blocked, by when they
// are due and then by number, until it returns errEnough. It leaves out those that skip does. The
// caller's skip is not called any more once waiting has returned.
func (st *state) waiting(ctx context.Context, target string, skip func(int64) bool, each func(number int64, due time.Time) error) error {
	var mu sync.Mutex
	ended := false
	err := st.read(ctx, func(c *database.Conn) error {
		err := c.Query("SELECT number, due FROM events INDEXED BY events_by_due WHERE state = 'waiting' AND blocked = 0 AND target = ? ORDER BY due, number", func(row *sqlite3.Stmt) error {
			number := row.ColumnInt64(0)
			mu.Lock()
			if ended {
				mu.Unlock()
				return errEnough
			}
			skipped := skip(number)
			mu.Unlock()
			if skipped {
				return nil
			}
			return each(number, timeOf(row.ColumnInt64(1)))
		}, target)
		if errors.Is(err, errEnough) {
			return nil
		}
		return err
	})
	mu.Lock()
	defer mu.Unlock()
	ended = true
	return err
}

func (st *state) due(ctx context.Context, target string, now time.Time, limit int, skip func(int64) bool) ([]inbox.Event, error) {
	for {
		var numbers []int64
		err := st.waiting(ctx, target, skip, func(number int64, due time.Time) error {
			if due.After(now) || len(numbers) >= limit {
				return errEnough
			}
			numbers = append(numbers, number)
			return nil
		})
		if err != nil {
			return nil, err
		}
		// A query sees the events as they were when it began, which was before
		// skip was called. Another one sees what has changed until then.
		events, err := st.stillDue(ctx, now, numbers)
		if err != nil || len(events) == len(numbers) {
			return events, err
		}
	}
}

// stillDue returns those of some events that wait, are not blocked, and are due.
func (st *state) stillDue(ctx context.Context, now time.Time, numbers []int64) ([]inbox.Event, error) {
	if len(numbers) == 0 {
		return nil, nil
	}
	var events []inbox.Event
	err := st.read(ctx, func(c *database.Conn) error {
		for _, number := range numbers {
			e, err := get(c, number)
			switch {
			case errors.Is(err, inbox.ErrNotFound):
			case err != nil:
				return err
			case e.State == inbox.Waiting && !e.Blocked && !e.Due.After(now):
				events = append(events, e)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return events, nil
}

func (st *state) nextDue(ctx context.Context, target string, skip func(int64) bool) (time.Time, error) {
	var next time.Time
	err := st.waiting(ctx, target, skip, func(_ int64, due time.Time) error {
		next = due
		return errEnough
	})
	if err != nil {
		return time.Time{}, err
	}
	return next, nil
}

func (st *state) advance(ctx context.Context, latest time.Time, limit int) (int, error) {
	if n := st.counts.Load(); n != nil && n.waiting == 0 {
		return 0, nil
	}
	var changed int
	err := st.write(ctx, func(c *database.Conn) error {
		targets, err := targetsOf(c)
		if err != nil {
			return err
		}
		for _, target := range targets {
			err := c.Exec(`UPDATE events SET due = ?1 WHERE number IN
				(SELECT number FROM events INDEXED BY events_by_due WHERE state = 'waiting' AND blocked = 0 AND target = ?2 AND due > ?1 ORDER BY due DESC LIMIT ?3)`,
				nanoseconds(latest), target, limit-changed)
			if err != nil {
				return err
			}
			changed += c.Changes()
		}
		err = c.Exec(`UPDATE events SET due = ?1 WHERE number IN
			(SELECT number FROM events INDEXED BY blocked_by_due WHERE blocked = 1 AND due > ?1 ORDER BY due DESC LIMIT ?2)`,
			nanoseconds(latest), limit-changed)
		changed += c.Changes()
		return err
	})
	if err != nil {
		return 0, err
	}
	return changed, nil
}

// oldestOfEach returns since when the oldest event is in each state.
func (st *state) oldestOfEach(ctx context.Context) (waiting, dead, delivered time.Time, err error) {
	var since [3]time.Time // not the results: a read goes on when ctx has ended
	err = st.read(ctx, func(c *database.Conn) error {
		for i, state := range []inbox.State{inbox.Waiting, inbox.Dead, inbox.Delivered} {
			err := c.Query("SELECT min(since) FROM events INDEXED BY events_by_age WHERE state = ?",
				func(row *sqlite3.Stmt) error { since[i] = timeOf(row.ColumnInt64(0)); return nil }, string(state))
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return time.Time{}, time.Time{}, time.Time{}, err
	}
	return since[0], since[1], since[2], nil
}

// record adds an attempt to those of an event, unless that was done before.
func record(e *inbox.Event, a inbox.Attempt) {
	if e.Attempts > 0 && e.Last.Time.Equal(a.Time) {
		return
	}
	if e.Attempts == 0 {
		e.First = a
	}
	e.Last = a
	e.Attempts++
}

func (st *state) attempted(ctx context.Context, number int64, a inbox.Attempt, due, dead time.Time) error {
	return st.write(ctx, func(c *database.Conn) error {
		e, err := get(c, number)
		if err != nil || e.State != inbox.Waiting {
			return err
		}
		record(&e, a)
		e.Due = due
		if !dead.IsZero() {
			e.State, e.Settled = inbox.Dead, dead
		}
		return update(c, &e)
	})
}

func (st *state) accepted(ctx context.Context, number int64, a inbox.Attempt, keepBody bool) error {
	return st.write(ctx, func(c *database.Conn) error {
		e, err := get(c, number)
		if err != nil || e.State == inbox.Accepted || e.State == inbox.Delivered {
			return err
		}
		record(&e, a)
		e.State, e.Settled = inbox.Accepted, a.Time
		err = update(c, &e)
		if err == nil && !keepBody {
			err = removeBody(c, number)
		}
		return err
	})
}

func (st *state) remembered(ctx context.Context, number int64) error {
	return st.write(ctx, func(c *database.Conn) error {
		e, err := get(c, number)
		if err != nil || e.State != inbox.Accepted {
			return err
		}
		kept, err := hasBody(c, number)
		switch {
		case err != nil:
			return err
		case !kept:
			return remove(c, number)
		}
		e.State = inbox.Delivered
		return update(c, &e)
	})
}

func (st *state) expire(ctx context.Context, now, waitingBefore, diedBefore, deliveredBefore time.Time, limit int) (inbox.Expired, error) {
	if n := st.counts.Load(); n != nil && n.events() == 0 {
		return inbox.Expired{}, nil
	}
	var expired inbox.Expired
	err := st.write(ctx, func(c *database.Conn) error {
		err := c.Query(`UPDATE events SET state = 'dead', since = ? WHERE number IN
			(SELECT number FROM events INDEXED BY events_by_age WHERE state = 'waiting' AND since < ? ORDER BY since, number LIMIT ?) RETURNING number`,
			func(row *sqlite3.Stmt) error {
				expired.Died = append(expired.Died, row.ColumnInt64(0))
				return nil
			},
			nanoseconds(now), before(waitingBefore), limit)
		for _, old := range []struct {
			state   inbox.State
			before  time.Time
			removed *int
		}{{inbox.Dead, diedBefore, &expired.Dead}, {inbox.Delivered, deliveredBefore, &expired.Delivered}} {
			if err != nil {
				return err
			}
			err = c.Exec(`DELETE FROM events WHERE number IN
				(SELECT number FROM events INDEXED BY events_by_age WHERE state = ? AND since < ? ORDER BY since, number LIMIT ?)`,
				string(old.state), before(old.before), limit-expired.Changed())
			*old.removed = c.Changes()
		}
		if expired.Dead+expired.Delivered > 0 {
			c.Scrub()
		}
		return err
	})
	if err != nil {
		return inbox.Expired{}, err
	}
	return expired, nil
}

// before returns a bound for times, below all if t is zero.
func before(t time.Time) int64 {
	if t.IsZero() {
		return -1 << 63
	}
	return t.UnixNano()
}

func (st *state) setPaused(ctx context.Context, paused bool) error {
	var since int64
	if paused {
		since = nanoseconds(time.Now())
	}
	return st.write(ctx, func(c *database.Conn) error {
		// if it is paused already, it has been so since then
		if err := c.Exec("UPDATE redelivery SET paused = ?1 WHERE (paused = 0) <> (?1 = 0)", since); err != nil {
			return err
		}
		return st.readPaused(c)
	})
}

func (st *state) stats() inbox.Stats {
	st.mu.Lock()
	defer st.mu.Unlock()
	n := st.counts.Load()
	if n == nil {
		return inbox.Stats{Backing: st.db.Path(), Err: errNotOpen}
	}
	return inbox.Stats{
		Backing: st.db.Path(), Waiting: n.waiting, Dead: n.dead, Delivered: n.delivered, Bytes: n.bytes,
		Oldest: n.oldest, Paused: st.paused, Err: st.db.Err(),
	}
}
