package sqlite

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/database"
)

const (
	// readStep bounds the rows of one read: no other read waits for long.
	readStep = 2000
	// writeStep bounds the events that are changed in one transaction: new events
	// do not wait for long.
	writeStep = 100
)

// walk calls each with the events that match f and have numbers greater than
// after and up to last, by number, up to limit of them at a time, until it returns
// errEnough.
func (st *state) walk(ctx context.Context, f inbox.Filter, after, last int64, limit int, each func([]inbox.Event) error) error {
	next, err := st.steps(ctx, f)
	for err == nil && after < last {
		var events []inbox.Event
		reached := last
		err = st.read(ctx, func(c *database.Conn) error {
			rows := 0
			err := next(c, after, last, func(row *sqlite3.Stmt) error {
				e, matches, err := read(row, &f)
				if err == nil && matches {
					events = append(events, e)
				}
				if rows++; rows == readStep || len(events) == limit {
					reached = e.Number
					if err == nil {
						err = errEnough
					}
				}
				return err
			})
			if errors.Is(err, errEnough) {
				return nil
			}
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

// steps returns a function that calls each with up to readStep of the rows that f
// may select and whose numbers are greater than after and up to last, by number.
func (st *state) steps(ctx context.Context, f inbox.Filter) (func(c *database.Conn, after, last int64, each func(*sqlite3.Stmt) error) error, error) {
	numbers := f.Number
	if len(f.Number) == 0 && len(f.ID) > 0 {
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
	switch {
	case len(f.Number) > 0 || len(f.ID) > 0:
		numbers = slices.Compact(slices.Sorted(slices.Values(numbers)))
		return func(c *database.Conn, after, last int64, each func(*sqlite3.Stmt) error) error {
			rows := 0
			for _, number := range numbers {
				if number <= after || number > last || rows == readStep {
					continue
				}
				err := c.Query("SELECT "+columns+" FROM events WHERE number = ?", func(row *sqlite3.Stmt) error { rows++; return each(row) }, number)
				if err != nil {
					return err
				}
			}
			return nil
		}, nil
	case len(f.State) == 1:
		return func(c *database.Conn, after, last int64, each func(*sqlite3.Stmt) error) error {
			return c.Query("SELECT "+columns+" FROM events INDEXED BY events_by_state WHERE state = ? AND number > ? AND number <= ? ORDER BY number LIMIT ?",
				each, string(f.State[0]), after, last, readStep)
		}, nil
	}
	return func(c *database.Conn, after, last int64, each func(*sqlite3.Stmt) error) error {
		return c.Query("SELECT "+columns+" FROM events WHERE number > ? AND number <= ? ORDER BY number LIMIT ?", each, after, last, readStep)
	}, nil
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
	err = st.walk(ctx, f, after, last, limit, func(more []inbox.Event) error {
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
