package database

import (
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/ncruces/go-sqlite3"
)

// Conn is a connection to the database. It may be used only by the function
// that it was passed to.
type Conn struct {
	raw   *sqlite3.Conn
	stmts map[string]*sqlite3.Stmt

	onCommit []func()
	scrub    bool // see Scrub
}

// OnCommit calls f when the change that is being made is on the disk, before any
// later change is made and before [DB.Write] returns. It must return soon.
func (c *Conn) OnCommit(f func()) { c.onCommit = append(c.onCommit, f) }

// Scrub makes sure that what the change removes is not readable in the files any
// more within a few seconds, unless another program is reading them: it is
// overwritten, and the log, which may still have it, is truncated. An exception are
// rows of less than a page: when SQLite moves one to another page, a part of it may
// stay where it was until that page is written again, or is free.
func (c *Conn) Scrub() { c.scrub = true }

// busyTimeout is how long to wait for another program that locks the database.
const busyTimeout = time.Second

// cacheSize is for pages in the memory of one connection, in KiB. The operating
// system caches the file, too.
const cacheSize = 4096

func connect(path string) (*Conn, error) {
	raw, err := sqlite3.OpenFlags(path, sqlite3.OPEN_READWRITE)
	if err != nil {
		return nil, err
	}
	c := &Conn{raw: raw, stmts: make(map[string]*sqlite3.Stmt)}
	err = raw.BusyTimeout(busyTimeout)
	if err == nil {
		err = raw.Exec(fmt.Sprintf("PRAGMA synchronous = full; PRAGMA secure_delete = 1; PRAGMA temp_store = memory; PRAGMA cache_size = -%d", cacheSize))
	}
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conn) close() error {
	for _, s := range c.stmts {
		_ = s.Close() // the error is that of its last use
	}
	return c.raw.Close()
}

// Exec runs a statement. Its arguments are int, int64, string or []byte.
func (c *Conn) Exec(sql string, args ...any) error {
	return c.Query(sql, func(*sqlite3.Stmt) error { return nil }, args...)
}

// Query runs a statement and calls each with every row of the result.
func (c *Conn) Query(sql string, each func(row *sqlite3.Stmt) error, args ...any) (err error) {
	s := c.stmts[sql]
	if s == nil {
		if s, _, err = c.raw.PrepareFlags(sql, sqlite3.PREPARE_PERSISTENT); err != nil {
			return err
		}
		c.stmts[sql] = s
	}
	for i, arg := range args {
		switch v := arg.(type) {
		case int:
			err = s.BindInt(i+1, v)
		case int64:
			err = s.BindInt64(i+1, v)
		case string:
			err = s.BindText(i+1, v)
		case []byte:
			err = s.BindBlob(i+1, v)
		default:
			err = fmt.Errorf("cannot bind a %T", arg)
		}
		if err != nil {
			return err
		}
	}
	for err == nil && s.Step() {
		err = each(s)
	}
	if stepErr := s.Reset(); err == nil {
		err = stepErr
	}
	return err
}

// Changes returns how many rows the last statement has changed.
func (c *Conn) Changes() int { return int(c.raw.Changes()) }

// checkpoint moves the log into the database, as far as other connections do not
// need it. It reports whether that was all of it.
func (c *Conn) checkpoint(mode string) (complete bool, err error) {
	if err := c.raw.BusyTimeout(0); err != nil {
		return false, err
	}
	err = c.Query("PRAGMA wal_checkpoint("+mode+")", func(row *sqlite3.Stmt) error { complete = row.ColumnInt(0) == 0; return nil })
	return complete, errors.Join(err, c.raw.BusyTimeout(busyTimeout))
}

// guard calls f. A fault in memory that is mapped to a file, as on a disk that
// fails, does not end the process, but c cannot be used after it.
func (c *Conn) guard(f func(*Conn) error) (broken bool, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if fault := recover(); fault != nil {
			broken, err = true, fmt.Errorf("the database failed (%v): restart Caddy, which checks the file", fault)
		}
	}()
	return false, f(c)
}
