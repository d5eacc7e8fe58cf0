package database

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"
	"go.uber.org/goleak"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

func TestMain(m *testing.M) {
	watchInterval = 5 * time.Millisecond
	goleak.VerifyTestMain(m)
}

func newPath(t testing.TB) string {
	t.Helper()
	path, err := Canonical(filepath.Join(t.TempDir(), "new", "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var numbers = Tables{Name: "test", Migrations: []string{"CREATE TABLE numbers(n INTEGER PRIMARY KEY, text TEXT)"}}

// start opens a database with the table numbers.
func start(t testing.TB, path string) *DB {
	t.Helper()
	db, err := Open(path)
	if err == nil {
		err = db.Use(numbers)
	}
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func stop(t testing.TB, db *DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// fails expects that a database cannot be opened.
func fails(t *testing.T, path string, want ...string) {
	t.Helper()
	db, err := Open(path)
	if err == nil {
		stop(t, db)
		t.Errorf("it is opened, want an error with %q", want)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("got %v, want %q", err, w)
		}
	}
}

func insert(n int) func(*Conn) error {
	return func(c *Conn) error { return c.Exec("INSERT INTO numbers(n, text) VALUES(?, ?)", n, fmt.Sprint(n)) }
}

func write(t testing.TB, db *DB, change func(*Conn) error) {
	t.Helper()
	if err := db.Write(t.Context(), change); err != nil {
		t.Fatal(err)
	}
}

func count(t testing.TB, db *DB) (n int) {
	t.Helper()
	err := db.Read(t.Context(), func(c *Conn) error {
		return c.Query("SELECT count(*) FROM numbers", func(row *sqlite3.Stmt) error { n = row.ColumnInt(0); return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// hold keeps the writer busy until the function that it returns is called.
func hold(db *DB) (release func()) {
	held, ended := make(chan struct{}), make(chan struct{})
	go func() {
		_ = db.Write(context.Background(), func(*Conn) error { close(held); <-ended; return nil })
	}()
	<-held
	return func() { close(ended) }
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(caddytest.Patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestChangeThatFailsFailsAlone(t *testing.T) {
	db := start(t, newPath(t))
	defer stop(t, db)
	own := errors.New("own")
	var shown sync.Map
	release := hold(db)
	var all sync.WaitGroup
	for n := range 100 {
		all.Go(func() {
			err := db.Write(t.Context(), func(c *Conn) error {
				c.OnCommit(func() { shown.Store(n, true) })
				if err := insert(n)(c); err != nil || n%10 != 0 {
					return err
				}
				return own
			})
			if want := n%10 == 0; errors.Is(err, own) != want || err != nil && !want {
				t.Errorf("%d: got %v", n, err)
			}
			if _, ok := shown.Load(n); ok != (err == nil) {
				t.Errorf("%d: OnCommit was called: %v, error %v", n, ok, err)
			}
		})
	}
	release()
	all.Wait()
	if got := count(t, db); got != 90 {
		t.Errorf("%d rows are there, want 90", got)
	}
	if err := db.Write(t.Context(), insert(1)); !errors.Is(err, sqlite3.CONSTRAINT) {
		t.Errorf("got %v", err)
	}
	if err := db.Err(); err != nil {
		t.Errorf("a change that failed counts as a failure of the database: %v", err)
	}
}

// Each sync of the disk takes as long for many changes as for one.
func TestConcurrentChangesShareATransaction(t *testing.T) {
	db := start(t, newPath(t))
	defer stop(t, db)
	commits := 0
	db.writer.raw.CommitHook(func() bool { commits++; return true })
	release := hold(db)
	const changes = 100
	var all sync.WaitGroup
	var arrived sync.WaitGroup
	for n := range changes {
		arrived.Add(1)
		all.Go(func() {
			arrived.Done()
			if err := db.Write(t.Context(), insert(n)); err != nil {
				t.Error(err)
			}
		})
	}
	arrived.Wait()
	time.Sleep(50 * time.Millisecond) // more of them share one, but the number below holds anyway
	release()
	all.Wait()
	if err := db.Read(t.Context(), func(*Conn) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if commits > changes/2 {
		t.Errorf("%d changes took %d transactions", changes, commits)
	}
}

func TestUsersOfOnePathShareADatabase(t *testing.T) {
	path := newPath(t)
	a, b := start(t, path), start(t, path)
	if a != b {
		t.Error("they are two")
	}
	write(t, a, insert(1))
	stop(t, a)
	write(t, b, insert(2))
	stop(t, b)
	c := start(t, path)
	defer stop(t, c)
	if got := count(t, c); got != 2 {
		t.Errorf("%d rows are there, want 2", got)
	}
}

func TestChangeIsOnTheDiskWhenWriteReturns(t *testing.T) {
	path := newPath(t)
	db := start(t, path)
	defer stop(t, db)
	write(t, db, insert(1))
	after := start(t, crashed(t, path))
	defer stop(t, after)
	if count(t, after) != 1 {
		t.Error("it is lost")
	}
}

// crashed copies what is on the disk, as a crash would leave it.
func crashed(t testing.TB, path string) (copied string) {
	t.Helper()
	copied = newPath(t)
	if err := os.MkdirAll(filepath.Dir(copied), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", logSuffix, runningSuffix} {
		content, err := os.ReadFile(path + suffix)
		if err == nil {
			err = os.WriteFile(copied+suffix, content, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return copied
}

func TestFilesAreForTheirOwnerOnly(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no such modes")
	}
	path := newPath(t)
	db := start(t, path)
	defer stop(t, db)
	for name, want := range map[string]fs.FileMode{
		filepath.Dir(path): 0o700, path: 0o600, path + logSuffix: 0o600, path + indexSuffix: 0o600, path + lockSuffix: 0o600, path + runningSuffix: 0o600,
	} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, error %v; want %v", name, info.Mode(), err, want)
		}
	}
}

func TestFileInUseIsAClearError(t *testing.T) {
	path := newPath(t)
	db := start(t, path)
	defer stop(t, db)
	_, err := open(path) // as from another process: it is not in our pool
	if err == nil || !strings.Contains(err.Error(), path+" is in use by another process: give each Caddy") {
		t.Errorf("got %v", err)
	}
}

// As sqlite3 would, with the option -readonly.
func TestOtherProgramsMayReadTheDatabaseWhileItIsInUse(t *testing.T) {
	path := newPath(t)
	db := start(t, path)
	defer stop(t, db)
	write(t, db, insert(1))
	c, err := sqlite3.OpenFlags(path, sqlite3.OPEN_READONLY)
	if err != nil {
		t.Fatal(err)
	}
	s, _, err := c.Prepare("SELECT count(*) FROM numbers")
	if err != nil || !s.Step() || s.ColumnInt(0) != 1 {
		t.Errorf("it reads %v, error %v", s, err)
	}
	write(t, db, insert(2)) // while it reads
	if err := errors.Join(s.Close(), c.Close()); err != nil {
		t.Error(err)
	}
}

func TestFileOfAnotherProgramOrVersionIsLeftAlone(t *testing.T) {
	path := newPath(t)
	stop(t, start(t, path))
	change := func(sql string) {
		t.Helper()
		c, err := sqlite3.OpenFlags(path, sqlite3.OPEN_READWRITE)
		if err == nil {
			err = errors.Join(c.Exec(sql), c.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	change("PRAGMA user_version = 2")
	fails(t, path, path+" was written by a newer version of this plugin", "use that version, or move")
	change("PRAGMA user_version = 1; UPDATE formats SET version = 9")
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Use(numbers); err == nil || !strings.Contains(err.Error(), "was written by a newer version of this plugin (test has format 9, known is 1)") {
		t.Errorf("got %v", err)
	}
	stop(t, db)
	change("PRAGMA application_id = 7")
	fails(t, path, path+" is a database of another program: use another path")
	if err := os.WriteFile(path, []byte(strings.Repeat("something else\n", 500)), 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, path, path+" is no SQLite database")
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	fails(t, path, path+" is damaged (it is empty)")
}

func TestMissingFileThatLeftItsLogIsNoNewFile(t *testing.T) {
	path := newPath(t)
	db := start(t, path)
	left := crashed(t, path)
	stop(t, db)
	content, err := os.ReadFile(left)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(left); err != nil {
		t.Fatal(err)
	}
	fails(t, left, left+" is missing, but not "+left+"-wal", "move all of")
	if err := os.Remove(left + logSuffix); err != nil {
		t.Fatal(err)
	}
	fails(t, left, left+" is missing, but not "+left+"-running", "move all of")
	if err := os.WriteFile(left, content, 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, left, left+" is damaged (its log "+left+"-wal is missing)", "restore a backup, or move all of")
}

// As a crash or a full disk leaves it at the start.
func TestEmptyNoteThatTheFileIsInUseIsNoDamage(t *testing.T) {
	path := newPath(t)
	db := start(t, path)
	write(t, db, insert(1))
	left := crashed(t, path)
	stop(t, db)
	if err := os.Truncate(left+runningSuffix, 0); err != nil {
		t.Fatal(err)
	}
	db = start(t, left)
	defer stop(t, db)
	if got := count(t, db); got != 1 {
		t.Errorf("%d rows are there", got)
	}
}

func TestDirectoryIsAClearError(t *testing.T) {
	dir := filepath.Dir(filepath.Dir(newPath(t)))
	fails(t, dir, dir+" is not a regular file: use the path of a file")
	if _, err := os.Stat(dir + lockSuffix); err == nil {
		t.Error("it leaves a lock beside it")
	}
}

func TestMigrationsRunOnce(t *testing.T) {
	path := newPath(t)
	db := start(t, path)
	write(t, db, insert(1))
	stop(t, db)
	more := numbers
	more.Migrations = append(more.Migrations, "ALTER TABLE numbers ADD COLUMN more INTEGER DEFAULT 7")
	for range 2 {
		db, err := Open(path)
		if err == nil {
			err = db.Use(more)
		}
		if err != nil {
			t.Fatal(err)
		}
		write(t, db, func(c *Conn) error { return c.Exec("UPDATE numbers SET more = more + 1") })
		if got := count(t, db); got != 1 {
			t.Errorf("%d rows are there", got)
		}
		stop(t, db)
	}
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, db)
	if err := db.Use(numbers); err == nil || !strings.Contains(err.Error(), "newer version") {
		t.Errorf("got %v", err)
	}
}

func TestFileRemovedOrReplacedIsNoticed(t *testing.T) {
	for _, suffix := range []string{"", logSuffix, lockSuffix} {
		path := newPath(t)
		db := start(t, path)
		write(t, db, insert(1))
		away := path + suffix + ".away"
		if err := os.Rename(path+suffix, away); err != nil {
			t.Skip("this system does not let go of files in use:", err)
		}
		waitFor(t, "the loss to be noticed", func() bool { return db.Err() != nil })
		if err := db.Write(t.Context(), insert(2)); err == nil || !strings.Contains(err.Error(), path+suffix+" was removed or replaced") {
			t.Errorf("got %v", err)
		}
		if got := count(t, db); got != 1 { // what is known stays known
			t.Errorf("%d rows are read", got)
		}
		if err := os.WriteFile(path+suffix, []byte("another"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * watchInterval)
		if db.Err() == nil {
			t.Error("another file is taken for the one that was opened")
		}
		if err := os.Rename(away, path+suffix); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the file to be back", func() bool { return db.Err() == nil })
		write(t, db, insert(2))
		stop(t, db)
	}
}

// SQLite would write on, and replace what is missing by zeros.
func TestFileThatIsCutOffIsNoticedBeforeAnythingIsWritten(t *testing.T) {
	for _, suffix := range []string{"", logSuffix} {
		path := newPath(t)
		db := start(t, path)
		write(t, db, insert(1))
		if err := os.Truncate(path+suffix, 0); err != nil {
			t.Skip("this system does not let go of files in use:", err)
		}
		if err := db.Write(t.Context(), insert(2)); err == nil || !strings.Contains(err.Error(), path+suffix+" was cut off while Caddy was using it: restart Caddy") {
			t.Errorf("got %v", err)
		}
		waitFor(t, "the database to be lost", func() bool { return db.Err() != nil })
		stop(t, db)
		fails(t, path, path+" is damaged (it")
	}
}

func TestDiskThatHangsKeepsNobodyWaiting(t *testing.T) {
	db := start(t, newPath(t))
	defer stop(t, db)
	release := hold(db)
	ctx, cancel := context.WithTimeout(t.Context(), hangTime+100*time.Millisecond)
	defer cancel()
	if err := db.Write(ctx, insert(1)); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "the disk did not respond in time") {
		t.Errorf("got %v", err)
	}
	if db.Err() == nil {
		t.Error("nobody says that the disk hangs")
	}
	// the others do not wait for it, although their context does not end
	if err := db.Write(context.Background(), insert(2)); err == nil {
		t.Error("it is said to be written")
	}
	release()
	waitFor(t, "the disk to work again", func() bool { return db.Err() == nil })
	write(t, db, insert(3))
}

func TestWriteForCertainReturnsWhenItIsKnownWhetherTheChangeIsMade(t *testing.T) {
	db := start(t, newPath(t))
	defer stop(t, db)
	for n, want := range []error{nil, errors.New("own")} {
		ctx, cancel := context.WithCancel(t.Context())
		begun, end, known := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		go func() {
			known <- db.WriteForCertain(ctx, func(c *Conn) error {
				close(begun)
				<-end
				return errors.Join(insert(n)(c), want)
			})
		}()
		<-begun
		cancel()
		time.Sleep(time.Millisecond)
		if len(known) > 0 {
			t.Errorf("it returns %v while the change is made", <-known)
		}
		close(end)
		if err := <-known; !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	if got := count(t, db); got != 1 {
		t.Errorf("%d rows were written, want 1", got)
	}
}

func TestOutcomeOfAChangeIsKnownWhenTheDatabaseIsClosed(t *testing.T) {
	db := start(t, newPath(t))
	known := make(chan error, 1)
	go func() { known <- db.outcome(&request{done: make(chan error, 1)}) }() // nobody serves it
	stop(t, db)
	if err := <-known; !errors.Is(err, errClosed) {
		t.Errorf("got %v", err)
	}
}

func TestCallerThatGivesUpEarlyDoesNotMakeTheDiskHang(t *testing.T) {
	db := start(t, newPath(t))
	defer stop(t, db)
	defer hold(db)()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := db.Write(ctx, insert(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := db.Err(); err != nil {
		t.Error(err)
	}
}

func TestChangeThatPanicsDoesNotEndTheProcess(t *testing.T) {
	db := start(t, newPath(t))
	err := db.Write(t.Context(), func(*Conn) error { panic("fault") })
	if err == nil || !strings.Contains(err.Error(), "the database failed (fault): restart Caddy") {
		t.Errorf("got %v", err)
	}
	waitFor(t, "the database to be lost", func() bool { return db.Err() != nil })
	if err := db.Write(t.Context(), insert(1)); err == nil {
		t.Error("it is said to be written")
	}
	_ = db.Close()
}

func TestCheckInTheBackgroundThatPanicsDoesNotEndTheProcess(t *testing.T) {
	defer func(was int64) { smallFile = was }(smallFile)
	smallFile = 0
	db := start(t, newPath(t))
	defer stop(t, db)
	checked := make(chan struct{})
	failing := numbers
	failing.Check = func(*Conn) error { defer close(checked); panic("fault") }
	if err := db.Use(failing); err != nil {
		t.Fatal(err)
	}
	<-checked
}

func TestNewFileIsThereCompletelyOrNotAtAll(t *testing.T) {
	path := newPath(t)
	stop(t, start(t, path))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 100, len(whole)} { // what a crash may leave of a file that was not finished
		if err := errors.Join(os.Remove(path), os.WriteFile(path+"-new", whole[:size], 0o600), os.WriteFile(path+"-new-journal", whole[:size], 0o600)); err != nil {
			t.Fatal(err)
		}
		db := start(t, path)
		write(t, db, insert(1))
		stop(t, db)
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if name := e.Name(); name != "test.db" && name != "test.db-lock" {
				t.Errorf("%s is left", name)
			}
		}
	}
}

func TestPathThatCannotBeWrittenIsAClearError(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("these paths are for Linux")
	}
	for _, path := range []string{"/proc/test.db", "/dev/null/test.db", "/proc/sys/new/test.db"} {
		fails(t, path, "/")
	}
}

func TestLargeFileIsCheckedInTheBackground(t *testing.T) {
	defer func(was int64) { smallFile = was }(smallFile)
	smallFile = 0
	path := newPath(t)
	db := start(t, path)
	write(t, db, func(c *Conn) error {
		for n := range 5000 {
			if err := insert(n)(c); err != nil {
				return err
			}
		}
		return nil
	})
	stop(t, db)
	stop(t, start(t, path))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{1, 2, 3, 4}, 5*4096+1000); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	db, err = Open(path)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the damage to be found", func() bool { return db.Err() != nil })
	if err := db.Err(); !strings.Contains(err.Error(), path+" is damaged") {
		t.Errorf("got %v", err)
	}
	stop(t, db)
}

// Otherwise the log would say every second that the disk fails, or works again.
func TestDamageIsNoFailureOfTheDisk(t *testing.T) {
	db, err := Open(newPath(t))
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, db)
	bad := numbers
	bad.Expire = func(*Conn, int) (int, error) { return 0, sqlite3.CORRUPT }
	if err := db.Use(bad); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the damage to be found", func() bool { return db.Err() != nil })
	write(t, db, insert(1))
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.damage == nil || db.err != nil {
		t.Errorf("damage %v, disk %v", db.damage, db.err)
	}
}

// Privacy: a payload that is removed must not be found in a copy of the files.
func TestWhatIsScrubbedIsNotReadableAnyMore(t *testing.T) {
	path := newPath(t)
	db := start(t, path)
	defer stop(t, db)
	secret := func(n int) string { return fmt.Sprintf("<secret %d>", n) }
	const rows = 200
	for n := range rows {
		text := strings.Repeat(secret(n), 1+n*n/10) // up to several pages
		write(t, db, func(c *Conn) error { return c.Exec("INSERT INTO numbers(n, text) VALUES(?, ?)", n, text) })
	}
	write(t, db, func(c *Conn) error {
		c.Scrub()
		return c.Exec("DELETE FROM numbers WHERE n > 0")
	})
	found := ""
	waitFor(t, "the files to be scrubbed", func() bool {
		found = ""
		for _, suffix := range []string{"", logSuffix} {
			content, err := os.ReadFile(path + suffix)
			if err != nil {
				t.Fatal(err)
			}
			for n := 1; n < rows; n++ {
				if bytes.Contains(content, []byte(secret(n))) {
					found += fmt.Sprint(" ", n, suffix)
				}
			}
		}
		return found == ""
	})
	if got := count(t, db); got != 1 {
		t.Errorf("%d rows are left", got)
	}
}

func TestLogIsTruncated(t *testing.T) {
	defer func(was int64) { maxLog = was }(maxLog)
	maxLog = 100_000
	path := newPath(t)
	db := start(t, path)
	n := 0
	size := func() int64 {
		info, err := os.Stat(path + logSuffix)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	for size() <= maxLog {
		write(t, db, insert(n))
		n++
	}
	waitFor(t, "the log to be truncated", func() bool { return size() < maxLog })
	for range 3 {
		after := start(t, crashed(t, path))
		if got := count(t, after); got != n {
			t.Errorf("%d of %d rows are there", got, n)
		}
		stop(t, after)
		write(t, db, insert(n))
		n++
	}
	stop(t, db)
}

// Caddy must not be killed because it takes too long to stop.
func TestDatabaseClosesBeforeAllThatHasExpiredIsRemoved(t *testing.T) {
	db, err := Open(newPath(t))
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	begun := make(chan struct{})
	endless := numbers
	endless.Expire = func(_ *Conn, limit int) (int, error) {
		once.Do(func() { close(begun) })
		return limit, nil
	}
	if err := db.Use(endless); err != nil {
		t.Fatal(err)
	}
	<-begun
	stop(t, db)
}

func TestTablesOfAnotherVersionThanTheFileSaysAreDamage(t *testing.T) {
	path := newPath(t)
	db := start(t, path)
	if err := db.Write(t.Context(), func(c *Conn) error { return c.Exec("DELETE FROM formats") }); err != nil {
		t.Fatal(err)
	}
	stop(t, db)
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t, db)
	if err := db.Use(numbers); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "already exists") {
		t.Errorf("got %v", err)
	}
}
