package buzzbip

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

func TestAccessLogTellsStoredEventsAndTheirRedeliveries(t *testing.T) {
	b, working := failing(t, http.StatusBadGateway)
	s := start(t, "log {\noutput test\n}\n"+proxied(b, kept(t, "")))
	id := caddytest.NewID()
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.Event{ID: id}.Body())), http.StatusOK, webhook.ResultStored)
	caddytest.Receive(t, b.arrived, "the first attempt")
	caddytest.Receive(t, b.arrived, "the second attempt")
	working.Store(true)
	waitForEmptyInbox(t)
	caddytest.WaitFor(t, "the entries", func() bool {
		return strings.Contains(s.logs(), `"buzzbip_result":"stored"`) && strings.Contains(s.logs(), `"buzzbip_result":"delivered"`)
	})
	var entries []map[string]any
	for line := range strings.Lines(s.logs()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatal(err)
		}
		if entry["msg"] == "handled request" {
			entries = append(entries, entry)
		}
	}
	var stored, failed, delivered int
	for _, entry := range entries {
		if entry["buzzbip_event_id"] != id || entry["buzzbip_event_type"] != "message.received" {
			t.Errorf("another event: %v", entry)
		}
		backendFailed := entry["buzzbip_cause"] == "status_5xx" && entry["buzzbip_status"] == 502.0
		attempt := entry["buzzbip_attempt"]
		switch {
		case entry["buzzbip_result"] == "stored" && entry["status"] == 200.0 && backendFailed && attempt == nil:
			stored++
		case entry["buzzbip_result"] == "failed" && entry["status"] == 502.0 && backendFailed && attempt == float64(failed+2):
			failed++
		case entry["buzzbip_result"] == "delivered" && entry["status"] == 200.0 && entry["buzzbip_cause"] == nil && attempt == float64(failed+2):
			delivered++
		default:
			t.Errorf("unexpected: %v", entry)
		}
	}
	if stored != 1 || failed < 1 || delivered != 1 {
		t.Errorf("%d stored, %d failed, %d delivered", stored, failed, delivered)
	}
}
