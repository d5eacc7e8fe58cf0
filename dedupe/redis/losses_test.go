package redis

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

func TestEventsThatRedisLostAreCounted(t *testing.T) {
	log := logged(t)
	server := redistest.Start(t)
	s, other := newInstance(t, config(server)), newInstance(t, config(server))
	forgotten := func(want uint64) {
		t.Helper()
		if got := s.Stats().Forgotten; got != want {
			t.Errorf("%d events count as forgotten, want %d", got, want)
		}
	}
	for n := range 3 {
		deliver(t, s, arrival(fmt.Sprint(n), 1))
	}
	changed := arrival("0", 2)
	changed.Redeliver = true
	deliver(t, s, changed)
	if ok, err := s.Forget(t.Context(), "scope", dedupe.KeyOf("1")); !ok || err != nil {
		t.Fatal(ok, err)
	}
	deliver(t, s, arrival("1", 1))
	short := arrival("short", 1)
	short.Retention = time.Millisecond
	deliver(t, s, short)
	time.Sleep(10 * time.Millisecond)
	deliver(t, s, short)
	forgotten(0)
	server.Do("FLUSHALL")
	expect(t, other, arrival("new", 1), dedupe.Claimed)
	for n := range 3 {
		deliver(t, s, arrival(fmt.Sprint(n), 1))
	}
	forgotten(3)
	if got := strings.Count(log(), "Redis no longer knows an event"); got != 1 {
		t.Errorf("the log says so %d times, want once", got)
	}
	if other.Stats().Forgotten != 0 {
		t.Error("another instance counts them")
	}
}
