package redis

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

func TestRedeliveryInAnOutageIsRecordedAfterwards(t *testing.T) {
	server := redistest.Start(t, strings.Fields(durable)...)
	s := newInstance(t, config(server, "timeout", "200ms"))
	deliver(t, s, arrival("a", 1))
	server.Kill()
	changed := arrival("a", 2)
	changed.Redeliver = true
	deliverDown(t, s, changed)
	expect(t, s, changed, dedupe.Delivered)
	server.Restart()
	waitFor(t, "the outcomes to be recorded", func() bool { return up(s) && s.pendingOutcomes() == 0 })
	expect(t, s, changed, dedupe.Delivered)
	expect(t, newInstance(t, config(server)), changed, dedupe.Delivered)
}

// When Redis has lost a claim and granted another, both events are delivered,
// and the success of either is recorded.
func TestSuccessAfterAnOutageIsRecordedThoughAnotherInstanceOwnsTheID(t *testing.T) {
	server := redistest.Start(t)
	s, other := newInstance(t, config(server, "timeout", "200ms")), newInstance(t, config(server, "timeout", "200ms"))
	server.Pause()
	during := expect(t, s, arrival("a", 1), dedupe.Claimed)
	server.Resume()
	waitFor(t, "Redis to be back", func() bool { return up(s) && up(other) })
	waitFor(t, "the claim to be registered", func() bool { return claimedBy(server, s, "a") })
	setBegin(s, "a", time.Now().Add(time.Hour)) // so that it is not registered again
	server.Do("DEL", other.claimKey("a"))
	after := expect(t, other, arrival("a", 1), dedupe.Claimed)
	settle(t, s, during, true)
	settle(t, other, after, false)
	expect(t, other, arrival("a", 1), dedupe.Delivered)
}

// The value of a key becomes unknown while its event is being delivered, and
// while Redis is down.
func TestUnknownValueOfAKeyWhenADeliveryEnds(t *testing.T) {
	server := redistest.Start(t, strings.Fields(durable)...)
	s := newInstance(t, config(server, "timeout", "200ms"))
	c := expect(t, s, arrival("bad", 1), dedupe.Claimed)
	makeList(server, s.claimKey("bad"))
	if err := s.Settle(context.Background(), c, true); err == nil {
		t.Error("a success that is not recorded was reported as recorded")
	}
	expect(t, s, arrival("bad", 1), dedupe.Delivered)

	c = expect(t, s, arrival("later", 1), dedupe.Claimed)
	makeList(server, s.claimKey("later"))
	server.Kill()
	_ = s.Settle(context.Background(), c, true)
	deliverDown(t, s, arrival("good", 1))
	server.Restart()
	waitFor(t, "the other outcomes to be recorded", func() bool { return up(s) && s.pendingOutcomes() == 0 })
	expect(t, newInstance(t, config(server)), arrival("good", 1), dedupe.Delivered)
	deliver(t, s, arrival("afterwards", 1))
	if !up(s) {
		t.Error("the store is down")
	}
}

func TestSettleEndsWithTheContextOfItsCaller(t *testing.T) {
	server := redistest.Start(t)
	s := newInstance(t, config(server, "timeout", "1h"))
	c := expect(t, s, arrival("a", 1), dedupe.Claimed)
	server.Pause()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Settle(ctx, c, true) }()
	if err := await(t, done, "the settlement"); err == nil {
		t.Error("a success that Redis does not know was reported as recorded")
	}
	if !up(s) {
		t.Error("Redis counts as down although its timeout has not passed")
	}
	expect(t, s, arrival("a", 1), dedupe.Delivered)
	server.Resume()
	waitFor(t, "the outcomes to be recorded", func() bool { return s.pendingOutcomes() == 0 })
	expect(t, newInstance(t, config(server)), arrival("a", 1), dedupe.Delivered)
}

// It is so in an outage, as it is otherwise.
func TestLateSuccessInAnOutageDoesNotReplaceADeliverySince(t *testing.T) {
	server := redistest.Start(t)
	s := newInstance(t, config(server, "timeout", "100ms"))
	old := expect(t, s, arrival("a", 1), dedupe.Claimed)
	settle(t, s, old, false)
	server.Kill()
	deliverDown(t, s, arrival("a", 2))
	_ = s.Settle(context.Background(), old, true)
	expect(t, s, arrival("a", 2), dedupe.Delivered)
	server.Restart()
	waitFor(t, "the outcomes to be recorded", func() bool { return up(s) && s.pendingOutcomes() == 0 })
	expect(t, newInstance(t, config(server)), arrival("a", 2), dedupe.Delivered)
}

// An inbox stores an event in an outage, and the backend accepts it before the
// outage ends.
func TestClaimEndsIfItsEventWasStoredAndThenDeliveredInAnOutage(t *testing.T) {
	server := redistest.Start(t, strings.Fields(durable)...)
	s := newInstance(t, config(server, "timeout", "100ms"))
	stored := expect(t, s, arrival("a", 1), dedupe.Claimed)
	stored.Retention = 24 * time.Hour
	server.Kill()
	_ = s.Settle(context.Background(), stored, true)
	_ = s.Settle(context.Background(), dedupe.Claim{Request: arrival("a", 1), Replaces: 1}, true)
	server.Restart()
	waitFor(t, "the outcomes to be recorded", func() bool { return up(s) && s.pendingOutcomes() == 0 })
	status, err := s.Lookup(t.Context(), "scope", dedupe.KeyOf("a"))
	if err != nil || status.InFlight || !status.Delivered || time.Until(status.Expires) > time.Hour {
		t.Errorf("got %+v, error %v", status, err)
	}
}
