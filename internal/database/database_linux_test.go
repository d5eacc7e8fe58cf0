package database

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// As when Caddy has too many connections while a configuration is loaded.
func TestOpeningThatFailsHalfWayCanBeRepeated(t *testing.T) {
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	limit := func(l syscall.Rlimit) {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
			t.Fatal(err)
		}
	}
	defer limit(was)
	stopped := newPath(t)
	db := start(t, stopped)
	write(t, db, insert(1))
	killed := crashed(t, stopped)
	stop(t, db)
	for _, path := range []string{stopped, killed} {
		failed := true
		for files := uint64(3); failed; files++ {
			limit(syscall.Rlimit{Cur: files, Max: was.Max})
			db, err := Open(path)
			limit(was)
			if failed = err != nil; failed {
				db = start(t, path)
				if got := count(t, db); got != 1 {
					t.Errorf("%d rows are there after %v", got, err)
				}
			}
			stop(t, db)
		}
	}
}

// Otherwise a process that is killed in between leaves what looks like a log that was
// lost.
func TestDatabaseIsInUseUntilItsLogIsRemoved(t *testing.T) {
	path := newPath(t)
	db := start(t, path)
	write(t, db, insert(1))
	watch, err := syscall.InotifyInit()
	if err != nil {
		t.Fatal(err)
	}
	events := os.NewFile(uintptr(watch), "inotify")
	defer events.Close()
	if _, err := syscall.InotifyAddWatch(watch, filepath.Dir(path), syscall.IN_DELETE); err != nil {
		t.Fatal(err)
	}
	stop(t, db)
	removed := make([]byte, 4096)
	n, err := events.Read(removed)
	if err != nil {
		t.Fatal(err)
	}
	note, log := bytes.Index(removed[:n], []byte(runningSuffix)), bytes.Index(removed[:n], []byte(logSuffix))
	if note < 0 || log < 0 || note > log {
		t.Errorf("its files were removed in the wrong order: %q", removed[:n])
	}
}
