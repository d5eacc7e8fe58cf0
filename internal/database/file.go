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
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/ncruces/go-sqlite3"
	"go.uber.org/zap"
)

const (
	// applicationID is in the header of each file: "BzBp".
	applicationID = 0x427a4270
	// format is the version of what this package keeps in the file.
	format = 1

	readConnections = 2
	lockTimeout     = 2 * time.Second
)

var (
	// smallFile is the size up to which a file is checked as a whole before it
	// is used: that takes well under a second.
	smallFile int64 = 32 << 20
	// maxLog is the size above which the write-ahead log is truncated. Usually
	// SQLite begins it again at 4 MB.
	maxLog int64 = 32 << 20
)

// suffixes of the files beside the database.
const (
	logSuffix     = "-wal"
	indexSuffix   = "-shm"
	lockSuffix    = "-lock"
	runningSuffix = "-running"
)

// ErrDamaged is in errors that say that a file is damaged.
var ErrDamaged = errors.New("damaged")

func damaged(path string, err error) error {
	return fmt.Errorf("%s is damaged (%w): restore a backup, or move all of %s* away to start with nothing; do not delete them: docs/INBOX.md says how to read the events of an inbox from them", path, err, path)
}

// PathArg reads the path that may follow the name of a module in a Caddyfile.
func PathArg(d *caddyfile.Dispenser) (path string, err error) {
	if d.NextArg() {
		if path = d.Val(); path == "" {
			return "", d.Err("the path is empty")
		}
	}
	if d.NextArg() {
		return "", d.ArgErr()
	}
	return path, nil
}

// Resolve returns the canonical path for the option path of a module, in which
// global placeholders are expanded. If the option was not given, it is
// buzzbip/webhook.db in Caddy's data directory.
func Resolve(option string) (string, error) {
	if option == "" {
		return Canonical(filepath.Join(caddy.AppDataDir(), "buzzbip", "webhook.db"))
	}
	path, err := caddy.NewReplacer().ReplaceOrErr(option, true, true)
	if err != nil {
		return "", fmt.Errorf("path: %w", err)
	}
	if strings.TrimSpace(path) == "" {
		return "", errors.New("path is empty")
	}
	return Canonical(path)
}

// Canonical returns one path for all spellings of it, the same before and after
// the file and its directories have been created.
func Canonical(path string) (string, error) {
	existing, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	missing := ""
	for links := 0; links < 40; {
		real, err := filepath.EvalSymlinks(existing)
		if err == nil {
			return filepath.Join(real, missing), nil
		}
		dir := filepath.Dir(existing)
		target, err := os.Readlink(existing)
		if err != nil {
			if dir == existing { // a drive that does not exist
				return "", err
			}
			missing = filepath.Join(filepath.Base(existing), missing)
			existing = dir
			continue
		}
		links++
		if !filepath.IsAbs(target) { // relative to the real directory of the link
			if dir, err = filepath.EvalSymlinks(dir); err != nil {
				return "", err
			}
			target = filepath.Join(dir, target)
		}
		existing = target
	}
	return "", fmt.Errorf("%s: too many symbolic links", path)
}

func open(path string) (_ *DB, err error) {
	db := &DB{path: path, writes: make(chan *request), reads: make(chan *request)}
	db.ctx, db.stop = context.WithCancel(context.Background())
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file: use the path of a file", path)
	}
	if db.lock, err = lock(path); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			db.stop()
			db.workers.Wait()
			_ = db.disconnect()
			_ = db.lock.Close()
		}
	}()
	if err := prepare(path); err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	db.small = info.Size() <= smallFile
	if db.writer, err = connect(path); err == nil {
		err = db.start()
	}
	if err != nil {
		return nil, explain(path, err)
	}
	files := make(map[string]os.FileInfo)
	for _, name := range []string{path, path + logSuffix, path + lockSuffix} { // without the lock, another process could use it
		if files[name], err = os.Stat(name); err != nil {
			return nil, err
		}
	}
	db.workers.Go(func() { db.write(db.writer) })
	for _, c := range db.readers {
		db.workers.Go(func() { db.read(c) })
	}
	db.workers.Go(func() { db.watch(files) })
	return db, nil
}

// start checks the database, and connects the readers.
func (db *DB) start() error {
	var application, version int
	if err := db.writer.Query("PRAGMA application_id", func(row *sqlite3.Stmt) error { application = row.ColumnInt(0); return nil }); err != nil {
		return err
	}
	if err := db.writer.Query("PRAGMA user_version", func(row *sqlite3.Stmt) error { version = row.ColumnInt(0); return nil }); err != nil {
		return err
	}
	switch {
	case application != applicationID:
		return fmt.Errorf("%s is a database of another program: use another path", db.path)
	case version > format:
		return newerFormat(db.path, "", version, format)
	}
	if err := db.checkNowOrLater(integrity); err != nil {
		return err
	}
	if err := touch(db.writer); err != nil { // tells whether the file can be written to
		return err
	}
	if err := db.noteLog(); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(db.path)); err != nil {
		return err
	}
	for range readConnections {
		c, err := connect(db.path)
		if err != nil {
			return err
		}
		db.readers = append(db.readers, c)
		if err := c.Exec("PRAGMA query_only = 1"); err != nil {
			return err
		}
	}
	return nil
}

// explain says what to do about an error of SQLite.
func explain(path string, err error) error {
	switch {
	case errors.Is(err, sqlite3.CORRUPT), errors.Is(err, sqlite3.NOTADB), errors.Is(err, sqlite3.IOERR_DATA),
		errors.Is(err, sqlite3.IOERR_SHORT_READ), errors.Is(err, ErrDamaged):
		return damaged(path, err)
	case errors.Is(err, sqlite3.BUSY):
		return fmt.Errorf("%s is locked by another program: close it", path)
	case errors.As(err, new(*sqlite3.Error)), errors.As(err, new(sqlite3.ErrorCode)):
		return fmt.Errorf("opening %s: %w", path, withRemedy(err))
	}
	return err
}

// withRemedy adds to an error of the disk what to check. What the system said is usually
// lost when SQLite undoes the change.
func withRemedy(err error) error {
	if errors.Is(err, sqlite3.FULL) || errors.Is(err, sqlite3.IOERR) && !errors.Is(err, sqlite3.IOERR_DATA) {
		return fmt.Errorf("%w: check whether the disk is full, or fails", err)
	}
	return err
}

// checkNowOrLater runs a check on a small file at once, and on a large one in
// the background.
func (db *DB) checkNowOrLater(check func(*Conn) error) error {
	if db.small {
		if db.readers == nil {
			return check(db.writer)
		}
		return db.Read(db.ctx, check)
	}
	db.workers.Go(func() {
		began := time.Now()
		c, err := connect(db.path)
		if err == nil {
			c.raw.SetInterrupt(db.ctx)
			_, err = c.guard(check)
			_, _ = c.guard((*Conn).close)
		}
		switch {
		case db.ctx.Err() != nil:
		case err != nil:
			db.note(err)
			logger().Error("failed to check the database", zap.String("path", db.path), zap.Error(err))
		default:
			logger().Info("checked the database in the background", zap.String("path", db.path), zap.Duration("duration", time.Since(began)))
		}
	})
	return nil
}

// integrity reads the whole database.
func integrity(c *Conn) error {
	return c.Query("PRAGMA integrity_check(1)", func(row *sqlite3.Stmt) error {
		if found := row.ColumnText(0); found != "ok" {
			return fmt.Errorf("%w: %s", ErrDamaged, found)
		}
		return nil
	})
}

// lock acquires the lock of a database for this process. The system releases it
// when the process ends. It is SQLite's own lock on an empty file, because only
// that lets other programs read the database, and works on all systems.
func lock(path string) (*sqlite3.Conn, error) {
	name := path + lockSuffix
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	c, err := sqlite3.OpenFlags(name, sqlite3.OPEN_READWRITE)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	err = c.BusyTimeout(lockTimeout)
	if err == nil {
		err = c.Exec("PRAGMA journal_mode = memory; BEGIN EXCLUSIVE")
	}
	if err != nil {
		_ = c.Close()
		if errors.Is(err, sqlite3.BUSY) {
			return nil, fmt.Errorf("%s is in use by another process: give each Caddy a file of its own, or use store redis", path)
		}
		return nil, fmt.Errorf("locking %s: %w", name, err)
	}
	return c, nil
}

// prepare creates the database if there is none, and checks what can be checked
// before SQLite uses the files.
func prepare(path string) error {
	if err := create(path); err != nil {
		return err
	}
	header := make([]byte, 100)
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	n, _ := f.ReadAt(header, 0)
	_ = f.Close()
	switch {
	case n == 0:
		return damaged(path, errors.New("it is empty"))
	case n < len(header) || !bytes.HasPrefix(header, []byte("SQLite format 3\x00")):
		return fmt.Errorf("%s is no SQLite database, or its start is damaged: use another path, or restore a backup, or move it away to start with nothing", path)
	case bytes.Equal(header[68:72], []byte{0x42, 0x7a, 0x42, 0x70}) && header[20] != 8: // pages have no checksums
		return damaged(path, errors.New("its header is wrong"))
	}
	size, running, err := running(path)
	if err != nil {
		return err
	}
	if err := checkLog(path+logSuffix, size, running); err != nil {
		return damaged(path, err)
	}
	for _, suffix := range []string{logSuffix, indexSuffix} { // SQLite would create them for all to read
		f, err := os.OpenFile(path+suffix, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// create creates the database if there is none, completely or not at all. The
// caller has the lock.
func create(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, suffix := range []string{logSuffix, runningSuffix} {
		if info, err := os.Stat(path + suffix); err == nil && (info.Size() > 0 || suffix == runningSuffix) {
			return fmt.Errorf("%s is missing, but not %s%s: put it back, or move all of %s* away to start with nothing", path, path, suffix, path)
		}
	}
	unfinished := path + "-new"
	for _, suffix := range []string{"", "-journal", logSuffix, indexSuffix} { // left by a crash
		if err := os.Remove(unfinished + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	f, err := os.OpenFile(unfinished, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		defer os.Remove(unfinished)
		err = f.Close()
	}
	if err == nil {
		err = fill(unfinished)
	}
	if err == nil {
		err = os.Rename(unfinished, path)
	}
	dir := filepath.Dir(path)
	if err == nil {
		err = syncDir(dir)
	}
	for parent := filepath.Dir(dir); parent != dir; dir, parent = parent, filepath.Dir(parent) {
		_ = syncDir(parent) // those that are new can be read
	}
	if err != nil {
		return fmt.Errorf("creating %s: %w", path, withRemedy(err))
	}
	logger().Info("created a new database, which remembers nothing yet", zap.String("path", path))
	return nil
}

func fill(path string) error {
	c, err := sqlite3.OpenFlags(path, sqlite3.OPEN_READWRITE)
	if err != nil {
		return err
	}
	_, err = c.FileControl("main", sqlite3.FCNTL_RESERVE_BYTES, 8) // enables checksums
	if err == nil {
		err = c.Exec(fmt.Sprintf(`
			PRAGMA synchronous = full;
			PRAGMA page_size = 4096;
			PRAGMA auto_vacuum = incremental;
			PRAGMA application_id = %d;
			PRAGMA user_version = %d;
			CREATE TABLE formats(name TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT, WITHOUT ROWID;
			PRAGMA journal_mode = wal`, applicationID, format))
	}
	return errors.Join(err, c.Close())
}

// running reads what setRunning wrote.
func running(path string) (logSize int64, running bool, err error) {
	content, err := os.ReadFile(path + runningSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err == nil && len(content) > 0 { // a crash while the file is created leaves it empty
		logSize, err = strconv.ParseInt(strings.TrimSpace(string(content)), 10, 64)
	}
	if err != nil {
		return 0, true, damaged(path, fmt.Errorf("%s%s cannot be read: %w", path, runningSuffix, err))
	}
	return logSize, true, nil
}

// setRunning notes beside the database that it is in use, and how large its
// write-ahead log is at least. If that is still there when the database is
// opened, its last process was killed, and a smaller log is damaged.
func setRunning(path string, logSize int64) error {
	f, err := os.OpenFile(path+runningSuffix, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%020d\n", logSize) // always as long, so that it is replaced in one write
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	if runtime.GOOS == "windows" { // it keeps directories in its own journal
		return nil
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
