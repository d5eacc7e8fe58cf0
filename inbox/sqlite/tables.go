package sqlite

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ncruces/go-sqlite3"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/database"
)

// tables keep the events. Times are Unix times in nanoseconds, and 0 is none.
//
// Of the events of a lane that wait, all but the first are blocked: so what is due is
// found without looking at those. Triggers keep it so.
//
// Requests and bodies have a table of their own, so that events are found without
// reading those. Events of each state and reason are counted by triggers, so that no
// change can miss one.
var tables = database.Tables{
	Name: "inbox",
	Migrations: []string{`
		CREATE TABLE events(
			number    INTEGER PRIMARY KEY AUTOINCREMENT,
			state     TEXT NOT NULL,
			since     INTEGER NOT NULL, -- in this state; see inbox.Event.Since
			due       INTEGER NOT NULL,
			target    TEXT NOT NULL,
			scope     TEXT NOT NULL,
			key       BLOB NOT NULL,
			digest    INTEGER NOT NULL,
			id        TEXT NOT NULL,
			type      TEXT NOT NULL,
			order_key TEXT NOT NULL,
			lane      INTEGER,          -- NULL without an order key
			sequence  INTEGER NOT NULL,
			blocked   INTEGER NOT NULL DEFAULT 0,
			secret    TEXT NOT NULL,
			arrived   INTEGER NOT NULL,
			size      INTEGER NOT NULL, -- see inbox.Event.Size
			attempts  INTEGER NOT NULL,
			reason    INTEGER NOT NULL, -- how the last attempt has ended; 0: there was none
			first     TEXT NOT NULL,    -- the first attempt in JSON, or empty
			last      TEXT NOT NULL
		) STRICT;
		CREATE INDEX events_by_key ON events(key);
		CREATE INDEX events_by_due ON events(target, due) WHERE state = 'waiting' AND blocked = 0;
		CREATE INDEX blocked_by_due ON events(due) WHERE blocked = 1;
		CREATE INDEX events_by_lane ON events(lane, sequence) WHERE state = 'waiting' AND lane IS NOT NULL;
		CREATE INDEX events_by_age ON events(state, since);
		CREATE INDEX events_by_state ON events(state);
		CREATE INDEX events_by_reason ON events(state, reason, arrived);
		CREATE INDEX events_by_next ON events(reason, due) WHERE state = 'waiting';

		CREATE TABLE reasons(
			number INTEGER PRIMARY KEY,
			status INTEGER NOT NULL,
			cause  TEXT NOT NULL,
			error  TEXT NOT NULL,
			UNIQUE(status, cause, error)
		) STRICT;

		CREATE TABLE bodies(
			number  INTEGER PRIMARY KEY,
			request TEXT NOT NULL, -- JSON, in which a code point stands for each byte
			body    BLOB NOT NULL
		) STRICT;

		CREATE TABLE event_counts(
			state  TEXT NOT NULL,
			reason INTEGER NOT NULL,
			events INTEGER NOT NULL,
			bytes  INTEGER NOT NULL,
			PRIMARY KEY(state, reason)
		) STRICT, WITHOUT ROWID;
		INSERT INTO event_counts(state, reason, events, bytes) VALUES('waiting', 0, 0, 0), ('dead', 0, 0, 0), ('accepted', 0, 0, 0), ('delivered', 0, 0, 0);
		CREATE TRIGGER event_added AFTER INSERT ON events BEGIN
			INSERT INTO event_counts(state, reason, events, bytes) VALUES(NEW.state, NEW.reason, 1, NEW.size)
				ON CONFLICT DO UPDATE SET events = events + 1, bytes = bytes + NEW.size;
		END;
		CREATE TRIGGER event_moved AFTER UPDATE OF state, reason ON events WHEN OLD.state <> NEW.state OR OLD.reason <> NEW.reason BEGIN
			UPDATE event_counts SET events = events - 1, bytes = bytes - OLD.size WHERE state = OLD.state AND reason = OLD.reason;
			INSERT INTO event_counts(state, reason, events, bytes) VALUES(NEW.state, NEW.reason, 1, NEW.size)
				ON CONFLICT DO UPDATE SET events = events + 1, bytes = bytes + NEW.size;
		END;
		CREATE TRIGGER event_removed AFTER DELETE ON events BEGIN
			UPDATE event_counts SET events = events - 1, bytes = bytes - OLD.size WHERE state = OLD.state AND reason = OLD.reason;
			DELETE FROM bodies WHERE number = OLD.number;
		END;

		CREATE TRIGGER event_in_lane AFTER INSERT ON events WHEN NEW.lane IS NOT NULL AND NEW.state = 'waiting' BEGIN` + enterLane + `
		END;
		CREATE TRIGGER event_into_lane AFTER UPDATE OF state ON events WHEN NEW.lane IS NOT NULL AND OLD.state <> 'waiting' AND NEW.state = 'waiting' BEGIN` + enterLane + `
		END;
		CREATE TRIGGER event_out_of_lane AFTER UPDATE OF state ON events WHEN NEW.lane IS NOT NULL AND OLD.state = 'waiting' AND NEW.state <> 'waiting' BEGIN
			UPDATE events SET blocked = 0 WHERE number = NEW.number AND blocked = 1;` + leaveLane + `
		END;
		CREATE TRIGGER event_off_lane AFTER DELETE ON events WHEN OLD.lane IS NOT NULL AND OLD.state = 'waiting' BEGIN` + leaveLane + `
		END;
		CREATE TABLE redelivery(paused INTEGER NOT NULL, openings INTEGER NOT NULL) STRICT; -- one row
		INSERT INTO redelivery(paused, openings) VALUES(0, 0)`},
	Check: check,
}

// enterLane blocks the event that enters a lane, or the one that was the first there.
// leaveLane unblocks the one that is the first now.
const (
	enterLane = `
			UPDATE events SET blocked = 1 WHERE number IN
				(SELECT number FROM events WHERE state = 'waiting' AND lane = NEW.lane ORDER BY sequence LIMIT 1 OFFSET 1);
			UPDATE events SET blocked = (SELECT min(sequence) FROM events WHERE state = 'waiting' AND lane = NEW.lane) < sequence WHERE number = NEW.number;`
	leaveLane = `
			UPDATE events SET blocked = 0 WHERE blocked = 1 AND number IN
				(SELECT number FROM events WHERE state = 'waiting' AND lane = OLD.lane ORDER BY sequence LIMIT 1);`
)

// columns are those that read takes.
const columns = "number, target, state, type, id, order_key, arrived, last, since, due, scope, key, digest, secret, attempts, first, sequence, blocked"

// read returns the event of a row, and whether f selects it. If not, it is not
// complete.
func read(row *sqlite3.Stmt, f *inbox.Filter) (e inbox.Event, matches bool, err error) {
	e = inbox.Event{
		Number: row.ColumnInt64(0), Target: row.ColumnText(1), State: inbox.State(row.ColumnText(2)), Type: row.ColumnText(3),
		ID: row.ColumnText(4), OrderKey: row.ColumnText(5), Arrived: timeOf(row.ColumnInt64(6)),
	}
	if len(f.Status) > 0 {
		if e.Last, err = attemptOf(row.ColumnRawText(7)); err != nil {
			return e, false, err
		}
	}
	if !f.Matches(&e) {
		return e, false, nil
	}
	if e.Last, err = attemptOf(row.ColumnRawText(7)); err != nil {
		return e, false, err
	}
	since := timeOf(row.ColumnInt64(8))
	if e.State == inbox.Waiting {
		e.Since = since
	} else {
		e.Settled = since
	}
	e.Due, e.Scope = timeOf(row.ColumnInt64(9)), row.ColumnText(10)
	copy(e.Key[:], row.ColumnRawBlob(11))
	e.Digest, e.Secret, e.Attempts = dedupe.Digest(row.ColumnInt64(12)), row.ColumnText(13), row.ColumnInt(14)
	e.Sequence, e.Blocked = row.ColumnInt64(16), row.ColumnBool(17)
	e.First, err = attemptOf(row.ColumnRawText(15))
	return e, true, err
}

var all inbox.Filter

// get returns an event without its request and body.
func get(c *database.Conn, number int64) (e inbox.Event, err error) {
	err = inbox.ErrNotFound
	queryErr := c.Query("SELECT "+columns+" FROM events WHERE number = ?", func(row *sqlite3.Stmt) error {
		e, _, err = read(row, &all)
		return nil
	}, number)
	if queryErr != nil {
		return e, queryErr
	}
	return e, err
}

// find returns the last event with a scope and a key.
func find(c *database.Conn, scope string, key dedupe.Key) (e inbox.Event, err error) {
	err = inbox.ErrNotFound
	queryErr := c.Query("SELECT "+columns+" FROM events INDEXED BY events_by_key WHERE key = ? AND scope = ? ORDER BY number DESC LIMIT 1", func(row *sqlite3.Stmt) error {
		e, _, err = read(row, &all)
		return nil
	}, key[:], scope)
	if queryErr != nil {
		return e, queryErr
	}
	return e, err
}

// loadBody adds its request and its body to an event, if they are kept.
func loadBody(c *database.Conn, e *inbox.Event) (err error) {
	return c.Query("SELECT request, body FROM bodies WHERE number = ?", func(row *sqlite3.Stmt) error {
		e.Body = row.ColumnBlob(1, []byte{})
		e.Request, err = requestOf(row.ColumnRawText(0))
		return err
	}, e.Number)
}

// insert adds an event that waits or is delivered, and returns its number.
func insert(c *database.Conn, e *inbox.Event) (number int64, err error) {
	err = c.Query("SELECT 1 FROM events INDEXED BY events_by_key WHERE key = ? AND scope = ? AND digest = ?",
		func(*sqlite3.Stmt) error { return inbox.ErrKept }, e.Key[:], e.Scope, int64(e.Digest))
	if err != nil {
		return 0, err
	}
	request, err := textOf(e.Request)
	if err != nil {
		return 0, err
	}
	first, last, err := attemptsOf(e)
	if err != nil {
		return 0, err
	}
	reason, err := reasonOf(c, e)
	if err != nil {
		return 0, err
	}
	state, since := inbox.Waiting, e.Arrived
	if e.State == inbox.Delivered {
		state, since = inbox.Delivered, e.Settled
	}
	err = c.Query(`INSERT INTO events(state, since, due, target, scope, key, digest, id, type, order_key, secret, arrived, size, attempts, first, last, reason, lane, sequence)
		VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, nullif(?, 0), ?) RETURNING number`,
		func(row *sqlite3.Stmt) error { number = row.ColumnInt64(0); return nil },
		string(state), nanoseconds(since), nanoseconds(e.Due), e.Target, e.Scope, e.Key[:], int64(e.Digest), e.ID, e.Type, e.OrderKey, e.Secret, nanoseconds(e.Arrived), e.Size(), e.Attempts, first, last, reason, int64(e.Lane()), e.Sequence)
	if err != nil {
		return 0, err
	}
	body := e.Body
	if body == nil {
		body = []byte{} // nil would be NULL
	}
	return number, c.Exec("INSERT INTO bodies(number, request, body) VALUES(?, ?, ?)", number, request, body)
}

// update writes what can change of an event.
func update(c *database.Conn, e *inbox.Event) error {
	since := e.Settled
	if e.State == inbox.Waiting {
		since = e.Since
	}
	first, last, err := attemptsOf(e)
	if err != nil {
		return err
	}
	reason, err := reasonOf(c, e)
	if err != nil {
		return err
	}
	return c.Exec("UPDATE events SET state = ?, since = ?, due = ?, attempts = ?, first = ?, last = ?, reason = ? WHERE number = ?",
		string(e.State), nanoseconds(since), nanoseconds(e.Due), e.Attempts, first, last, reason, e.Number)
}

func remove(c *database.Conn, number int64) error {
	c.Scrub()
	return c.Exec("DELETE FROM events WHERE number = ?", number)
}

func removeBody(c *database.Conn, number int64) error {
	c.Scrub()
	return c.Exec("DELETE FROM bodies WHERE number = ?", number)
}

func hasBody(c *database.Conn, number int64) (has bool, err error) {
	err = c.Query("SELECT 1 FROM bodies WHERE number = ?", func(*sqlite3.Stmt) error { has = true; return nil }, number)
	return has, err
}

// textOf returns a request in JSON. Headers need not be UTF-8, but JSON must be.
func textOf(r inbox.Request) (string, error) {
	text, err := json.Marshal(mapped(r, func(s string) string {
		runes := make([]rune, len(s))
		for i := range len(s) {
			runes[i] = rune(s[i])
		}
		return string(runes)
	}))
	return string(text), err
}

func requestOf(text []byte) (r inbox.Request, err error) {
	err = json.Unmarshal(text, &r)
	return mapped(r, func(s string) string {
		bytes := make([]byte, 0, len(s))
		for _, code := range s {
			bytes = append(bytes, byte(code))
		}
		return string(bytes)
	}), err
}

// mapped returns a request with f applied to all strings that are not ASCII.
func mapped(r inbox.Request, f func(string) string) inbox.Request {
	change := func(s string) string {
		if strings.IndexFunc(s, func(code rune) bool { return code >= utf8.RuneSelf }) < 0 {
			return s
		}
		return f(s)
	}
	for _, s := range []*string{&r.Server, &r.Host, &r.URI, &r.Proto, &r.RemoteAddr} {
		*s = change(*s)
	}
	if r.Header == nil {
		return r
	}
	header := make(http.Header, len(r.Header))
	for name, values := range r.Header {
		name = change(name)
		header[name] = make([]string, len(values))
		for i, value := range values {
			header[name][i] = change(value)
		}
	}
	r.Header = header
	return r
}

// attemptsOf returns the first and the last attempt in JSON.
func attemptsOf(e *inbox.Event) (first, last string, err error) {
	if e.Attempts == 0 {
		return "", "", nil
	}
	f, firstErr := json.Marshal(e.First)
	l, lastErr := json.Marshal(e.Last)
	return string(f), string(l), errors.Join(firstErr, lastErr)
}

func attemptOf(text []byte) (a inbox.Attempt, err error) {
	if len(text) > 0 {
		err = json.Unmarshal(text, &a)
	}
	return a, err
}

func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func timeOf(nanoseconds int64) time.Time {
	if nanoseconds == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanoseconds)
}

// counts are how many events there are, and what else [inbox.Stats] has of them.
type counts struct {
	waiting, dead, accepted, delivered int
	bytes                              int64     // of those that wait or are dead
	oldest                             time.Time // Since of the one that has been waiting longest
}

func (n *counts) events() int { return n.waiting + n.dead + n.accepted + n.delivered }

// matching returns how many events have one of the states, or any if there are none.
func (n *counts) matching(states []inbox.State) (events int) {
	f := inbox.Filter{State: states}
	for state, count := range map[inbox.State]int{inbox.Waiting: n.waiting, inbox.Dead: n.dead, inbox.Accepted: n.accepted, inbox.Delivered: n.delivered} {
		if f.Matches(&inbox.Event{State: state}) {
			events += count
		}
	}
	return events
}

func count(c *database.Conn) (n counts, err error) {
	err = c.Query(`SELECT state, events, bytes,
		CASE state WHEN 'waiting' THEN (SELECT min(since) FROM events INDEXED BY events_by_age WHERE state = 'waiting') END
		FROM event_counts`, func(row *sqlite3.Stmt) error {
		events := row.ColumnInt(1)
		switch inbox.State(row.ColumnText(0)) {
		case inbox.Waiting:
			n.waiting += events
			n.oldest = timeOf(row.ColumnInt64(3))
			n.bytes += row.ColumnInt64(2)
		case inbox.Dead:
			n.dead += events
			n.bytes += row.ColumnInt64(2)
		case inbox.Accepted:
			n.accepted += events
		case inbox.Delivered:
			n.delivered += events
		}
		return nil
	})
	return n, err
}

// check compares the tables and indexes with each other. They differ if a part of
// the file is older than the rest.
func check(c *database.Conn) error {
	return c.Query(`SELECT
		(SELECT count(*) FROM events NOT INDEXED),
		(SELECT count(*) FROM events INDEXED BY events_by_key WHERE key >= x''),
		(SELECT count(*) FROM events INDEXED BY events_by_age WHERE state >= ''),
		(SELECT count(*) FROM events INDEXED BY events_by_state WHERE state >= ''),
		(SELECT count(*) FROM events INDEXED BY events_by_reason WHERE state >= ''),
		(SELECT sum(events) FROM event_counts),
		(SELECT count(*) FROM events NOT INDEXED WHERE state = 'waiting'),
		(SELECT count(*) FROM events INDEXED BY events_by_due WHERE state = 'waiting' AND blocked = 0) + (SELECT count(*) FROM events INDEXED BY blocked_by_due WHERE blocked = 1),
		(SELECT count(*) FROM events INDEXED BY events_by_next WHERE state = 'waiting'),
		(SELECT sum(events) FROM event_counts WHERE state = 'waiting'),
		(SELECT count(*) FROM events AS e WHERE state <> 'accepted' AND NOT EXISTS (SELECT 1 FROM bodies AS b WHERE b.number = e.number)),
		(SELECT count(*) FROM bodies AS b WHERE NOT EXISTS (SELECT 1 FROM events AS e WHERE e.number = b.number)),
		(SELECT count(*) FROM events NOT INDEXED WHERE state = 'waiting' AND lane IS NOT NULL),
		(SELECT count(*) FROM events INDEXED BY events_by_lane WHERE state = 'waiting' AND lane IS NOT NULL),
		(SELECT count(*) FROM events AS e WHERE blocked <> (state = 'waiting' AND lane IS NOT NULL AND
			sequence > (SELECT min(sequence) FROM events AS first INDEXED BY events_by_lane WHERE first.state = 'waiting' AND first.lane = e.lane)))`, func(row *sqlite3.Stmt) error {
		for i := 1; i < 6; i++ {
			if row.ColumnInt64(i) != row.ColumnInt64(0) {
				return fmt.Errorf("%w: its counts of the inbox are %d, %d, %d, %d, %d and %d", database.ErrDamaged,
					row.ColumnInt64(0), row.ColumnInt64(1), row.ColumnInt64(2), row.ColumnInt64(3), row.ColumnInt64(4), row.ColumnInt64(5))
			}
		}
		if waiting := row.ColumnInt64(6); waiting != row.ColumnInt64(7) || waiting != row.ColumnInt64(8) || waiting != row.ColumnInt64(9) {
			return fmt.Errorf("%w: %d events wait, but it has indexes of %d and %d and counts %d", database.ErrDamaged,
				waiting, row.ColumnInt64(7), row.ColumnInt64(8), row.ColumnInt64(9))
		}
		if without, orphans := row.ColumnInt64(10), row.ColumnInt64(11); without+orphans > 0 {
			return fmt.Errorf("%w: %d events have no body, and %d bodies no event", database.ErrDamaged, without, orphans)
		}
		if keyed, wrong := row.ColumnInt64(12), row.ColumnInt64(14); keyed != row.ColumnInt64(13) || wrong > 0 {
			return fmt.Errorf("%w: %d events wait in order, but it has an index of %d, and %d are out of order", database.ErrDamaged, keyed, row.ColumnInt64(13), wrong)
		}
		return nil
	})
}
