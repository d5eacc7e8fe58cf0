package sqlite

import (
	"context"
	"errors"

	"github.com/ncruces/go-sqlite3"

	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/database"
)

// maxReasons is how many reasons are kept apart. Each change of the inbox reads the
// counts of all. If there are more, those with the same status and cause are one,
// without their errors.
const maxReasons = 100

// reasonOf returns the number of how the last attempt of an event has ended, or 0
// if there was none. Events with the same reason have the same status.
func reasonOf(c *database.Conn, e *inbox.Event) (number int64, err error) {
	if e.Attempts == 0 {
		return 0, nil
	}
	number, err = findReason(c, &e.Last, e.Last.Error)
	if number != 0 || err != nil {
		return number, err
	}
	text := e.Last.Error
	n, err := reasons(c)
	if err == nil && n >= maxReasons {
		if n, err = forgetReasons(c); err == nil && n >= maxReasons {
			text = ""
			number, err = findReason(c, &e.Last, text)
		}
	}
	if number != 0 || err != nil {
		return number, err
	}
	err = c.Query("INSERT INTO reasons(status, cause, error) VALUES(?, ?, ?) RETURNING number",
		func(row *sqlite3.Stmt) error { number = row.ColumnInt64(0); return nil }, e.Last.Status, e.Last.Cause, text)
	return number, err
}

func findReason(c *database.Conn, a *inbox.Attempt, text string) (number int64, err error) {
	err = c.Query("SELECT number FROM reasons WHERE status = ? AND cause = ? AND error = ?",
		func(row *sqlite3.Stmt) error { number = row.ColumnInt64(0); return nil }, a.Status, a.Cause, text)
	return number, err
}

func reasons(c *database.Conn) (n int, err error) {
	err = c.Query("SELECT count(*) FROM reasons", func(row *sqlite3.Stmt) error { n = row.ColumnInt(0); return nil })
	return n, err
}

// forgetReasons removes the reasons that no event has, and returns how many are left.
func forgetReasons(c *database.Conn) (int, error) {
	err := c.Exec("DELETE FROM event_counts WHERE events = 0 AND reason <> 0")
	if err == nil {
		err = c.Exec("DELETE FROM reasons WHERE number NOT IN (SELECT reason FROM event_counts)")
	}
	n, countErr := reasons(c)
	return n, errors.Join(err, countErr)
}

func (st *state) groups(ctx context.Context, limit int) ([]inbox.Group, error) {
	var groups []inbox.Group
	err := st.read(ctx, func(c *database.Conn) error {
		return c.Query(`SELECT state, status, cause, error, events,
			(SELECT min(arrived) FROM events AS e INDEXED BY events_by_reason WHERE e.state = n.state AND e.reason = n.reason),
			iif(state = 'waiting', (SELECT min(due) FROM events AS e INDEXED BY events_by_next WHERE e.state = 'waiting' AND e.reason = n.reason), 0)
			FROM event_counts AS n LEFT JOIN reasons ON reasons.number = n.reason
			WHERE events > 0 AND state IN ('waiting', 'dead') ORDER BY events DESC, state DESC, status, cause, error LIMIT ?`,
			func(row *sqlite3.Stmt) error {
				groups = append(groups, inbox.Group{
					State: inbox.State(row.ColumnText(0)), Status: row.ColumnInt(1), Cause: row.ColumnText(2), Error: row.ColumnText(3),
					Events: row.ColumnInt(4), Since: timeOf(row.ColumnInt64(5)), Next: timeOf(row.ColumnInt64(6)),
				})
				return nil
			}, limit)
	})
	if err != nil {
		return nil, err
	}
	return groups, nil
}
