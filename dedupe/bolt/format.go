package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// The file has one bucket, named after its format, and in it one for each
// scope. Its sequence is the number of all records. A record's key is the time
// when it expires and the id, so records are appended, and expired ones are the
// first; its value is the digest and a checksum. Nobody looks for an id in the
// file.
var format = []byte("buzzbip_webhook 1")

const (
	keyLen   = 8 + len(dedupe.Key{})
	valueLen = 8 + crc32.Size

	// fillPercent leaves little room in pages that records are appended to.
	fillPercent = 0.9

	// minExpired is how many expired records a transaction removes at most, or
	// twice as many as it adds: more leave than come.
	minExpired = 1000

	lockTimeout = 2 * time.Second
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (r record) encode(expires int64) (key, value []byte) {
	key = make([]byte, 0, keyLen)
	key = binary.BigEndian.AppendUint64(key, uint64(expires))
	key = append(key, r.key[:]...)
	value = make([]byte, 0, valueLen)
	value = binary.BigEndian.AppendUint64(value, uint64(r.digest))
	value = binary.BigEndian.AppendUint32(value, checksum(r.scope, key, value))
	return key, value
}

func decode(scope string, key, value []byte) (r record, ok bool) {
	if len(key) != keyLen || len(value) != valueLen || binary.BigEndian.Uint32(value[8:]) != checksum(scope, key, value[:8]) {
		return record{}, false
	}
	return record{
		scope:   scope,
		key:     dedupe.Key(key[8:]),
		digest:  dedupe.Digest(binary.BigEndian.Uint64(value)),
		expires: int64(binary.BigEndian.Uint64(key)),
	}, true
}

func checksum(scope string, key, digest []byte) uint32 {
	sum := crc32.Update(0, castagnoli, []byte(scope))
	sum = crc32.Update(sum, castagnoli, key)
	return crc32.Update(sum, castagnoli, digest)
}

// commit writes changes to the disk, in one transaction that also removes
// expired records.
func commit(db *bbolt.DB, changes []change, now int64) error {
	return db.Update(func(tx *bbolt.Tx) error {
		scopes := tx.Bucket(format)
		records := scopes.Sequence()
		for _, c := range changes {
			scope, err := scopes.CreateBucketIfNotExists([]byte(c.scope))
			if err != nil {
				return err
			}
			scope.FillPercent = fillPercent
			if c.remove != 0 {
				key, _ := c.encode(c.remove)
				if scope.Get(key) != nil {
					records--
				}
				if err := scope.Delete(key); err != nil {
					return err
				}
			}
			if c.expires > now {
				key, value := c.encode(c.expires)
				if scope.Get(key) == nil { // it is there if a transaction was done although it failed
					records++
				}
				if err := scope.Put(key, value); err != nil {
					return err
				}
			}
		}
		removed, err := removeExpired(scopes, now, max(minExpired, 2*len(changes)))
		if err != nil {
			return err
		}
		return scopes.SetSequence(records - uint64(removed))
	})
}

// removeExpired removes records up to a number, and scopes that are empty.
func removeExpired(scopes *bbolt.Bucket, now int64, most int) (removed int, err error) {
	var empty [][]byte
	err = scopes.ForEachBucket(func(name []byte) error {
		scope := scopes.Bucket(name)
		scope.FillPercent = fillPercent
		var expired [][]byte // removing them moves a cursor
		key, _ := scope.Cursor().First()
		for c := scope.Cursor(); most > 0; most-- {
			if expired == nil {
				key, _ = c.First()
			} else {
				key, _ = c.Next()
			}
			if key == nil || int64(binary.BigEndian.Uint64(key)) > now {
				break
			}
			expired = append(expired, bytes.Clone(key))
		}
		for _, key := range expired {
			if err := scope.Delete(key); err != nil {
				return err
			}
			removed++
		}
		if key == nil {
			empty = append(empty, bytes.Clone(name))
		}
		return nil
	})
	for _, name := range empty {
		err = errors.Join(err, scopes.DeleteBucket(name))
	}
	return removed, err
}

// open opens a file, which it makes if there is none, and reads all of it.
func open(path string) (*file, error) {
	f := &file{path: path, wake: make(chan struct{}, 1), closed: make(chan struct{}), ended: make(chan error, 1)}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := create(path); err != nil {
			return nil, fmt.Errorf("creating %s: %w", path, err)
		}
		info, err = os.Stat(path)
	}
	if err != nil {
		return nil, err
	}
	if info.Size() == 0 { // bbolt would take it for a new one
		return nil, damaged(path, errors.New("it is empty"))
	}
	last, err := f.load()
	if err != nil {
		return nil, err
	}
	if f.db, err = openDB(path, bbolt.Options{}); err != nil {
		return nil, err
	}
	err = f.db.View(func(tx *bbolt.Tx) error {
		if tx.ID() != last {
			return fmt.Errorf("another process has just changed %s", path)
		}
		return nil
	})
	if err != nil {
		_ = f.db.Close()
		return nil, err
	}
	removeUnfinished(path)
	go f.run()
	return f, nil
}

func openDB(path string, options bbolt.Options) (*bbolt.DB, error) {
	options.Timeout = lockTimeout
	options.FreelistType = bbolt.FreelistMapType
	if options.OpenFile == nil { // bbolt's would make a file that create has not
		options.OpenFile = func(name string, flag int, perm os.FileMode) (*os.File, error) {
			return os.OpenFile(name, flag&^os.O_CREATE, perm)
		}
	}
	db, err := bbolt.Open(path, 0o600, &options)
	switch errno := syscall.Errno(0); {
	case err == nil:
		return db, nil
	case errors.Is(err, bbolterrors.ErrTimeout):
		return nil, fmt.Errorf("%s is in use by another process: give each Caddy a file of its own, or use store redis", path)
	case errors.As(err, &errno): // the system has refused something
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	return nil, damaged(path, err)
}

func damaged(path string, err error) error {
	return fmt.Errorf("%s is damaged (%w): restore a backup, or move it away to start with no IDs; then duplicates of earlier events are delivered", path, err)
}

// unfinished begins the names of files at path that are being made.
func unfinished(path string) (dir, prefix string) {
	dir, base := filepath.Split(path)
	return dir, "." + base + ".unfinished-"
}

// create makes a file that has no records, whole or not at all: a crash on the
// way leaves one of another name. A file that another process has made
// meanwhile stays.
func create(path string) error {
	dir, prefix := unfinished(path)
	var dirs []string // whose entries are new
	for d := filepath.Clean(dir); ; d = filepath.Dir(d) {
		dirs = append(dirs, d)
		if _, err := os.Stat(d); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	temp, err := os.CreateTemp(dir, prefix)
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	if err := temp.Close(); err != nil {
		return err
	}
	db, err := openDB(temp.Name(), bbolt.Options{})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucket(format)
		return err
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Link(temp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, d := range dirs {
		if err := syncDir(d); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(path string) error {
	if runtime.GOOS == "windows" {
		return nil // it refuses to, and keeps directories in its own journal
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// removeUnfinished removes what a crash left behind while a file was being made.
// It is for the process that has the file: nobody else has use for another one.
func removeUnfinished(path string) {
	dir, prefix := unfinished(path)
	entries, _ := os.ReadDir(dir) // if they stay, they are in nobody's way
	for _, e := range entries {
		if e.Type().IsRegular() && strings.HasPrefix(e.Name(), prefix) {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// load reads the file into the ledger, and checks every page of it, before
// anything relies on it. It returns the number of the last transaction.
func (f *file) load() (last int, err error) {
	var file *os.File
	db, err := openDB(f.path, bbolt.Options{
		ReadOnly: true, // only for the lock, the size of pages, and to refuse what is no bbolt file
		OpenFile: func(name string, flag int, perm os.FileMode) (_ *os.File, err error) {
			file, err = os.OpenFile(name, flag, perm)
			return file, err
		},
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	r := &reader{file: file, pageSize: uint64(db.Info().PageSize)}
	m, err := r.meta()
	if err != nil {
		return 0, damaged(f.path, err)
	}
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	if there := uint64(info.Size()) / r.pageSize; there < m.pages {
		return 0, damaged(f.path, fmt.Errorf("it has %d of %d pages", there, m.pages))
	}

	errForeign := fmt.Errorf("%s is a bbolt file, but not one of this store: use another path", f.path)
	ours := false
	now := time.Now().UnixNano()
	var written, read uint64 // numbers of records
	err = r.all(m, func(e entry) (err error) {
		if !bytes.Equal(e.key, format) {
			return errForeign
		}
		ours = true
		written, err = r.bucket(e, func(scope entry) error {
			name := string(scope.key)
			_, err := r.bucket(scope, func(e entry) error {
				read++
				return f.loadRecord(name, e, now)
			})
			return err
		})
		return err
	})
	switch {
	case errors.Is(err, errForeign):
		return 0, errForeign
	case err != nil:
		return 0, damaged(f.path, err)
	case !ours:
		return 0, errForeign
	case read != written:
		return 0, damaged(f.path, fmt.Errorf("it has %d of %d records", read, written))
	}
	return int(m.txid), nil
}

func (f *file) loadRecord(scope string, e entry, now int64) error {
	r, ok := decode(scope, e.key, e.value)
	if !ok || e.flags != 0 {
		return errors.New("a record is damaged")
	}
	if r.expires > now {
		// all in the order of their expiry, as if they had no retention
		f.ledger.Remember(dedupe.Request{Scope: scope, Key: r.key, Digest: r.digest}, time.Unix(0, r.expires), dedupe.Limits{})
	}
	return nil
}
