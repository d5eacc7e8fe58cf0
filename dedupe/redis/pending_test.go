package redis

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	_ "github.com/caddyserver/caddy/v2/modules/logging"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

// logged lets Caddy log to a file until the end of the test.
func logged(t *testing.T) (text func() string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "log")
	run := func(logging string) {
		config := fmt.Sprintf(`{"admin": {"disabled": true, "config": {"persist": false}}, "logging": {%s}}`, logging)
		if err := caddy.Load([]byte(config), true); err != nil {
			t.Fatal(err)
		}
	}
	run(fmt.Sprintf(`"logs": {"default": {"writer": {"output": "file", "filename": %q}}}`, file))
	t.Cleanup(func() { run("") })
	return func() string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
}

func limitPending(t *testing.T, capacity int) {
	old := pendingCapacity
	pendingCapacity = capacity
	t.Cleanup(func() { pendingCapacity = old })
}

// deliverDown delivers while Redis is down.
func deliverDown(t *testing.T, s *Store, r dedupe.Request) {
	t.Helper()
	if err := s.Settle(context.Background(), expect(t, s, r, dedupe.Claimed), true); err == nil {
		t.Fatal("Redis is not down")
	}
}

func TestWhatThereIsNoRoomForInAnOutageIsLoggedAndCounted(t *testing.T) {
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
			t.Errorf("in outage %d, %d ids count as evicted, want %d", outage, got, 3*outage)
		}
		if got := strings.Count(log(), "there is no room to keep"); got != outage {
			t.Errorf("in outage %d, the log has said so %d times", outage, got)
		}
		server.Restart()
		waitFor(t, "Redis to be back", func() bool { return up(s) && s.pendingOutcomes() == 0 })
		if got := strings.Count(log(), `"deliveries":3`); got != outage {
			t.Errorf("after outage %d, the log has told the number %d times", outage, got)
		}
	}
	if strings.Count(log(), "Redis is back") != 2 {
		t.Error("the log does not say that Redis was back twice")
	}
}

func TestWhatHasExpiredMakesRoomInAnOutage(t *testing.T) {
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
		t.Errorf("%d ids count as evicted", got)
	}
	server.Restart()
	waitFor(t, "Redis to know", func() bool { return up(s) && s.pendingOutcomes() == 0 })
	expect(t, newInstance(t, config(server)), arrival("c", 1), dedupe.Delivered)
}

// What Redis knows is not forgotten, however little this instance can remember.
func TestWhatRedisKnowsIsNotEvicted(t *testing.T) {
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

// An event that was delivered again with another body, both in an outage.
func TestLastOfSeveralDeliveriesCountsAfterAnOutage(t *testing.T) {
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
	waitFor(t, "Redis to know", func() bool { return up(s) && s.pendingOutcomes() == 0 })
	other := newInstance(t, config(server))
	for n := range events {
		expect(t, other, arrival(fmt.Sprint(n), 2), dedupe.Delivered)
	}
}

// heap is how much memory is in use.
func heap() int64 {
	runtime.GC()
	runtime.GC() // for what the first has finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// The figures are those of docs/STORES.md.
func TestMemoryOfAnOutageIsBoundedAndGivenBack(t *testing.T) {
	server := redistest.Start(t)
	server.Kill()
	s := newInstance(t, config(server, "timeout", "100ms"))
	deliverDown(t, s, arrival("first", 1))
	const ids = 300_000
	before := heap()
	for n := range ids {
		deliverDown(t, s, arrival(fmt.Sprint(n), 1))
	}
	taken := heap() - before
	t.Logf("%d bytes for each ID in an outage", taken/ids)
	if most := int64(240 * ids); taken > most {
		t.Errorf("%d IDs take %d bytes, want %d at most", ids, taken, most)
	}
	server.Restart()
	waitFor(t, "Redis to know", func() bool { return up(s) && s.pendingOutcomes() == 0 })
	left := heap() - before
	t.Logf("%d bytes for each ID afterwards", left/ids)
	if most := int64(75 * ids); left > most {
		t.Errorf("%d IDs take %d bytes after the outage, want %d at most", ids, left, most)
	}
	runtime.KeepAlive(s)
}

// What an instance says of its last claim on an ID counts for the earlier ones.
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
	told := p.next(1)[0]
	p.add(ended{a, at(4, true, 8)})
	p.remove(told) // and not what came while it was told
	if o, ok := p.delivery(a); !ok || o.digest != 8 {
		t.Errorf("got %+v %v", o, ok)
	}
	p.forgetDelivery(a)
	if _, ok := p.delivery(a); ok || p.len() != 1 {
		t.Error("it was not forgotten, or the end of its claim was")
	}
	p.supersede(a, 3)
	if p.len() != 1 {
		t.Error("an earlier claim has ended a later one")
	}
	p.supersede(a, 5)
	if p.len() != 0 || p.byID != nil {
		t.Error("something is left")
	}
}
