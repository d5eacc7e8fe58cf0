package redis

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

// A waiter on another instance gets a message, and does not depend on polling.
func TestWaiterOnAnotherInstanceIsWokenByAMessage(t *testing.T) {
	server := redistest.Start(t)
	a, b := newInstance(t, config(server)), newInstance(t, config(server))
	stopPolling(b)
	waitFor(t, "the subscriptions", func() bool {
		return strings.Contains(server.Do("PUBSUB", "NUMSUB", "buzzbip:ended"), "2")
	})
	for _, delivered := range []bool{true, false} {
		id := fmt.Sprint("delivered: ", delivered)
		c := expect(t, a, arrival(id, 1), dedupe.Claimed)
		waiter := claimAsync(t, b, waiting(arrival(id, 1)))
		waitFor(t, "the waiter", func() bool { return waits(b, id) })
		settle(t, a, c, delivered)
		start := time.Now()
		got := await(t, waiter, "the waiter's answer")
		t.Logf("answered %v after the end", time.Since(start))
		if want := map[bool]dedupe.State{true: dedupe.Delivered, false: dedupe.Claimed}[delivered]; got.err != nil || got.State != want {
			t.Errorf("after an end with delivered=%v the waiter got %+v", delivered, got)
		}
		if got.State == dedupe.Claimed {
			settle(t, b, got.Claim, true)
		}
	}
}

func TestWaiterPollsWhenThereIsNoMessage(t *testing.T) {
	server := redistest.Start(t)
	a, b := newInstance(t, config(server)), newInstance(t, config(server))
	c := expect(t, a, arrival("a", 1), dedupe.Claimed)
	waiter := claimAsync(t, b, waiting(arrival("a", 1)))
	waitFor(t, "the waiter", func() bool { return waits(b, "a") })
	// the claim ends without a message
	setBegin(a, "a", time.Now().Add(time.Hour)) // so that it is not registered again
	server.Do("DEL", a.claimKey("a"))
	got := await(t, waiter, "the waiter's answer")
	if got.err != nil || got.State != dedupe.Claimed {
		t.Errorf("got %+v", got)
	}
	settle(t, b, got.Claim, true)
	settle(t, a, c, false)
	expect(t, a, arrival("a", 1), dedupe.Delivered)
}

// Without the channel, waiters poll.
func TestACLWithoutTheChannelCausesAWarningAndPolling(t *testing.T) {
	log := logged(t)
	server := redistest.Start(t)
	server.Do("ACL", "SETUSER", "default", "resetchannels")
	a, b := newInstance(t, config(server, "when_down", "refuse")), newInstance(t, config(server, "when_down", "refuse"))
	waitFor(t, "the warnings of both", func() bool { return strings.Count(log(), warnsOfChannel) == 2 })
	for _, success := range []bool{false, true} {
		c := expect(t, a, arrival("a", 1), dedupe.Claimed)
		waiter := claimAsync(t, b, waiting(arrival("a", 1)))
		waitFor(t, "the waiter", func() bool { return waits(b, "a") })
		settle(t, a, c, success)
		got := await(t, waiter, "the waiter's answer")
		if want := map[bool]dedupe.State{true: dedupe.Delivered, false: dedupe.Claimed}[success]; got.err != nil || got.State != want {
			t.Errorf("the waiter got %+v", got)
		}
		if got.State == dedupe.Claimed {
			settle(t, b, got.Claim, false)
		}
	}
	if !up(a) || !up(b) || strings.Contains(log(), "Redis is down") {
		t.Error("Redis counts as down")
	}
}
