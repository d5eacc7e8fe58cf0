package sqlite

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/database"
)

const (
	// readStep bounds the rows that one read returns, and scanStep those that it
	// looks at: no other read waits for long.
	readStep, scanStep = 2000, 20_000
	// writeStep bounds the events that are changed in one transaction: new events
	// do not wait for long.
	writeStep = 100
)

// walk calls each with the events that match f and have numbers greater than
// after and up to last, by number, up to limit in a step, until it returns errEnough.
func (st *state) walk(ctx context.Context, f inbox.Filter, after, last int64, limit int, each func([]inbox.Event) error) error {
	next, err := st.steps(ctx, f)
	for err == nil && after < last {
		var events []inbox.Event
		var reached int64
		err = st.read(ctx, func(c *database.Conn) (err error) {
			reached, err = next(c, after, last, limit, func(row *sqlite3.Stmt) error {
				e, matches, err := read(row, &f)
				if err == nil && matches {
					events = append(events, e)
				}
				return err
			})
			return err
		})
		if err == nil {
			after = reached
			err = each(events)
		}
	}
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// step calls each with up to limit rows whose numbers are greater than after and up
// to last, by number, and returns up to which number it has looked.
type step func(c *database.Conn, after, last int64, limit int, each func(*sqlite3.Stmt) error) (reached int64, err error)

// steps returns a step through all rows that f selects, and perhaps others.
func (st *state) steps(ctx context.Context, f inbox.Filter) (step, error) {
	if len(f.Number) == 0 && len(f.ID) == 0 {
		return st.scan(&f)
	}
	numbers := f.Number
	if len(f.Number) == 0 {
		err := st.read(ctx, func(c *database.Conn) error {
			for _, id := range f.ID {
				key := dedupe.KeyOf(id)
				err := c.Query("SELECT number FROM events INDEXED BY events_by_key WHERE key = ?",
					func(row *sqlite3.Stmt) error { numbers = append(numbers, row.ColumnInt64(0)); return nil }, key[:])
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	numbers = slices.Compact(slices.Sorted(slices.Values(numbers)))
	return func(c *database.Conn, after, last int64, limit int, each func(*sqlite3.Stmt) error) (int64, error) {
		for _, number := range numbers {
			if number <= after || number > last {
				continue
			}
			if limit == 0 {
				return number - 1, nil
			}
			limit--
			if err := c.Query("SELECT "+columns+" FROM events WHERE number = ?", each, number); err != nil {
				return 0, err
			}
		}
		return last, nil
	}, nil
}

// preselect are the conditions of a filter, except those of numbers and IDs. Lists
// are JSON, and empty if there is none.
const preselect = `
	AND (?1 = '' OR state IN (SELECT value FROM json_each(?1)))
	AND (?5 = '' OR type IN (SELECT value FROM json_each(?5)))
	AND (?6 = '' OR target IN (SELECT value FROM json_each(?6)))
	AND (?7 = '' OR order_key IN (SELECT value FROM json_each(?7)))
	AND (?8 = '' OR reason IN (SELECT number FROM reasons WHERE status IN (SELECT value FROM json_each(?8))
		UNION ALL SELECT 0 WHERE 0 IN (SELECT value FROM json_each(?8))))
	AND arrived >= ?9 AND arrived < ?10`

// scan returns a step that looks at many rows at a time, and leaves it to SQLite to
// leave most of them out.
func (st *state) scan(f *inbox.Filter) (step, error) {
	from := "events NOT INDEXED WHERE 1"
	n := st.counts.Load()
	// the index costs more than it saves if most events are in the state, but not
	// all are wanted
	if few := n == nil || n.matching(f.State) < n.events()/2; len(f.State) == 1 && (few || f.ByState()) {
		from = "events INDEXED BY events_by_state WHERE state = ?1 ->> 0"
	}
	states, statesErr := listOf(f.State)
	types, typesErr := listOf(f.Type)
	targets, targetsErr := listOf(f.Target)
	keys, keysErr := listOf(f.Key)
	statuses, statusesErr := listOf(f.Status)
	if err := errors.Join(statesErr, typesErr, targetsErr, keysErr, statusesErr); err != nil {
		return nil, err
	}
	until := int64(math.MaxInt64)
	if !f.Until.IsZero() {
		until = f.Until.UnixNano()
	}
	return func(c *database.Conn, after, last int64, limit int, each func(*sqlite3.Stmt) error) (int64, error) {
		var first int64
		err := c.Query("SELECT min(number) FROM "+from+" AND number > ?2 AND number <= ?3",
			func(row *sqlite3.Stmt) error { first = row.ColumnInt64(0); return nil }, states, after, last)
		if err != nil || first == 0 {
			return last, err
		}
		reached, rows := min(last, first+scanStep), 0
		err = c.Query("SELECT "+columns+" FROM "+from+" AND number > ?2 AND number <= ?3"+preselect+" ORDER BY number LIMIT ?4", func(row *sqlite3.Stmt) error {
			if rows++; rows == limit {
				reached = row.ColumnInt64(0)
			}
			return each(row)
		}, states, first-1, reached, limit, types, targets, keys, statuses, before(f.Since), until)
		return reached, err
	}, nil
}

// listOf returns values as JSON, or an empty string if there are none.
func listOf[T any](values []T) (string, error) {
	if len(values) == 0 {
		return "", nil
	}
	text, err := json.Marshal(values)
	return string(text), err
}

// last returns the greatest number of an event.
func (st *state) last(ctx context.Context) (int64, error) {
	var last int64
	err := st.read(ctx, func(c *database.Conn) error {
		return c.Query("SELECT max(number) FROM events", func(row *sqlite3.Stmt) error { last = row.ColumnInt64(0); return nil })
	})
	if err != nil {
		return 0, err
	}
	return last, nil
}

func (st *state) list(ctx context.Context, f inbox.Filter, after int64, limit int) ([]inbox.Event, error) {
	last, err := st.last(ctx)
	if err != nil {
		return nil, err
	}
	var events []inbox.Event
	err = st.walk(ctx, f, after, last, min(limit, readStep), func(more []inbox.Event) error {
		events = append(events, more[:min(len(more), limit-len(events))]...)
		if len(events) >= limit {
			return errEnough
		}
		return nil
	})
	return events, err
}

func (st *state) count(ctx context.Context, f inbox.Filter) (int, error) {
	if n := st.counts.Load(); n != nil && f.ByState() {
		return n.matching(f.State), nil
	}
	last, err := st.last(ctx)
	if err != nil {
		return 0, err
	}
	n := 0
	err = st.walk(ctx, f, 0, last, readStep, func(events []inbox.Event) error {
		n += len(events)
		return nil
	})
	return n, err
}

// change changes the events that match f and are kept now, except accepted ones,
// and calls changed after each step. It returns how many it has changed.
func (st *state) change(ctx context.Context, f inbox.Filter, change func(*database.Conn, *inbox.Event) error, changed func(inbox.Event)) (int, error) {
	last, err := st.last(ctx)
	if err != nil {
		return 0, err
	}
	n := 0
	err = st.walk(ctx, f, 0, last, readStep, func(events []inbox.Event) error {
		for step := range slices.Chunk(events, writeStep) {
			var done []inbox.Event
			err := st.write(ctx, func(c *database.Conn) error {
				for _, e := range step {
					e, err := get(c, e.Number)
					if errors.Is(err, inbox.ErrNotFound) || err == nil && (e.State == inbox.Accepted || !f.Matches(&e)) {
						continue // since it was read
					}
					if err == nil {
						err = change(c, &e)
					}
					if err != nil {
						return err
					}
					done = append(done, e)
				}
				return nil
			})
			if err != nil {
				return err
			}
			n += len(done)
			for _, e := range done {
				changed(e)
			}
		}
		return nil
	})
	return n, err
}

func (st *state) retry(ctx context.Context, f inbox.Filter, now time.Time) (int, error) {
	return st.change(ctx, f, func(c *database.Conn, e *inbox.Event) error {
		e.State, e.Due, e.Since, e.Settled = inbox.Waiting, now, now, time.Time{}
		e.Attempts, e.First, e.Last = 0, inbox.Attempt{}, inbox.Attempt{}
		return update(c, e)
	}, func(inbox.Event) {})
}

func (st *state) discard(ctx context.Context, f inbox.Filter, discarded func(inbox.Event)) (int, error) {
	return st.change(ctx, f, func(c *database.Conn, e *inbox.Event) error { return remove(c, e.Number) }, discarded)
}
