package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// reader reads a bbolt file and trusts nothing in it. bbolt does trust it: in a
// damaged file it goes back to the transaction before, leaves records out, or
// follows a number to nowhere, which ends the process. When all of a file has
// been read by this, bbolt finds the same in it.
//
// The layout is that of go.etcd.io/bbolt/internal/common.
type reader struct {
	file     io.ReaderAt
	pageSize uint64
	used     []bool // by the number of the page
}

const (
	pageHeader = 16 // id, flags, count, overflow
	element    = 16 // of a branch: pos, ksize, pgid; of a leaf: flags, pos, ksize, vsize
	metaEnd    = pageHeader + 64

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10

	bucketEntry = 0x01
	manyFree    = 0xffff // the count does not fit into the header
)

var native = binary.NativeEndian // bbolt's

// meta says where all else is.
type meta struct{ root, freelist, pages, txid uint64 }

// entry is in a leaf.
type entry struct {
	flags      uint32
	key, value []byte
}

// meta returns the one that counts. There are two, written in turn: that of the
// last transaction and that of the one before, which bbolt silently falls back
// on when the last is not valid. We refuse the file, for what the last
// transaction added was acknowledged. No crash makes a meta invalid, not even
// a power loss while it is written: all of it is in the first sector of its
// page, which a disk writes whole or not at all.
func (r *reader) meta() (last meta, err error) {
	for page := range uint64(2) {
		b := make([]byte, metaEnd)
		if _, err := r.file.ReadAt(b, int64(page*r.pageSize)); err != nil {
			return meta{}, err
		}
		b = b[pageHeader:]
		sum := fnv.New64a()
		sum.Write(b[:56])
		if sum.Sum64() != native.Uint64(b[56:]) {
			return meta{}, fmt.Errorf("page %d, which names the last transaction, is damaged", page)
		}
		m := meta{root: native.Uint64(b[16:]), freelist: native.Uint64(b[32:]), pages: native.Uint64(b[40:]), txid: native.Uint64(b[48:])}
		if m.txid >= last.txid {
			last = m
		}
	}
	return last, nil
}

// all visits the entries of the outermost bucket. No page may be in two places,
// or in use although it is listed as free.
func (r *reader) all(m meta, visit func(entry) error) error {
	r.used = make([]bool, m.pages)
	if err := r.use(0, 2); err != nil {
		return err
	}
	if err := r.tree(m.root, visit); err != nil {
		return err
	}
	return r.free(m.freelist)
}

// use marks pages as used, once.
func (r *reader) use(id, n uint64) error {
	size := uint64(len(r.used))
	if id > size || n > size-id {
		return fmt.Errorf("there is no page %d", id+n-1)
	}
	for i := range n {
		if r.used[id+i] {
			return fmt.Errorf("page %d is used twice", id+i)
		}
		r.used[id+i] = true
	}
	return nil
}

// page reads a page, and those that go with it.
func (r *reader) page(id uint64) ([]byte, error) {
	if err := r.use(id, 1); err != nil {
		return nil, err
	}
	p := make([]byte, r.pageSize)
	if _, err := r.file.ReadAt(p, int64(id*r.pageSize)); err != nil {
		return nil, err
	}
	if native.Uint64(p) != id {
		return nil, fmt.Errorf("page %d is another", id)
	}
	more := uint64(native.Uint32(p[12:]))
	if more == 0 {
		return p, nil
	}
	if err := r.use(id+1, more); err != nil {
		return nil, err
	}
	p = make([]byte, (1+more)*r.pageSize)
	_, err := r.file.ReadAt(p, int64(id*r.pageSize))
	return p, err
}

// free reads the list of the pages that are free.
func (r *reader) free(list uint64) error {
	p, err := r.page(list)
	if err != nil {
		return err
	}
	if flags := native.Uint16(p[8:]); flags != freelistPage {
		return fmt.Errorf("page %d has the type %#x", list, flags)
	}
	n, ids := uint64(native.Uint16(p[10:])), p[pageHeader:]
	if n == manyFree {
		n, ids = native.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids)/8) {
		return fmt.Errorf("page %d has %d numbers", list, n)
	}
	for i := range n {
		if err := r.use(native.Uint64(ids[8*i:]), 1); err != nil {
			return err
		}
	}
	return nil
}

// bucket visits the entries of a bucket that is the value of an entry, and
// returns its sequence.
func (r *reader) bucket(e entry, visit func(entry) error) (sequence uint64, err error) {
	if e.flags != bucketEntry || len(e.value) < 16 {
		return 0, errors.New("an entry is not a bucket")
	}
	root, sequence, inline := native.Uint64(e.value), native.Uint64(e.value[8:]), e.value[16:]
	if root != 0 {
		return sequence, r.tree(root, visit)
	}
	if len(inline) < pageHeader || native.Uint16(inline[8:]) != leafPage {
		return 0, errors.New("a bucket is damaged")
	}
	return sequence, (&walk{reader: r, visit: visit}).elements(inline)
}

// tree visits the entries of the bucket whose outermost page has a number.
func (r *reader) tree(root uint64, visit func(entry) error) error {
	return (&walk{reader: r, visit: visit}).page(root)
}

// walk goes through a bucket.
type walk struct {
	*reader
	visit func(entry) error
	last  []byte // key
	bound bool   // last is the lower bound of a page, and may come again
}

func (w *walk) page(id uint64) error {
	p, err := w.reader.page(id)
	if err == nil {
		err = w.elements(p)
	}
	if err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

func (w *walk) elements(p []byte) error {
	flags, n := native.Uint16(p[8:]), uint64(native.Uint16(p[10:]))
	if flags != branchPage && flags != leafPage {
		return fmt.Errorf("it has the type %#x", flags)
	}
	for i := range n {
		at := pageHeader + i*element
		e, err := span(p, at, element)
		if err != nil {
			return err
		}
		if flags == branchPage {
			key, err := span(p, at+uint64(native.Uint32(e)), uint64(native.Uint32(e[4:])))
			if err != nil {
				return err
			}
			if err := w.follow(key, true); err != nil {
				return err
			}
			if err := w.page(native.Uint64(e[8:])); err != nil {
				return err
			}
			continue
		}
		from, keyLen, valueLen := at+uint64(native.Uint32(e[4:])), uint64(native.Uint32(e[8:])), uint64(native.Uint32(e[12:]))
		both, err := span(p, from, keyLen+valueLen)
		if err != nil {
			return err
		}
		key, value := both[:keyLen], both[keyLen:]
		if err := w.follow(key, false); err != nil {
			return err
		}
		if err := w.visit(entry{native.Uint32(e), key, value}); err != nil {
			return err
		}
	}
	return nil
}

// follow checks that keys are in order, which is how bbolt finds them.
func (w *walk) follow(key []byte, bound bool) error {
	if c := bytes.Compare(key, w.last); c < 0 || c == 0 && w.last != nil && !w.bound {
		return errors.New("keys are out of order")
	}
	w.last, w.bound = key, bound
	return nil
}

// span returns a part of a page.
func span(p []byte, from, n uint64) ([]byte, error) {
	if size := uint64(len(p)); from > size || n > size-from {
		return nil, errors.New("it refers to what is outside of it")
	}
	return p[from : from+n], nil
}
