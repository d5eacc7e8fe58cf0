package redis

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

func limitPending(t *testing.T, capacity int) {
	old := pendingCapacity
	pendingCapacity = capacity
	t.Cleanup(func() { pendingCapacity = old })
}

func TestDeliveriesThatPendingHasNoRoomForAreLoggedAndCounted(t *testing.T) {
	limitPending(t, 2)
	log := logged(t)
	server := redistest.Start(t)
	s := newInstance(t, config(server, "timeout", "100ms"))
	for outage := 1; outage <= 2; outage++ {
		server.Kill()
		for n := range 5 {
			deliverDown(t, s, arrival(fmt.Sprint(outage, " ", n), 1))
		}
		if got := s.Stats().Evicted; got != uint64(3*outage) {
			t.Errorf("in outage %d, %d IDs count as evicted, want %d", outage, got, 3*outage)
		}
		if got := strings.Count(log(), "no room left for deliveries"); got != outage {
			t.Errorf("in outage %d, the log has said so %d times", outage, got)
		}
		server.Restart()
		waitFor(t, "Redis to be back", func() bool { return up(s) && s.pendingOutcomes() == 0 })
		if got := strings.Count(log(), `"deliveries":3`); got != outage {
			t.Errorf("after outage %d, the log has the number %d times", outage, got)
		}
	}
	if strings.Count(log(), "Redis is back") != 2 {
		t.Error("the log does not say that Redis was back twice")
	}
}

func TestExpiredOutcomesMakeRoomInAnOutage(t *testing.T) {
	limitPending(t, 2)
	server := redistest.Start(t)
	s := newInstance(t, config(server, "timeout", "100ms"))
	server.Kill()
	for _, id := range []string{"a", "b"} {
		r := arrival(id, 1)
		r.Retention = time.Millisecond
		deliverDown(t, s, r)
	}
	time.Sleep(time.Millisecond)
	deliverDown(t, s, arrival("c", 1))
	if got := s.Stats().Evicted; got != 0 {
		t.Errorf("%d IDs count as evicted", got)
	}
	server.Restart()
	waitFor(t, "the outcomes to be recorded", func() bool { return up(s) && s.pendingOutcomes() == 0 })
	expect(t, newInstance(t, config(server)), arrival("c", 1), dedupe.Delivered)
}

func TestIDsThatRedisKnowsAreNotCountedAsEvicted(t *testing.T) {
	old := ownLimits
	ownLimits.Capacity = 1
	defer func() { ownLimits = old }()
	s := newInstance(t, config(redistest.Start(t)))
	for n := range 3 {
		deliver(t, s, arrival(fmt.Sprint(n), 1))
	}
	stats := s.Stats()
	if stats.Evicted != 0 || stats.Scopes["scope"].Capacity != 0 {
		t.Errorf("got %+v", stats)
	}
}

// An event is delivered, and delivered again with another body, in an outage.
func TestLastOfSeveralDeliveriesInAnOutageIsRecorded(t *testing.T) {
	server := redistest.Start(t)
	s := newInstance(t, config(server, "timeout", "100ms"))
	server.Kill()
	const events = 20
	for n := range events {
		deliverDown(t, s, arrival(fmt.Sprint(n), 1))
		again := arrival(fmt.Sprint(n), 2)
		again.Redeliver = true
		deliverDown(t, s, again)
	}
	server.Restart()
	waitFor(t, "the outcomes to be recorded", func() bool { return up(s) && s.pendingOutcomes() == 0 })
	other := newInstance(t, config(server))
	for n := range events {
		expect(t, other, arrival(fmt.Sprint(n), 2), dedupe.Delivered)
	}
}

// heap returns how much memory is in use.
func heap() int64 {
	runtime.GC()
	runtime.GC() // for what the first one finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// docs/STORES.md has these figures.
func TestMemoryOfAnOutageIsBoundedAndFreed(t *testing.T) {
	server := redistest.Start(t)
	server.Kill()
	s := newInstance(t, config(server, "timeout", "100ms"))
	restart := func() (memory int64) {
		server.Restart()
		waitFor(t, "the outcomes to be recorded", func() bool { return up(s) && s.pendingOutcomes() == 0 })
		return heap()
	}
	deliverDown(t, s, arrival("in a first outage", 1))
	working := restart()
	server.Kill()
	deliverDown(t, s, arrival("first", 1))
	// maps double, so an ID takes as much memory as at the capacity
	ids := int64(pendingCapacity / 16)
	before := heap()
	for n := range ids {
		deliverDown(t, s, arrival(fmt.Sprint(n), 1))
	}
	taken := heap() - before
	t.Logf("%d bytes for each ID in an outage", taken/ids)
	if most := 240 * ids; taken > most {
		t.Errorf("%d IDs take %d bytes, want %d at most", ids, taken, most)
	}
	left := restart() - working
	t.Logf("%d bytes for each ID afterwards", left/ids)
	if most := 75 * ids; left > most {
		t.Errorf("%d IDs take %d bytes after the outage, want %d at most", ids, left, most)
	}
	runtime.KeepAlive(s)
}

// The outcome of the last claim on an ID replaces earlier ones.
func TestPendingHasOneOutcomeForEachID(t *testing.T) {
	at := func(token uint64, delivered bool, digest dedupe.Digest) outcome {
		return outcome{token: token, delivered: delivered, digest: digest, expires: unixAfter(time.Hour)}
	}
	var p pending
	a := id{"scope", dedupe.KeyOf("a")}
	p.add(ended{a, at(1, false, 0)})
	p.add(ended{a, at(2, true, 7)})
	p.add(ended{a, at(3, false, 0)}) // a redelivery
	if o, ok := p.delivery(a); !ok || o.digest != 7 || o.token != 3 || p.len() != 1 {
		t.Errorf("got %+v %v, and %d outcomes", o, ok, p.len())
	}
	recorded := p.next(1)[0]
	p.add(ended{a, at(4, true, 8)})
	p.remove(recorded) // does not remove the outcome that was added since
	if o, ok := p.delivery(a); !ok || o.digest != 8 {
		t.Errorf("got %+v %v", o, ok)
	}
	p.forgetDelivery(a)
	if _, ok := p.delivery(a); ok || p.len() != 1 {
		t.Error("the delivery is still known, or the end of the claim is not")
	}
	p.supersede(a, 3)
	if p.len() != 1 {
		t.Error("the outcome of a later claim was removed")
	}
	p.supersede(a, 4)
	if p.len() != 1 {
		t.Error("the end of a claim that was registered again was removed")
	}
	p.supersede(a, 5)
	if p.len() != 0 || p.byID != nil {
		t.Error("an outcome is left")
	}
}
