package sqlite

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/databasetest"
)

const pageSize = 4096

// tryDamaged starts a store with damaged files, and fails the test unless that
// is a clear error, or at most the last of the numbered IDs from 0 are missing,
// as many as may be. It reports whether it was an error.
func tryDamaged(t *testing.T, path, what string, files databasetest.Files, ids uint64, mayMiss int) (refused bool) {
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
	for n := range ids {
		known, err := s.Lookup(t.Context(), "scope", numbered(n).Key)
		if err != nil || !known.Delivered {
			missing++
		} else if missing > 0 {
			t.Errorf("%s: ID %d is known, but an earlier one is not", what, n)
		}
	}
	if missing > mayMiss {
		t.Errorf("%s: %d of %d IDs are missing, and nobody says so", what, missing, ids)
	}
	if n := counted(t, s); n != int(ids)-missing {
		t.Errorf("%s: %d IDs are counted, %d are there", what, n, int(ids)-missing)
	}
	stop(t, s)
	return false
}

// A file that is damaged anywhere is refused, or nothing in it is missing.
func TestDamagedFileIsRefusedOrComplete(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	const ids = 2000
	record(t, s, 0, ids-300, time.Now().Add(time.Hour))
	stop(t, s)
	old := databasetest.Read(t, path)
	s = start(t, path)
	record(t, s, ids-300, 300, time.Now().Add(time.Hour))
	stop(t, s)
	good := databasetest.Read(t, path)
	databasetest.DamageFile(t, good, old, 30, 1000, func(what string, files databasetest.Files) bool {
		return tryDamaged(t, path, what, files, ids, 0)
	})
	databasetest.Write(t, path, good)
	stop(t, start(t, path))
}

// What is in the log only, because Caddy was killed, is there, or the file is
// refused. Damage to the end of the log cannot be told from a crash while that
// was written.
func TestDamagedLogIsRefusedOrComplete(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	const ids = 20
	ends := make([]int64, 0, ids) // of the log, after each ID
	for n := range uint64(ids) {
		deliver(t, s, numbered(n))
		info, err := os.Stat(path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, info.Size())
	}
	time.Sleep(1500 * time.Millisecond) // until the size of the log is noted
	killed := databasetest.Read(t, path)
	stop(t, s)
	if tryDamaged(t, path, "not damaged", killed, ids, 0) {
		t.Fatal("a killed process is taken for damage")
	}

	secondLast := int(ends[ids-3])
	databasetest.DamageLog(t, killed, 700, 600, func(what string, at int, files databasetest.Files) bool {
		mayMiss := 0
		if at >= secondLast { // see checkLog
			mayMiss = 2
		}
		return tryDamaged(t, path, what, files, ids, mayMiss)
	})
}

// Each page of the last transaction may have reached the disk or not when the
// power fails: nothing that was acknowledged is missing.
func TestPowerLossIsNoDamage(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	const ids = 40
	for n := range uint64(ids) {
		deliver(t, s, numbered(n))
	}
	before := databasetest.Read(t, path)
	record(t, s, ids, 50, time.Now().Add(time.Hour))
	after := databasetest.Read(t, path)
	stop(t, s)
	databasetest.LosePower(before, after, func(what string, files databasetest.Files) {
		if tryDamaged(t, path, what, files, ids, 0) {
			t.Errorf("%s: a power loss is taken for damage", what)
		}
	})
}

func TestDamageThatIsFoundLaterIsAnErrorForWhatItAffects(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	const ids = 5000
	record(t, s, 0, ids, time.Now().Add(time.Hour))
	stop(t, s)
	s = start(t, path)
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for at := int64(20*pageSize + 2000); at < info.Size(); at += 20 * pageSize {
		if _, err := file.WriteAt([]byte{1, 2, 3, 4}, at); err != nil {
			t.Fatal(err)
		}
	}
	failed := 0
	for n := range uint64(ids) {
		v, err := s.Claim(t.Context(), numbered(n))
		switch {
		case err != nil:
			failed++
		case v.State != dedupe.Delivered:
			t.Fatalf("an acknowledged ID is %v", v.State)
		}
	}
	t.Logf("%d of %d IDs cannot be looked up", failed, ids)
	if failed == 0 || failed == ids {
		t.Errorf("%d of %d IDs cannot be looked up", failed, ids)
	}
	if err := s.Stats().Err; err == nil || !strings.Contains(err.Error(), path+" is damaged") {
		t.Errorf("the store says %v", err)
	}
	_ = s.Cleanup()
}
