package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

func TestLookupAndForget(t *testing.T) {
	url, c := endpoint(t, "")
	at := []string{"--address", c.Admin}
	lookup := func(args ...string) ran {
		return run(t, "", append(append([]string{"lookup", "evt/lookup 1"}, at...), args...)...)
	}
	lookup().says(t, 0, "SCOPE", "secret:1  memory  unseen  -")
	run(t, "", "send", url, "--id", "evt/lookup 1").says(t, 0)
	lookup().says(t, 0, "secret:1  memory  delivered  "+time.Now().UTC().Add(24*time.Hour).Format("2006-01-02T"))
	lookup("--json").says(t, 0, `{"id":"evt/lookup 1","scopes":[{"scope":"secret:1","store":"memory","state":"delivered","expires":"`)
	forget := append([]string{"forget", "evt/lookup 1"}, at...)
	run(t, "", forget...).says(t, 0, "secret:1  memory  yes")
	run(t, "", forget...).says(t, 0, "secret:1  memory  no: it was not remembered")
	lookup().says(t, 0, "unseen")
	run(t, "", "lookup", "evt_1", "--config", c.Config, "--adapter", "caddyfile").says(t, 0, "unseen")
	run(t, "", "lookup", "evt_1", "--address", caddytest.FreeAddress(t)).says(t, 1, "connection refused", "Is Caddy running", "--address")
	run(t, "", "lookup").says(t, 1, "accepts 1 arg")
}

func TestLookupTellsWhatWaitsInTheInbox(t *testing.T) {
	url, c := storingEndpoint(t, "retry 1h", "")
	lookup := func() ran { return run(t, "", "lookup", "evt_1", "--address", c.Admin) }
	run(t, "", "send", url, "--id", "evt_1").says(t, 0, "(stored)")
	c.Change("/buzzbip_webhook/inbox/pause", "")
	got := lookup()
	got.says(t, 0, "secret:1  memory  stored  ", "  waits in the inbox, which is paused, attempts: 1, last attempt failed (unreachable) at ", "connection refused")
	c.Change("/buzzbip_webhook/inbox/resume", "")
	before := time.Now().Add(40 * time.Minute).UTC()
	got = lookup()
	got.says(t, 0, "stored  ", "  waits in the inbox, next attempt at ", ", attempts: 1, last attempt failed (unreachable) at ")
	_, rest, _ := strings.Cut(got.out, "next attempt at ")
	text, _, _ := strings.Cut(rest, ",")
	if next, err := time.Parse(time.RFC3339, text); err != nil || next.Before(before) {
		t.Errorf("the next attempt is at %q, not after %v: %v", text, before, err)
	}
	run(t, "", "lookup", "evt_1", "--json", "--address", c.Admin).says(t, 0, `"state":"stored"`, `"attempts":1`, `"due":"`, `"cause":"unreachable"`, `"error":"`)
}

func TestLookupTellsADeadEvent(t *testing.T) {
	address := caddytest.FreeAddress(t)
	c := caddytest.Start(t, "", "", fmt.Sprintf("http://%s {\n\tbuzzbip_webhook %s {\n\t\tinbox sqlite {\n\t\t\tdead_on 422\n\t\t}\n\t}\n\trespond 422\n}", address, caddytest.Secret))
	run(t, "", "send", "http://"+address, "--id", "evt_1").says(t, 0, "(stored)")
	caddytest.WaitFor(t, "the event to be dead", func() bool { return c.Metric(`inbox_events{state="dead"}`) == 1 })
	run(t, "", "lookup", "evt_1", "--address", c.Admin).says(t, 0, "dead  ", "  in the inbox until you retry or discard it, attempts: 1, last attempt failed with 422 at ")
}

func TestLookupAndForgetTakeAnyID(t *testing.T) {
	url, c := endpoint(t, "")
	for _, id := range []string{".", "..", "../scopes", "%2E"} {
		run(t, "", "send", url, "--id", id).says(t, 0)
		run(t, "", "lookup", "--address", c.Admin, "--", id).says(t, 0, "delivered")
		run(t, "", "forget", "--address", c.Admin, "--", id).says(t, 0, "yes")
	}
}

func TestLookupAndForgetShowOtherStoresWhileOneIsDown(t *testing.T) {
	site := caddytest.FreeAddress(t)
	c := caddytest.Start(t, "", "", fmt.Sprintf(`http://%s {
	handle /down {
		buzzbip_webhook %[2]s {
			scope down
			store redis redis://%[3]s
		}
	}
	handle {
		buzzbip_webhook %[2]s {
			scope up
		}
		respond 200
	}
}`, site, caddytest.Secret, caddytest.FreeAddress(t)))
	run(t, "", "send", "http://"+site, "--id", "evt_1").says(t, 0)
	for _, want := range []struct {
		command string
		table   []string
		json    string // of what is not known
	}{
		{"lookup", []string{"down   redis   unknown", "up     memory  delivered  2"}, `"state":"unknown"`},
		{"forget", []string{"down   redis   unknown", "up     memory  yes"}, `{"scope":"down","store":"redis"}`},
	} {
		for _, asJSON := range []bool{false, true} {
			args, texts := []string{want.command, "evt_1", "--address", c.Admin}, want.table
			if asJSON {
				args, texts = append(args, "--json"), []string{`"scope":"up"`, want.json}
			}
			got := run(t, "", args...)
			for _, text := range texts {
				if !strings.Contains(got.out, text) {
					t.Errorf("%q does not print %q: %s", args, text, got.out)
				}
			}
			if got.code != 1 || !strings.HasPrefix(got.err, "Error: store redis: ") || strings.Contains(got.err, "Is Caddy running") || strings.Contains(got.err, "scopes") {
				t.Errorf("%q ends with %d: %s", args, got.code, got.err)
			}
		}
	}
}

func TestErrorsOfTheAdminEndpointAreShownAsTheyAre(t *testing.T) {
	c := caddytest.Start(t, "", "", "http://"+caddytest.FreeAddress(t))
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	empty := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer empty.Close()
	addressOf := func(s *httptest.Server) string { return s.Listener.Addr().String() }
	for _, wrong := range []struct{ command, id, address, says string }{
		{"lookup", "evt_1", c.Admin, "the active configuration has no buzzbip_webhook"},
		{"forget", "evt_1", c.Admin, "the active configuration has no buzzbip_webhook"},
		{"lookup", "", c.Admin, "give the ID of an event"},
		{"lookup", "evt_1", addressOf(other), addressOf(other) + " is not the admin endpoint of a Caddy with buzzbip_webhook"},
		{"lookup", "evt_1", addressOf(empty), addressOf(empty) + " is not the admin endpoint of a Caddy with buzzbip_webhook"},
		{"page", "", addressOf(other), addressOf(other) + " is not the admin endpoint of a Caddy with buzzbip_webhook"},
	} {
		args := []string{wrong.command, wrong.id, "--address", wrong.address}
		if wrong.command == "page" {
			args = slices.Delete(args, 1, 2)
		}
		if got := run(t, "", args...); got.code != 1 || got.out != "" || !strings.HasPrefix(got.err, "Error: "+wrong.says) || strings.Contains(got.err, "Is Caddy running") {
			t.Errorf("%q: %+v", args, got)
		}
	}
	run(t, "", "lookup", "evt_1", "--address", "localhost:1-2").says(t, 1, "is not the address of an admin endpoint, such as localhost:2019")
}
