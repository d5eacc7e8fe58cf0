package cli

import (
	"bytes"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/adminapi"
)

// Events are from outside: their IDs and keys may have any characters.
func TestEventsAreListedInColumns(t *testing.T) {
	arrived := time.Date(2026, 6, 1, 14, 32, 0, 0, time.UTC)
	events := []adminapi.InboxEvent{
		{Number: 7, State: "waiting", ID: "evt_1", Type: "message.received", Key: "cnv\t1", Arrived: arrived},
		{Number: 12, State: "dead", ID: "evt\n\x1b[31m\u009b2", Type: "contact.created", Arrived: arrived, Attempts: 3,
			Last: &inbox.Attempt{Cause: "unreachable", Error: "dial tcp 127.0.0.1:9000: connect: connection refused"}},
		{Number: 13, State: "delivered", ID: "é", Type: "message.sent", Arrived: arrived, Attempts: 1, Last: &inbox.Attempt{Status: 200}},
	}
	expect := func(want string) {
		t.Helper()
		var out bytes.Buffer
		if err := printEvents(&out, events); err != nil || out.String() != want {
			t.Errorf("error %v, got\n%swant\n%s", err, out.String(), want)
		}
	}
	expect(`NUMBER  STATE      TYPE              ID           KEY    ARRIVED               ATTEMPTS  LAST ATTEMPT
7       waiting    message.received  evt_1        cnv 1  2026-06-01T14:32:00Z  0         not tried
12      dead       contact.created   evt  [31m 2         2026-06-01T14:32:00Z  3         unreachable: dial tcp 127.0.0.1:9000: connect: connection refused
13      delivered  message.sent      é                   2026-06-01T14:32:00Z  1         200
`)
	events = events[2:]
	expect(`NUMBER  STATE      TYPE          ID  ARRIVED               ATTEMPTS  LAST ATTEMPT
13      delivered  message.sent  é   2026-06-01T14:32:00Z  1         200
`)
}

func TestTheStateOfAnInboxIsSummedUp(t *testing.T) {
	since := time.Date(2026, 6, 1, 14, 32, 0, 0, time.UTC)
	for want, s := range map[string]adminapi.InboxState{
		"0 waiting, 0 dead":                          {},
		"1,204 waiting, 3 dead, 1,000,000 delivered": {Waiting: 1204, Dead: 3, Delivered: 1_000_000},
		"0 waiting, 0 dead; paused since 2026-06-01T14:32:00Z; it cannot keep events: disk full": {Paused: &since, Error: "disk full"},
	} {
		if got := stateText(s); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
