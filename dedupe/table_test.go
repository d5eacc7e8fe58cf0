package dedupe

import (
	"encoding/binary"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"time"
)

// checkTable fails unless the parts of a table agree: every ID is in the right
// chain and at the right place of its queue, and every slot is in use or free.
func checkTable(t *testing.T, tab *table) {
	t.Helper()
	if tab.count == 0 {
		if !reflect.DeepEqual(*tab, table{}) {
			t.Fatalf("an empty table holds on to memory: %+v", *tab)
		}
		return
	}
	chained := map[uint32]bool{}
	for b := range tab.buckets.len {
		for i := *tab.buckets.at(b); i != 0; i = tab.slots.at(i).chain {
			if s := tab.slots.at(i); chained[i] || tab.bucket(s.key) != tab.buckets.at(b) || tab.find(s.key) != s {
				t.Fatalf("the ID in slot %d is not found in bucket %d", i, b)
			}
			chained[i] = true
		}
	}
	queued := 0
	for n, q := range tab.queues {
		prev := uint32(0)
		for i := q.head; i != 0; i = tab.slots.at(i).next {
			s, before := tab.slots.at(i), tab.slots.at(prev)
			if !chained[i] || s.queue != uint32(n) || s.prev != prev || prev != 0 && s.expires < before.expires {
				t.Fatalf("slot %d is out of order in queue %d", i, n)
			}
			queued++
			prev = i
		}
		if q.tail != prev {
			t.Fatalf("queue %d ends in slot %d, not %d", n, prev, q.tail)
		}
	}
	free := 0
	for i := tab.free; i != 0; i = tab.slots.at(i).chain {
		if chained[i] || *tab.slots.at(i) != (slot{chain: tab.slots.at(i).chain}) {
			t.Fatalf("the free slot %d is in use", i)
		}
		free++
	}
	if len(chained) != tab.count || queued != tab.count || int(tab.slots.len) != 1+tab.count+free {
		t.Fatalf("%d IDs: %d in chains, %d in queues, %d slots with %d free",
			tab.count, len(chained), queued, tab.slots.len, free)
	}
	if int(tab.buckets.len) < tab.count || tab.low > tab.buckets.len || tab.buckets.len >= 2*tab.low {
		t.Fatalf("%d buckets, %d as a power of two, for %d IDs", tab.buckets.len, tab.low, tab.count)
	}
}

func randomKey(rnd *rand.Rand) (k Key) {
	binary.LittleEndian.PutUint64(k[:], rnd.Uint64())
	binary.LittleEndian.PutUint64(k[8:], rnd.Uint64())
	return k
}

func TestTableAgreesWithMapModel(t *testing.T) {
	for name, mask := range map[string]byte{"spread keys": 0xff, "colliding keys": 0x03} {
		t.Run(name, func(t *testing.T) {
			c := &tableComparison{T: t, rnd: random(t), model: make(map[Key]tableEntry)}
			for range 1500 {
				key := randomKey(c.rnd)
				for i := range 4 { // the part that hash uses
					key[i] &= mask
				}
				c.keys = append(c.keys, key)
			}
			emptied, most := 0, 0
			for c.step = range 60_000 {
				c.now += int64(c.rnd.IntN(3)) // often the same instant again
				growing := c.step/3000%2 == 0 // it grows, then shrinks down to nothing, and so on
				if key := c.keys[c.rnd.IntN(len(c.keys))]; (c.rnd.IntN(5) > 0) == growing {
					c.put(key)
				} else if c.removeOne() && len(c.model) == 0 {
					emptied++
				}
				most = max(most, len(c.model))
				c.compare()
			}
			if emptied < 3 || most < 2*chunkLen {
				t.Errorf("emptied %d times and had at most %d IDs: too few to prove anything", emptied, most)
			}
		})
	}
}

type tableEntry struct {
	digest  Digest
	expires int64
}

// tableComparison makes random changes to a table and to a map.
type tableComparison struct {
	*testing.T
	rnd   *rand.Rand
	keys  []Key
	table table
	model map[Key]tableEntry
	now   int64
	step  int
}

// put inserts a key, which it removes first if it is there, as a redelivery
// does.
func (c *tableComparison) put(key Key) {
	if e, ok := c.model[key]; ok {
		s := c.table.find(key)
		c.check(s, e)
		c.table.remove(s)
	} else if s := c.table.find(key); s != nil {
		c.Fatalf("step %d: found %+v, want nothing", c.step, s)
	}
	retentions := []time.Duration{5, 1000, 70, 0, 1 << 40}
	d := retentions[c.rnd.IntN(len(retentions))]
	e := tableEntry{Digest(c.rnd.Uint64()), c.now + int64(d)}
	c.table.insert(key, e.digest, d, c.now)
	c.model[key] = e
}

// removeOne removes the oldest key or a random one, and reports whether it did.
func (c *tableComparison) removeOne() bool {
	s := c.table.oldest()
	if s == nil {
		if len(c.model) != 0 {
			c.Fatalf("step %d: no oldest among %d IDs", c.step, len(c.model))
		}
		return false
	}
	if c.rnd.IntN(2) == 0 {
		if s = c.table.find(c.keys[c.rnd.IntN(len(c.keys))]); s == nil {
			return false
		}
	} else {
		for _, e := range c.model {
			if e.expires < s.expires {
				c.Fatalf("step %d: the oldest expires at %d, but one does at %d", c.step, s.expires, e.expires)
			}
		}
	}
	want, ok := c.model[s.key]
	if !ok {
		c.Fatalf("step %d: found %+v, want nothing", c.step, s)
	}
	c.check(s, want)
	delete(c.model, s.key)
	c.table.remove(s)
	return true
}

func (c *tableComparison) check(s *slot, want tableEntry) {
	c.Helper()
	if s == nil || s.digest != want.digest || s.expires != want.expires {
		c.Fatalf("step %d: found %+v, want %+v", c.step, s, want)
	}
}

func (c *tableComparison) compare() {
	if c.table.count != len(c.model) {
		c.Fatalf("step %d: %d IDs, want %d", c.step, c.table.count, len(c.model))
	}
	if c.step%500 != 0 && len(c.model) != 0 {
		return
	}
	checkTable(c.T, &c.table)
	latest := int64(0)
	for _, e := range c.model {
		latest = max(latest, e.expires)
	}
	if got := c.table.latest(); got != latest {
		c.Fatalf("step %d: the last ID expires at %d, want %d", c.step, got, latest)
	}
}

func TestOldestIsTheFirstToExpire(t *testing.T) {
	type insert struct {
		key       byte
		retention time.Duration
		now       int64
	}
	for name, c := range map[string]struct {
		inserts []insert
		want    []byte
	}{
		"nothing":                    {nil, nil},
		"order of delivery":          {[]insert{{3, 9, 0}, {1, 9, 1}, {2, 9, 2}}, []byte{3, 1, 2}},
		"delivered in one instant":   {[]insert{{3, 9, 0}, {1, 9, 0}, {2, 9, 0}}, []byte{3, 1, 2}},
		"shorter retention is first": {[]insert{{1, 100, 0}, {2, 10, 0}, {3, 1, 0}}, []byte{3, 2, 1}},
		"mixed": {
			[]insert{{1, 100, 0}, {2, 10, 1}, {3, 100, 2}, {4, 10, 50}, {5, 200, 51}, {6, 10, 93}, {7, 100, 94}},
			[]byte{2, 4, 1, 3, 6, 7, 5},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var tab table
			for _, i := range c.inserts {
				tab.insert(Key{i.key}, 0, i.retention, i.now)
			}
			var got []byte
			for s := tab.oldest(); s != nil; s = tab.oldest() {
				got = append(got, s.key[0])
				tab.remove(s)
				checkTable(t, &tab)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// Only retentions in use have a queue: a retention that was used once must not
// make every operation slower.
func TestQueuesOfUnusedRetentionsAreReused(t *testing.T) {
	var tab table
	tab.insert(Key{}, 0, time.Hour, 0) // one that stays
	for i := range 100 {
		tab.insert(Key{1}, 0, time.Duration(i+1), 0)
		checkTable(t, &tab)
		tab.remove(tab.find(Key{1}))
	}
	if n := len(tab.queues); n != 2 {
		t.Errorf("%d queues, want 2", n)
	}
}

// filled returns a table with the keys of the numbers below n.
func filled(n int) *table {
	tab := new(table)
	for i := range n {
		tab.insert(counterKey(uint64(i)), 1, time.Hour, int64(i))
	}
	return tab
}

// counterKey is the finalizer of SplitMix64. It is fast, different for each n,
// and as evenly distributed as [KeyOf].
func counterKey(n uint64) (k Key) {
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	n ^= n >> 31
	binary.LittleEndian.PutUint64(k[:], n)
	return k
}

func TestSlotsAreReused(t *testing.T) {
	const n = 5000
	tab := filled(n)
	slots, buckets := tab.slots.len, tab.buckets.len
	for i := range 3 * n {
		tab.remove(tab.oldest())
		tab.insert(counterKey(uint64(n+i)), 1, time.Hour, int64(n+i))
	}
	if tab.slots.len != slots || tab.buckets.len != buckets {
		t.Errorf("from %d slots and %d buckets to %d and %d, with as many IDs as before",
			slots, buckets, tab.slots.len, tab.buckets.len)
	}
	checkTable(t, tab)
}

func TestChainsStayShort(t *testing.T) {
	const n, most = 100_000, 20
	rnd := random(t)
	var tab table
	for i := range n {
		tab.insert(randomKey(rnd), 0, time.Hour, int64(i))
	}
	longest := 0
	for b := range tab.buckets.len {
		length := 0
		for i := *tab.buckets.at(b); i != 0; i = tab.slots.at(i).chain {
			length++
		}
		longest = max(longest, length)
	}
	t.Logf("the longest chain of %d IDs has %d", n, longest)
	if longest > most {
		t.Errorf("a chain of %d IDs, want at most %d", longest, most)
	}
}

// This measures what an insertion allocates, because its time depends on the
// machine. Only the lists of chunks are copied, with 8 bytes for 256 IDs.
func TestNoInsertionCopiesTheTable(t *testing.T) {
	const n = 200_000
	var tab table
	var before, after runtime.MemStats
	for i := range n {
		// reading the statistics each time would stop the world too often
		watched := i&(i-1) == 0 || i%997 == 0
		if watched {
			runtime.ReadMemStats(&before)
		}
		tab.insert(counterKey(uint64(i)), 1, time.Hour, int64(i))
		if watched {
			runtime.ReadMemStats(&after)
			if took := after.TotalAlloc - before.TotalAlloc; took > 64<<10 {
				t.Fatalf("the insertion of ID %d took %d bytes", i, took)
			}
		}
	}
}

// heap returns the number of bytes and objects in use.
func heap() (bytes, objects int64) {
	runtime.GC()
	runtime.GC() // for what the first one left to finalizers and sync.Pool
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc), int64(m.HeapObjects)
}

func TestMemoryOfAMillionIDs(t *testing.T) {
	const n, maxBytes, maxObjects = 1_000_000, 80, 20_000
	bytesBefore, objectsBefore := heap()
	tab := filled(n)
	bytes, objects := heap()
	bytes, objects = bytes-bytesBefore, objects-objectsBefore
	t.Logf("%.2f bytes per ID, %d objects in all", float64(bytes)/n, objects)
	if bytes > maxBytes*n || bytes < 24*n { // less is impossible: the measurement is wrong
		t.Errorf("%.2f bytes per ID, want at most %d", float64(bytes)/n, maxBytes)
	}
	if objects > maxObjects {
		t.Errorf("%d objects on the heap, want at most %d", objects, maxObjects)
	}

	for tab.count > 1 {
		tab.remove(tab.oldest())
	}
	if s := tab.find(counterKey(n - 1)); s == nil || tab.oldest() != s {
		t.Fatal("the newest ID is not the last one left")
	}
	tab.remove(tab.oldest())
	bytes, _ = heap()
	if left := bytes - bytesBefore; left > 1<<20 {
		t.Errorf("%d bytes are still in use when the table is empty", left)
	}
	tab.insert(Key{1}, 1, time.Hour, 0) // the table is alive until here, and usable afterwards
	checkTable(t, tab)
}
