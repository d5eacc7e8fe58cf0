package bolt

import (
	"context"
	"fmt"
	"math"
	"runtime/debug"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.etcd.io/bbolt"
	"go.uber.org/zap"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

const (
	// retryInterval is how often a disk that failed is tried again.
	retryInterval = time.Second

	// maxCommit bounds the changes of one transaction.
	maxCommit = 10_000
)

// file is an open file, and what is in it, in memory.
type file struct {
	path   string
	db     *bbolt.DB
	ledger dedupe.Ledger
	wake   chan struct{}
	closed chan struct{} // by Destruct
	ended  chan error    // how closing went
	lost   error         // for run: db is not to be touched any more, for it may hold its locks for ever

	mu      sync.Mutex
	changes []change // to be written, the oldest first
	err     error    // of the disk; nil: it works
}

// change is that of one id in the file.
type change struct {
	record
	remove  int64        // when the record that it replaces expires; 0: none
	written chan<- error // has room; nil: nobody waits
}

// record is a delivered id in the file.
type record struct {
	scope   string
	key     dedupe.Key
	digest  dedupe.Digest
	expires int64 // Unix time in nanoseconds; 0: no record
}

// settle records a success on the disk, then lets the others know. It reports
// whether the claim was the present one.
func (f *file) settle(ctx context.Context, c dedupe.Claim, delivered bool) (settled bool, err error) {
	now := time.Now()
	if delivered && f.ledger.Records(c) {
		at := now.UnixNano()
		added := change{record: record{c.Scope, c.Key, c.Digest, at + min(int64(c.Retention), math.MaxInt64-at)}}
		if was := f.ledger.Lookup(c.Scope, c.Key); was.Delivered {
			added.remove = was.Expires.UnixNano()
		}
		err = f.write(ctx, added)
	}
	return f.ledger.Settle(c, delivered, now, dedupe.Limits{}), err
}

func (f *file) forget(ctx context.Context, scope string, key dedupe.Key) (bool, error) {
	was := f.ledger.Forget(scope, key)
	if !was.Delivered {
		return false, nil
	}
	return true, f.write(ctx, change{record: record{scope: scope, key: key}, remove: was.Expires.UnixNano()})
}

func (f *file) stats() dedupe.Stats {
	stats := f.ledger.Stats(dedupe.Limits{})
	stats.Backing = f.path
	f.mu.Lock()
	defer f.mu.Unlock()
	stats.Err = f.err
	return stats
}

// write returns when a change is on the disk. When it cannot be there, or ctx
// is done, it is left to be written as soon as that is possible.
func (f *file) write(ctx context.Context, c change) error {
	f.mu.Lock()
	if f.err != nil {
		defer f.mu.Unlock()
		f.changes = append(f.changes, c)
		return f.err
	}
	written := make(chan error, 1)
	c.written = written
	f.changes = append(f.changes, c)
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default: // it is awake
	}
	select {
	case err := <-written:
		return err
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case err := <-written: // just now
		return err
	default:
	}
	err := fmt.Errorf("the disk did not respond in time: %w", ctx.Err())
	f.fail(err) // nobody else is to wait for it
	return err
}

// fail notes that the disk does not work. The caller holds f.mu.
func (f *file) fail(err error) {
	if f.err == nil {
		logger().Error("failed to write delivered IDs to the disk; keeping them in memory until that succeeds",
			zap.String("path", f.path), zap.Error(err))
	}
	f.err = err
}

// run writes until Destruct. What arrives while a transaction is being synced
// to the disk goes into the next one, together.
func (f *file) run() {
	for {
		var retry <-chan time.Time
		if !f.writeAll() {
			retry = time.After(retryInterval)
		}
		select {
		case <-f.wake:
		case <-retry:
		case <-f.closed:
			if !f.writeAll() {
				f.mu.Lock()
				logger().Error("closing the file without some delivered IDs; their events may be delivered again",
					zap.String("path", f.path), zap.Int("events", len(f.changes)), zap.Error(f.err))
				f.mu.Unlock()
			}
			if f.lost == nil {
				f.lost = f.db.Close()
			}
			f.ended <- f.lost
			return
		}
	}
}

// writeAll reports whether everything is on the disk.
func (f *file) writeAll() bool {
	for {
		changes := f.next()
		if len(changes) == 0 {
			return true
		}
		err := f.commit(changes)
		f.tried(changes, err)
		if err != nil {
			return false
		}
	}
}

// commit is [commit], but a file that cannot be read any more does not end the
// process: bbolt maps it into memory, and panics at what it cannot understand.
func (f *file) commit(changes []change) (err error) {
	if f.lost != nil {
		return f.lost
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if fault := recover(); fault != nil {
			f.lost = fmt.Errorf("%s can no longer be read (%v): restart Caddy, which checks the file and reports the damage", f.path, fault)
			logger().Error("failed to use the file; keeping delivered IDs in memory only", zap.Error(f.lost))
			err = f.lost
		}
	}()
	return commit(f.db, changes, time.Now().UnixNano())
}

// next returns the changes of one transaction. They stay where they are until
// they are on the disk: when it is full for long, millions may be behind them.
func (f *file) next() []change {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		// while a disk does not work ids expire; but one change is left to try
		// it with
		now := time.Now().UnixNano()
		for len(f.changes) > 1 && f.changes[0].expires <= now && f.changes[0].remove <= now {
			if written := f.changes[0].written; written != nil {
				written <- nil // there is nothing left to write
			}
			f.changes = f.changes[1:]
		}
	}
	return f.changes[:min(len(f.changes), maxCommit)]
}

// tried tells those who wait for changes how writing them went.
func (f *file) tried(changes []change, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		if f.changes = f.changes[len(changes):]; len(f.changes) == 0 {
			f.changes = nil // gives the memory back
		}
		if f.err != nil && len(f.changes) <= maxCommit {
			f.err = nil
			logger().Info("the disk works again; writing the delivered IDs that are in memory only", zap.String("path", f.path))
		}
	} else {
		if f.err == nil {
			changes = f.changes // nobody is to wait for a disk that does not work
		}
		f.fail(err)
	}
	for i := range changes {
		if c := &changes[i]; c.written != nil {
			c.written <- err
			c.written = nil
		}
	}
}

// Destruct implements [caddy.Destructor].
func (f *file) Destruct() error {
	close(f.closed)
	return <-f.ended
}

// logger is that of the present configuration.
func logger() *zap.Logger { return caddy.Log().Named("http.buzzbip_webhook.stores.bolt") }
