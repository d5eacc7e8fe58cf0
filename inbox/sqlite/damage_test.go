package sqlite

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/databasetest"
)

// written is what the n-th event is like that a test of damage has added: every
// third one is dead, and the body of every fifth one is of several pages.
func written(n int) inbox.Event {
	e := numbered(n, 100)
	if n%5 == 0 {
		e = numbered(n, 10_000)
	}
	e.State = inbox.Waiting
	if n%3 == 0 {
		e.State = inbox.Dead
	}
	return e
}

// addWritten adds events from number first on.
func addWritten(t *testing.T, s *Store, first, count int) {
	t.Helper()
	for n := first; n < first+count; n++ {
		e := written(n)
		if number := add(t, s, e); number != int64(n) {
			t.Fatalf("event %d has number %d", n, number)
		}
		if e.State == inbox.Dead {
			if err := s.Attempted(t.Context(), int64(n), inbox.Attempt{Time: time.Now()}, time.Now(), time.Now()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// tryDamaged starts a store with damaged files, and fails the test unless that is a
// clear error, or at most the last changes to the events are missing, as many as may
// be. It reports whether it was an error.
func tryDamaged(t *testing.T, path, what string, files databasetest.Files, events, mayMiss int) (refused bool) {
	t.Helper()
	databasetest.Write(t, path, files)
	s, err := load(t, at(path))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		databasetest.ExpectClear(t, path, what, err)
		return true
	}
	missing := 0
	for n := 1; n <= events; n++ {
		want := written(n)
		e, err := s.Load(t.Context(), int64(n))
		switch {
		case errors.Is(err, inbox.ErrNotFound):
			missing++
			if want.State == inbox.Dead {
				missing++ // and its death
			}
		case err != nil || missing > 0 || e.ID != want.ID || !bytes.Equal(e.Body, want.Body):
			t.Errorf("%s: event %d is %+.200v, error %v, after %d that are missing", what, n, e, err, missing)
		case e.State != want.State:
			missing++
		}
	}
	if missing > mayMiss {
		t.Errorf("%s: %d changes are missing, and nobody says so", what, missing)
	}
	consistent(t, s)
	stop(t, s)
	return false
}

// A file that is damaged anywhere is refused, or nothing in it is missing.
func TestDamagedFileIsRefusedOrComplete(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	const events = 60
	addWritten(t, s, 1, events-10)
	stop(t, s)
	old := databasetest.Read(t, path)
	s = start(t, path)
	addWritten(t, s, events-9, 10)
	stop(t, s)
	good := databasetest.Read(t, path)
	databasetest.DamageFile(t, good, old, 18, 1000, func(what string, files databasetest.Files) bool {
		return tryDamaged(t, path, what, files, events, 0)
	})
	databasetest.Write(t, path, good)
	stop(t, start(t, path))
}

// What is in the log only, because Caddy was killed, is there, or the file is
// refused. Damage to the end of the log cannot be told from a crash while that was
// written.
func TestDamagedLogIsRefusedOrComplete(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	const events = 14
	var secondLast int64 // where the log ended before the last two changes
	for n := 1; n <= events; n++ {
		addWritten(t, s, n, 1)
		if n == events-2 {
			info, err := os.Stat(path + "-wal")
			if err != nil {
				t.Fatal(err)
			}
			secondLast = info.Size()
		}
	}
	time.Sleep(1500 * time.Millisecond) // until the size of the log is noted
	killed := databasetest.Read(t, path)
	stop(t, s)
	if tryDamaged(t, path, "not damaged", killed, events, 0) {
		t.Fatal("a killed process is taken for damage")
	}
	databasetest.DamageLog(t, killed, 500, 300, func(what string, at int, files databasetest.Files) bool {
		mayMiss := 0
		if int64(at) >= secondLast { // see checkLog of the database
			mayMiss = 2
		}
		return tryDamaged(t, path, what, files, events, mayMiss)
	})
}

// Each page of the last transaction may have reached the disk or not when the power
// fails: nothing that was acknowledged is missing.
func TestPowerLossLosesNothing(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	const events = 19
	addWritten(t, s, 1, events)
	before := databasetest.Read(t, path)
	addWritten(t, s, events+1, 1) // one transaction of several pages
	after := databasetest.Read(t, path)
	stop(t, s)
	databasetest.LosePower(before, after, func(what string, files databasetest.Files) {
		if tryDamaged(t, path, what, files, events, 0) {
			t.Errorf("%s: a power loss is taken for damage", what)
		}
	})
}
