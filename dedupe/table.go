package dedupe

import (
	"encoding/binary"
	"time"
)

// table remembers delivered IDs in little memory: 48 bytes for each ID, and
// about 4 for the index. The index uses linear hashing, which grows by one
// bucket at a time, so no insertion rehashes all IDs. The chunks contain no
// pointers, so the garbage collector does no work for each ID.
//
// Times are Unix times in nanoseconds.
type table struct {
	slots   chunked[slot]
	free    uint32 // first of the free slots, which are linked by chain
	count   int
	buckets chunked[uint32] // first slot of each chain
	low     uint32          // the greatest power of two that is at most the number of buckets
	// queues hold the IDs in order of delivery. Each retention in use has a
	// queue of its own, so the order of delivery is also the order of expiry.
	queues []queue
}

// slot is one remembered ID. The index 0 stands for no slot.
type slot struct {
	key        Key
	digest     Digest
	expires    int64
	chain      uint32 // next in the same bucket
	next, prev uint32 // neighbors in the queue
	queue      uint32
}

type queue struct {
	retention  time.Duration
	head, tail uint32
}

// find returns the slot of key, or nil.
func (t *table) find(key Key) *slot {
	if t.count == 0 {
		return nil
	}
	for i := *t.bucket(key); i != 0; {
		s := t.slots.at(i)
		if s.key == key {
			return s
		}
		i = s.chain
	}
	return nil
}

// insert adds a key that is not in the table, as delivered at a time.
func (t *table) insert(key Key, digest Digest, retention time.Duration, at int64) {
	if t.slots.len == 0 {
		t.slots.grow() // slot 0 is not used
		t.buckets.grow()
		t.low = 1
	}
	i := t.free
	if i != 0 {
		t.free = t.slots.at(i).chain
	} else {
		i = t.slots.grow()
	}
	t.count++
	if uint32(t.count) > t.buckets.len {
		t.split()
	}

	expires := expiry(at, retention)
	q := t.queueFor(retention, expires)
	b := t.bucket(key)
	*t.slots.at(i) = slot{
		key: key, digest: digest, expires: expires,
		chain: *b, prev: t.queues[q].tail, queue: q,
	}
	*b = i
	if tail := t.queues[q].tail; tail != 0 {
		t.slots.at(tail).next = i
	} else {
		t.queues[q].head = i
	}
	t.queues[q].tail = i
}

// remove removes the ID in s.
func (t *table) remove(s *slot) {
	t.count--
	if t.count == 0 {
		*t = table{} // gives the memory back
		return
	}
	link := t.bucket(s.key)
	for t.slots.at(*link) != s {
		link = &t.slots.at(*link).chain
	}
	i := *link
	*link = s.chain

	q := &t.queues[s.queue]
	if s.prev != 0 {
		t.slots.at(s.prev).next = s.next
	} else {
		q.head = s.next
	}
	if s.next != 0 {
		t.slots.at(s.next).prev = s.prev
	} else {
		q.tail = s.prev
	}
	*s = slot{chain: t.free}
	t.free = i
}

// oldest returns the ID that expires first, or nil.
func (t *table) oldest() *slot {
	var first *slot
	for _, q := range t.queues {
		if q.head == 0 {
			continue
		}
		if s := t.slots.at(q.head); first == nil || s.expires < first.expires {
			first = s
		}
	}
	return first
}

// latest returns when the last of the IDs expires.
func (t *table) latest() (expires int64) {
	for _, q := range t.queues {
		if q.tail != 0 {
			expires = max(expires, t.slots.at(q.tail).expires)
		}
	}
	return expires
}

// maxDisorder bounds out-of-order expiries in a queue. After a larger backward
// step of the clock a new queue is used, so that old entries do not delay the
// removal of later ones.
const maxDisorder = int64(time.Minute)

// queueFor returns the index of the queue for a new ID.

func (t *table) queueFor(retention time.Duration, expires int64) uint32 {
	unused := -1
	for i, q := range t.queues {
		if q.retention == retention && (q.tail == 0 || t.slots.at(q.tail).expires-maxDisorder <= expires) {
			return uint32(i)
		}
		if q.head == 0 {
			unused = i
		}
	}
	if unused >= 0 {
		t.queues[unused].retention = retention
		return uint32(unused)
	}
	t.queues = append(t.queues, queue{retention: retention})
	return uint32(len(t.queues) - 1)
}

// bucket returns the head of the chain that key belongs to.
func (t *table) bucket(key Key) *uint32 {
	h := hash(key)
	i := h & (2*t.low - 1)
	if i >= t.buckets.len {
		i = h & (t.low - 1)
	}
	return t.buckets.at(i)
}

// split adds a bucket and moves the IDs that belong there, which are all in one
// other bucket.
func (t *table) split() {
	added := t.buckets.grow()
	mask := 2*t.low - 1
	from, to := t.buckets.at(added-t.low), t.buckets.at(added)
	if t.buckets.len == 2*t.low {
		t.low *= 2
	}
	for link := from; *link != 0; {
		i := *link
		s := t.slots.at(i)
		if hash(s.key)&mask != added {
			link = &s.chain
			continue
		}
		*link = s.chain
		s.chain, *to = *to, i
	}
}

// hash needs no mixing, because a key is part of a cryptographic hash.
func hash(k Key) uint32 { return binary.LittleEndian.Uint32(k[:]) }

const chunkLen = 256

// chunked is a slice that grows without copying its elements, so that pointers
// to them stay valid.
type chunked[T any] struct {
	chunks []*[chunkLen]T
	len    uint32
}

func (c *chunked[T]) at(i uint32) *T { return &c.chunks[i/chunkLen][i%chunkLen] }

// grow adds a zero element and returns its index.
func (c *chunked[T]) grow() uint32 {
	if c.len%chunkLen == 0 {
		c.chunks = append(c.chunks, new([chunkLen]T))
	}
	c.len++
	return c.len - 1
}
