package database

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/ncruces/go-sqlite3"
)

const (
	// maxBatch bounds the changes of one transaction.
	maxBatch = 1000
	// minExpired is how many rows one transaction removes at least, if that
	// many have expired. A change waits no longer than for one such transaction.
	minExpired = 64
	// Free pages are given back to the file system, vacuumStep at a time, once
	// there are more than minFree and they are a quarter of the file.
	vacuumStep, minFree = 64, 64
)

// read serves reads until the database is closed.
func (db *DB) read(c *Conn) {
	for {
		select {
		case r := <-db.reads:
			broken, err := c.guard(r.call)
			if err != nil {
				db.note(err)
			}
			r.done <- err
			if broken {
				db.lose(err)
				return
			}
		case <-db.ctx.Done():
			return
		}
	}
}

// write makes changes until the database is closed.
func (db *DB) write(c *Conn) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	db.noteSizes()
	tidying := true // there may be something to tidy up
	for {
		batch := db.next(nil)
		select {
		case <-tick.C:
			tidying = true
		case <-db.ctx.Done():
			tidying = false // the next process goes on
		default:
		}
		if len(batch) == 0 && !tidying {
			select {
			case r := <-db.writes:
				batch = db.next([]*request{r})
			case <-tick.C:
				tidying = true
			case <-db.ctx.Done():
				return
			}
		}
		db.busy.Store(time.Now().UnixNano())
		err := db.cutOff()
		broken := err != nil
		if err == nil && len(batch) > 0 {
			broken, err = c.guard(func(c *Conn) error { return db.commit(c, batch) })
			db.noteSizes()
		}
		for _, r := range batch {
			if err != nil {
				r.err = withRemedy(err)
			}
			r.done <- r.err
		}
		if err == nil && tidying {
			broken, err = c.guard(func(c *Conn) (err error) {
				tidying, err = db.tidy(c, max(minExpired, 2*len(batch)))
				return err
			})
			db.noteSizes()
		}
		db.busy.Store(0)
		if err != nil {
			tidying = false // until the next tick
		}
		if err != nil && !db.note(err) {
			db.mu.Lock()
			db.setErr(withRemedy(err))
			db.mu.Unlock()
		}
		if broken {
			db.lose(err)
			return
		}
	}
}

// watched are the suffixes of the files whose sizes are in [DB.sizes].
var watched = [...]string{"", logSuffix}

// noteSizes notes how large the files are. Only the writer makes them smaller.
func (db *DB) noteSizes() {
	for i, suffix := range watched {
		db.sizes[i], _ = os.Stat(db.path + suffix) // watch reports an error
	}
}

// cutOff returns an error if another program has made a file smaller since its size
// was noted. SQLite would go on with zeros in place of what is missing.
func (db *DB) cutOff() error {
	for i, suffix := range watched {
		info, err := os.Stat(db.path + suffix)
		if noted := db.sizes[i]; err == nil && noted != nil && os.SameFile(info, noted) && info.Size() < noted.Size() {
			return fmt.Errorf("%s%s was cut off while Caddy was using it: restart Caddy, which checks the file", db.path, suffix)
		}
	}
	return nil
}

// next adds the changes that are waiting to a batch.
func (db *DB) next(batch []*request) []*request {
	for len(batch) < maxBatch {
		select {
		case r := <-db.writes:
			batch = append(batch, r)
		default:
			return batch
		}
	}
	return batch
}

// commit makes changes in one transaction. Each request has its own error,
// unless commit returns one for all of them.
func (db *DB) commit(c *Conn, batch []*request) error {
	c.onCommit = c.onCommit[:0]
	err := transaction(c, func(c *Conn) error {
		for _, r := range batch {
			before := len(c.onCommit)
			r.err = savepoint(c, r.call)
			if r.err == nil {
				continue
			}
			c.onCommit = c.onCommit[:before]
			if c.raw.GetAutocommit() { // SQLite has rolled everything back, as it does on a full disk
				return r.err
			}
			db.note(r.err)
		}
		return nil
	})
	if err == nil {
		for _, f := range c.onCommit {
			f()
		}
	}
	clear(c.onCommit)
	return err
}

func transaction(c *Conn, f func(*Conn) error) error {
	if err := c.Exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	err := f(c)
	if err == nil {
		err = c.Exec("COMMIT")
	}
	if err != nil && !c.raw.GetAutocommit() {
		err = errors.Join(err, c.Exec("ROLLBACK"))
	}
	return err
}

// savepoint calls f, and undoes what it did if it fails.
func savepoint(c *Conn, f func(*Conn) error) error {
	if err := c.Exec("SAVEPOINT one"); err != nil {
		return err
	}
	err := f(c)
	if err != nil {
		if c.raw.GetAutocommit() {
			return err
		}
		err = errors.Join(err, c.Exec("ROLLBACK TO one"))
	}
	return errors.Join(err, c.Exec("RELEASE one"))
}

// tidy removes what has expired, in a small transaction, and gives room back to
// the file system. It reports whether there is more to do.
func (db *DB) tidy(c *Conn, limit int) (more bool, err error) {
	db.mu.Lock()
	tables, failed := db.tables, db.err != nil
	db.mu.Unlock()
	if failed {
		return false, db.probe(c)
	}
	if err := db.noteLog(); err != nil {
		return false, err
	}
	if db.logSize > maxLog || c.scrub {
		if err := db.truncateLog(c); err != nil {
			return false, err
		}
	}
	for _, t := range tables {
		if t.Expire == nil {
			continue
		}
		var removed int
		err := transaction(c, func(c *Conn) (err error) {
			removed, err = t.Expire(c, limit)
			return err
		})
		if err != nil {
			return false, err
		}
		more = more || removed >= limit
	}
	if more {
		return true, nil
	}
	more, err = vacuum(c)
	if err == nil && !more && db.vacuumed {
		_, err = c.checkpoint("passive") // only this makes the file smaller
	}
	db.vacuumed = more
	return more, err
}

// probe tries whether the disk works again.
func (db *DB) probe(c *Conn) error {
	if err := transaction(c, touch); err != nil {
		return err
	}
	// begins a new log: what transactions that failed have left in the old one
	// would look like damage
	_, _ = c.checkpoint("restart")
	db.mu.Lock()
	defer db.mu.Unlock()
	db.hangs = false
	db.setErr(nil)
	return nil
}

// noteLog notes how large the log is, if it has grown.
func (db *DB) noteLog() error {
	info, err := os.Stat(db.path + logSuffix)
	if err != nil || info.Size() <= db.logSize {
		return err
	}
	db.logSize = info.Size()
	return setRunning(db.path, db.logSize)
}

// truncateLog truncates the log, unless another connection is still reading it.
func (db *DB) truncateLog(c *Conn) error {
	db.logSize = 0
	if err := setRunning(db.path, 0); err != nil {
		return err
	}
	truncated, err := c.checkpoint("truncate")
	c.scrub = c.scrub && !truncated
	return err
}

func vacuum(c *Conn) (more bool, err error) {
	pages, free := 0, 0
	if err = c.Query("PRAGMA page_count", func(row *sqlite3.Stmt) error { pages = row.ColumnInt(0); return nil }); err != nil {
		return false, err
	}
	if err = c.Query("PRAGMA freelist_count", func(row *sqlite3.Stmt) error { free = row.ColumnInt(0); return nil }); err != nil {
		return false, err
	}
	if free < minFree || free < pages/4 {
		return false, nil
	}
	return true, c.Exec(fmt.Sprintf("PRAGMA incremental_vacuum(%d)", vacuumStep))
}

// touch changes the file, but nothing in it.
func touch(c *Conn) error { return c.Exec("PRAGMA user_version = 1") }
