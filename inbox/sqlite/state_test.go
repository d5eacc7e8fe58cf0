package sqlite

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/database"
)

// steps returns how many instructions SQLite has run for the store: a measure of
// work that does not depend on the machine.
func steps(t *testing.T, s *Store) int64 {
	t.Helper()
	var n atomic.Int64
	add := func(c *database.Conn) error {
		return c.Query("SELECT 1", func(row *sqlite3.Stmt) error {
			for stmt := range row.Conn().Stmts() {
				n.Add(int64(stmt.Status(sqlite3.STMTSTATUS_VM_STEP, false)))
			}
			return nil
		})
	}
	if err := s.state.db.Write(t.Context(), add); err != nil {
		t.Fatal(err)
	}
	const readers = 2 // connections
	var met, ended sync.WaitGroup
	met.Add(readers)
	for range readers {
		ended.Go(func() {
			err := s.state.db.Read(context.Background(), func(c *database.Conn) error { met.Done(); met.Wait(); return add(c) })
			if err != nil {
				t.Error(err)
			}
		})
	}
	ended.Wait()
	return n.Load()
}

// multiply adds as many events, each due a millisecond after the one before it. It is
// faster than fill.
func multiply(t *testing.T, s *Store, events int) {
	t.Helper()
	e := numbered(1, 16)
	e.Arrived = e.Arrived.Add(-time.Hour)
	e.Due = e.Arrived
	number := add(t, s, e)
	err := s.state.write(t.Context(), func(c *database.Conn) error {
		return errors.Join(c.Exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
			INSERT INTO events(state, since, due, target, scope, key, digest, id, type, order_key, secret, arrived, size, attempts, first, last, reason, sequence)
			SELECT state, since + i*1000000, due + i*1000000, target, scope, randomblob(16), digest, id, type, order_key, secret, arrived, size, attempts, first, last, reason, sequence + i
			FROM events, n WHERE number = ?`, events-1, number),
			c.Exec("INSERT INTO bodies SELECT e.number, b.request, b.body FROM events e, bodies b WHERE e.number > b.number"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Stats().Waiting; got != events {
		t.Fatalf("there are %d events, want %d", got, events)
	}
}

// drain delivers at least n events to a backend that accepts all, and returns how
// many it has delivered.
func drain(t *testing.T, s *Store, n int) int {
	t.Helper()
	before := s.Stats().Waiting
	var accepted atomic.Int64
	enough := make(chan struct{})
	d := inbox.NewDispatcher(s)
	d.Activate(inbox.Config{
		Policy: inbox.Policy{FirstRetry: time.Second, LongestRetry: time.Minute, DeadAfter: 72 * time.Hour, Concurrency: 8},
		Deliver: func(context.Context, inbox.Event) inbox.Outcome {
			if accepted.Add(1) == int64(n) {
				close(enough)
			}
			return inbox.Outcome{Accepted: true, Attempt: inbox.Attempt{Status: 200}}
		},
		Remember: func(context.Context, inbox.Event) error { return nil },
		Hooks:    inbox.Hooks{Trouble: func(doing string, err error) { t.Error(doing, err) }},
	})
	caddytest.Receive(t, enough, "the deliveries")
	d.Stop(t.Context())
	return before - s.Stats().Waiting
}

// Other queues have slowed down to a tenth with as many events.
func TestDrainingDoesNotSlowWithDepth(t *testing.T) {
	work := make(map[int]float64)
	const deep = 20_000 // the bench has 100,000
	for _, depth := range []int{1000, deep} {
		s := start(t, newPath(t))
		multiply(t, s, depth)
		before := steps(t, s)
		delivered := drain(t, s, 900)
		work[depth] = float64(steps(t, s)-before) / float64(delivered)
		stop(t, s)
	}
	t.Logf("instructions for each delivery, by events that wait: %v", work)
	if work[deep] > 1.5*work[1000] {
		t.Error("it slows with depth")
	}
}

// A step that removes or retries many events is as small whatever their number: new
// events do not wait for long.
func TestStepsOfChangesOfManyEventsAreBounded(t *testing.T) {
	ctx := t.Context()
	work := make(map[int]int64)
	for _, depth := range []int{1000, 20_000} {
		s := start(t, newPath(t))
		multiply(t, s, depth)
		before := steps(t, s)
		for _, died := range []time.Time{{}, time.Now().Add(time.Hour)} {
			expired, err := s.Expire(ctx, time.Now(), time.Now(), died, time.Time{}, 200)
			if err != nil || expired.Changed() != 200 {
				t.Errorf("expired %+v, error %v", expired, err)
			}
		}
		if _, err := s.Advance(ctx, time.Now().Add(-2*time.Hour), 200); err != nil {
			t.Error(err)
		}
		if _, err := s.List(ctx, inbox.Filter{State: []inbox.State{inbox.Waiting}}, int64(depth/2), 100); err != nil {
			t.Error(err)
		}
		work[depth] = steps(t, s) - before
		stop(t, s)
	}
	t.Logf("instructions, by events: %d", work)
	if float64(work[20_000]) > 1.5*float64(work[1000]) {
		t.Error("the steps grow")
	}
}

func TestAttemptsTakeNoMoreRoomTheMoreThereAre(t *testing.T) {
	s := start(t, newPath(t))
	n := add(t, s, numbered(1, 10))
	began := time.Now()
	size := func(attempts int) (size int) {
		for i := range attempts {
			a := inbox.Attempt{Time: began.Add(time.Duration(i) * time.Second), Duration: 0.125, Cause: "unreachable", Error: strings.Repeat("x", 500)}
			if err := s.Attempted(t.Context(), n, a, began, time.Time{}); err != nil {
				t.Fatal(err)
			}
		}
		err := s.state.db.Read(t.Context(), func(c *database.Conn) error {
			return c.Query("SELECT octet_length(first) + octet_length(last) FROM events", func(row *sqlite3.Stmt) error { size = row.ColumnInt(0); return nil })
		})
		if err != nil {
			t.Fatal(err)
		}
		return size
	}
	few := size(2)
	if many := size(1000); many > few+20 { // a time may have more digits
		t.Errorf("the attempts take %d bytes, and took %d", many, few)
	}
}

func TestFileThatIsRemovedOrReplacedIsAnError(t *testing.T) {
	s := start(t, newPath(t))
	n := add(t, s, numbered(1, 10))
	away := s.path + ".away"
	if err := os.Rename(s.path, away); err != nil {
		t.Skip("this system does not let go of files in use:", err)
	}
	caddytest.WaitFor(t, "the loss to be noticed", func() bool { return s.Stats().Err != nil })
	if err := os.WriteFile(s.path, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Add(t.Context(), numbered(2, 10), noLimit); err == nil || !strings.Contains(err.Error(), s.path+" was removed or replaced") {
		t.Errorf("an event is kept in a file that nobody finds: %v", err)
	}
	if err := s.Accepted(t.Context(), n, inbox.Attempt{Time: time.Now()}, false); err == nil {
		t.Error("an acceptance is recorded in a file that nobody finds")
	}
	if e, err := s.Find(t.Context(), "scope", dedupe.KeyOf("evt_00000001")); err != nil || e.Number != n { // else duplicates would be delivered
		t.Errorf("found %d, error %v", e.Number, err)
	}
	if err := os.Rename(away, s.path); err != nil {
		t.Fatal(err)
	}
	caddytest.WaitFor(t, "the file to be back", func() bool { return s.Stats().Err == nil })
	add(t, s, numbered(2, 10))
	consistent(t, s)
	stop(t, s)
}

// other is another program that uses the file, such as sqlite3.
func other(t *testing.T, s *Store, sql string) {
	t.Helper()
	c, err := sqlite3.OpenFlags(s.path, sqlite3.OPEN_READWRITE)
	if err == nil {
		err = errors.Join(c.BusyTimeout(time.Minute), c.Exec(sql), c.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestChangesByAnotherProgramAreSeen(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("files in use are locked")
	}
	s := start(t, newPath(t))
	removed, died := add(t, s, numbered(1, 10)), add(t, s, numbered(2, 10))
	other(t, s, "DELETE FROM events WHERE number = 1; UPDATE events SET state = 'dead' WHERE number = 2")
	if _, err := s.Load(t.Context(), removed); !errors.Is(err, inbox.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if err := s.Accepted(t.Context(), removed, inbox.Attempt{Time: time.Now()}, false); !errors.Is(err, inbox.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if e, err := s.Load(t.Context(), died); err != nil || e.State != inbox.Dead {
		t.Errorf("it is %s, error %v", e.State, err)
	}
	add(t, s, numbered(3, 10))
	if got := s.Stats(); got.Waiting != 1 || got.Dead != 1 {
		t.Errorf("got %+v", got)
	}
	consistent(t, s)

	// such as a newer version of this program
	other(t, s, "ALTER TABLE events RENAME COLUMN target TO site")
	if n, err := s.Add(t.Context(), numbered(4, 10), noLimit); err == nil {
		t.Errorf("event %d is kept in a format that is not known", n)
	}
	// An event that cannot be read is not taken for one that is gone: else it would
	// be delivered twice.
	_, loadErr := s.Load(t.Context(), died)
	_, findErr := s.Find(t.Context(), "scope", dedupe.KeyOf("evt_00000002"))
	for _, err := range []error{loadErr, findErr, s.Accepted(t.Context(), died, inbox.Attempt{Time: time.Now()}, false)} {
		if err == nil || errors.Is(err, inbox.ErrNotFound) {
			t.Errorf("got %v", err)
		}
	}
	other(t, s, "ALTER TABLE events RENAME COLUMN site TO target")
	add(t, s, numbered(4, 10))
	consistent(t, s)
	stop(t, s)
}

func TestAnotherProgramThatLocksTheFileIsAnError(t *testing.T) {
	s := start(t, newPath(t))
	add(t, s, numbered(1, 10))
	c, err := sqlite3.OpenFlags(s.path, sqlite3.OPEN_READWRITE)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Exec("BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Add(t.Context(), numbered(2, 10), noLimit); !errors.Is(err, sqlite3.BUSY) {
		t.Errorf("got %v", err)
	}
	caddytest.WaitFor(t, "the store to say so", func() bool { return s.Stats().Err != nil })
	if e, err := s.Find(t.Context(), "scope", dedupe.KeyOf("evt_00000001")); err != nil || e.Number != 1 {
		t.Errorf("found %d, error %v", e.Number, err)
	}
	if err := errors.Join(c.Exec("ROLLBACK"), c.Close()); err != nil {
		t.Fatal(err)
	}
	caddytest.WaitFor(t, "the file to be used again", func() bool { return s.Stats().Err == nil })
	if n := add(t, s, numbered(2, 10)); n != 2 {
		t.Errorf("a change that failed has used number 2: the next is %d", n)
	}
	consistent(t, s)
	stop(t, s)
}
