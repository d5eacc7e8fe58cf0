// Package database keeps the tables of the plugin in one SQLite file, which the
// users of that file in this process share, across configurations.
//
// Changes go to one goroutine, which commits those that arrived in the meantime
// together: see [DB.Write]. Reads run beside it: see [DB.Read].
//
// # Files
//
// Beside the database are its write-ahead log (-wal), SQLite's index of that
// (-shm), and -lock, which one process locks for as long as it uses the
// database. Other programs may read the database in the meantime. Programs that
// change it without maintaining its page checksums damage it.
//
// # Damage
//
// Each page in the file has a checksum, which is verified whenever the page is
// read from the disk: see SQLite's cksumvfs. A file of up to smallFile bytes is
// checked as a whole before it is used, a larger one in the background. See
// checkLog for the write-ahead log.
package database

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/ncruces/go-sqlite3"
	"go.uber.org/zap"
)

// DB is an open database. Its methods are safe for concurrent use.
type DB struct {
	path   string
	lock   *sqlite3.Conn // see lock
	writes chan *request
	reads  chan *request
	busy   atomic.Int64 // since when the writer has been working, as a Unix time in nanoseconds; 0: it waits

	ctx      context.Context // done when the database is closing
	stop     context.CancelFunc
	workers  sync.WaitGroup
	writer   *Conn
	readers  []*Conn
	logSize  int64                     // as noted; see setRunning
	vacuumed bool                      // since the file was made smaller
	small    bool                      // checked as a whole before it is used
	sizes    [len(watched)]os.FileInfo // see noteSizes

	mu     sync.Mutex
	tables []Tables
	err    error // of the last commit, or of a disk that does not respond
	hangs  bool  // err is that the disk does not respond
	damage error // found since the database was opened
	moved  error // the path leads to another file, or none
	lost   error // the file is not to be used any more
}

// pool has the open databases by path.
var pool = caddy.NewUsagePool()

// Open opens the database at a canonical path, which it creates if there is
// none, or shares it if this process has it open. Each DB must be closed once
// for each call that returned it.
//
// The error says what to do if the file is in use by another process, is
// damaged, or belongs to another program or a newer version of this one.
func Open(path string) (*DB, error) {
	db, _, err := pool.LoadOrNew(path, func() (caddy.Destructor, error) { return open(path) })
	if err != nil {
		return nil, err
	}
	return db.(*DB), nil
}

// Close releases the database. The last user closes the file.
func (db *DB) Close() error {
	_, err := pool.Delete(db.path)
	return err
}

// Path returns the canonical path of the database.
func (db *DB) Path() string { return db.path }

// Err returns why the database cannot be relied on at present, or nil.
func (db *DB) Err() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, err := range []error{db.lost, db.moved, db.damage, db.err} {
		if err != nil {
			return err
		}
	}
	return nil
}

// Tables are what one user of a database keeps in it.
type Tables struct {
	// Name identifies the user.
	Name string
	// Migrations are the SQL statements that lead from each version of the
	// tables to the next one. The first creates them.
	Migrations []string
	// Check compares the tables with each other. An error means damage. It runs
	// when [DB.Use] is called, or with a large file in the background.
	Check func(*Conn) error
	// Expire removes up to limit rows that have expired, and returns how many
	// it removed. It runs within a transaction of its own, once a second and
	// again while it removes as many as it may.
	Expire func(c *Conn, limit int) (int, error)
}

// Use creates or migrates tables. They must be of a version that this program
// knows. It may be called again, as after a reload that took away one of several
// users of the file, and a later one that brought it back.
func (db *DB) Use(t Tables) error {
	err := db.Write(db.ctx, func(c *Conn) error {
		version := 0
		err := c.Query("SELECT version FROM formats WHERE name = ?", func(row *sqlite3.Stmt) error {
			version = row.ColumnInt(0)
			return nil
		}, t.Name)
		if err != nil {
			return err
		}
		if version > len(t.Migrations) {
			return newerFormat(db.path, t.Name+" has", version, len(t.Migrations))
		}
		for ; version < len(t.Migrations); version++ {
			err := c.raw.Exec(t.Migrations[version])
			if errors.Is(err, sqlite3.ERROR) { // the tables are not those of this version
				err = fmt.Errorf("%w: %w", ErrDamaged, err)
			}
			if err != nil {
				return fmt.Errorf("migrating %s in %s: %w", t.Name, db.path, err)
			}
		}
		return c.Exec("INSERT INTO formats(name, version) VALUES(?, ?) ON CONFLICT DO UPDATE SET version = excluded.version", t.Name, version)
	})
	if err == nil && t.Check != nil {
		err = db.checkNowOrLater(t.Check)
	}
	if err != nil {
		return explain(db.path, err)
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if !slices.ContainsFunc(db.tables, func(used Tables) bool { return used.Name == t.Name }) {
		db.tables = append(db.tables, t)
	}
	return nil
}

func newerFormat(path, what string, version, known int) error {
	return fmt.Errorf("%s was written by a newer version of this plugin (%s format %d, known is %d): use that version, or move %s* away", path, what, version, known, path)
}

// request asks for a function to be called with a connection.
type request struct {
	call func(*Conn) error
	err  error
	done chan error // has room
}

// Write calls change within a transaction and returns once that is on the disk.
// Changes that arrive while another transaction is committed share the next
// one. If change returns an error, nothing of it is kept, and the others are
// not affected.
//
// If ctx ends earlier, the change may be made nevertheless. See [Conn.OnCommit] and
// [DB.WriteForCertain].
func (db *DB) Write(ctx context.Context, change func(*Conn) error) error {
	return db.ask(ctx, db.writes, change, false)
}

// WriteForCertain is Write, but returns only when it is known whether the change was
// made, even if ctx ends earlier. ctx says how long the disk may take before it counts
// as one that does not respond.
func (db *DB) WriteForCertain(ctx context.Context, change func(*Conn) error) error {
	return db.ask(ctx, db.writes, change, true)
}

// Read calls read with a connection that sees everything that was committed
// before. It must not change the database. If ctx ends earlier, read may still
// be running when Read returns.
func (db *DB) Read(ctx context.Context, read func(*Conn) error) error {
	return db.ask(ctx, db.reads, read, false)
}

func (db *DB) ask(ctx context.Context, queue chan *request, call func(*Conn) error, certain bool) error {
	db.mu.Lock()
	err := db.lost
	if err == nil && db.hangs {
		err = db.err
	}
	if err == nil && queue == db.writes {
		err = db.moved
	}
	db.mu.Unlock()
	if err != nil {
		return err
	}
	began := time.Now()
	r := &request{call: call, done: make(chan error, 1)}
	select {
	case queue <- r:
	case <-db.ctx.Done():
		return errClosed
	case <-ctx.Done():
		return db.late(ctx, began)
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		err := db.late(ctx, began)
		if certain {
			err = db.outcome(r)
		}
		return err
	}
}

// outcome waits for the end of a request, or until it is clear that it never begins.
func (db *DB) outcome(r *request) error {
	select {
	case err := <-r.done:
		return err
	case <-db.ctx.Done():
	}
	db.workers.Wait()
	select {
	case err := <-r.done:
		return err
	default:
		return errClosed
	}
}

var errClosed = errors.New("the database is closed")

// hangTime is how long an operation takes at least if the disk counts as one
// that does not respond.
const hangTime = time.Second

// late returns the error of a caller that has waited since began.
func (db *DB) late(ctx context.Context, began time.Time) error {
	err := fmt.Errorf("the disk did not respond in time: %w", ctx.Err())
	if busy := db.busy.Load(); time.Since(began) > hangTime && busy != 0 && time.Since(time.Unix(0, busy)) > hangTime {
		db.mu.Lock()
		defer db.mu.Unlock()
		db.hangs = true // nobody else is to wait for it
		db.setErr(err)
	}
	return err
}

// setErr notes whether the disk works. The caller holds db.mu.
func (db *DB) setErr(err error) {
	switch {
	case err != nil && db.err == nil:
		logger().Error("failed to write to the database", zap.String("path", db.path), zap.Error(err))
	case err == nil && db.err != nil:
		logger().Info("the database can be written to again", zap.String("path", db.path))
	}
	db.err = err
}

// note keeps what an error says about the file, and reports whether it is damage.
func (db *DB) note(err error) bool {
	if !errors.Is(err, sqlite3.CORRUPT) && !errors.Is(err, sqlite3.NOTADB) && !errors.Is(err, sqlite3.IOERR_DATA) && !errors.Is(err, ErrDamaged) {
		return false
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.damage == nil {
		db.damage = damaged(db.path, err)
		logger().Error("the database is damaged", zap.Error(db.damage))
	}
	return true
}

// lose stops all use of the file.
func (db *DB) lose(err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.lost == nil {
		db.lost = err
		db.stop()
		logger().Error("the database cannot be used any more", zap.Error(err))
	}
}

var watchInterval = time.Second

// watch looks whether the files are still those that were opened. If not, what
// is written would be lost.
func (db *DB) watch(files map[string]os.FileInfo) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-db.ctx.Done():
			return
		}
		var moved error
		for name, opened := range files {
			if info, err := os.Stat(name); err != nil || !os.SameFile(info, opened) {
				moved = fmt.Errorf("%s was removed or replaced while Caddy was using it: put it back, or restart Caddy", name)
			}
		}
		db.mu.Lock()
		switch {
		case moved != nil && db.moved == nil:
			logger().Error("the database cannot be written to", zap.Error(moved))
		case moved == nil && db.moved != nil:
			logger().Info("the database can be written to again", zap.String("path", db.path))
		}
		db.moved = moved
		db.mu.Unlock()
	}
}

// Destruct implements [caddy.Destructor].
func (db *DB) Destruct() error {
	db.stop()
	db.workers.Wait()
	return errors.Join(db.disconnect(), db.lock.Close())
}

// disconnect closes the connections. With the last one, SQLite removes the log. A
// database that is in use, but has no log, is damaged. So the note that it is in use
// is removed first: a process may be killed at any time.
func (db *DB) disconnect() error {
	var errs []error
	db.mu.Lock()
	lost := db.lost != nil
	intact := db.writer != nil && !lost && db.moved == nil
	db.mu.Unlock()
	if intact {
		if err := os.Remove(db.path + runningSuffix); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	for _, c := range append(db.readers, db.writer) {
		if c == nil {
			continue
		}
		if lost { // what is in the log may be all that is left
			_, _ = c.raw.Config(sqlite3.DBCONFIG_NO_CKPT_ON_CLOSE, true)
		}
		if _, err := c.guard((*Conn).close); err != nil {
			errs = append(errs, err)
			if intact {
				errs = append(errs, setRunning(db.path, db.logSize))
			}
		}
	}
	return errors.Join(errs...)
}

// logger returns the logger of the active configuration.
func logger() *zap.Logger { return caddy.Log().Named("http.buzzbip_webhook.database") }
