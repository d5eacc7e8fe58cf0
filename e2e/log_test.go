package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

func TestAccessLogHasTheOutcomeOfEachRequest(t *testing.T) {
	tr := takeTour(t, "")
	total := 0.0
	for _, n := range tourRequests {
		total += n
	}
	results, reasons := make(map[any]float64), make(map[any]float64)
	logged := 0.0
	caddytest.WaitFor(t, "all entries", func() bool {
		clear(results)
		clear(reasons)
		logged = 0
		for _, entry := range tr.Entries() {
			if strings.HasPrefix(fmt.Sprint(entry["logger"]), "http.log.access") {
				logged++
				results[entry["buzzbip_result"]]++
				if reason := entry["buzzbip_reason"]; reason != nil {
					reasons[reason]++
				}
				if cause := entry["buzzbip_cause"]; (cause != nil) != (entry["buzzbip_result"] == "failed") || cause == "status_5xx" && entry["buzzbip_status"] != 500.0 {
					t.Fatalf("the entry of a %v request has the cause %v: %v", entry["buzzbip_result"], cause, entry)
				}
				verified := entry["buzzbip_event_id"] != nil && entry["buzzbip_event_type"] != nil
				if result := entry["buzzbip_result"]; !verified && result != "rejected" {
					t.Fatalf("the entry of a %v request names no event: %v", result, entry)
				}
			}
		}
		return logged >= total
	})
	wantResults := make(map[any]float64)
	for labels, n := range tourRequests {
		wantResults[strings.Split(labels, `"`)[3]] += n
	}
	wantReasons := make(map[any]float64)
	for reason, n := range tourRejections {
		wantReasons[reason] = n
	}
	if !maps.Equal(results, wantResults) || !maps.Equal(reasons, wantReasons) {
		t.Errorf("the access log has %v and %v, want %v and %v", results, reasons, wantResults, wantReasons)
	}
}

func TestRejectionsAreLoggedByReasonWithoutAFlood(t *testing.T) {
	tr := takeTour(t, "")
	logged := make(map[string]int)
	levels := make(map[string]any)
	for _, entry := range tr.Entries() {
		if entry["msg"] == "request rejected" {
			reason := fmt.Sprint(entry["reason"])
			logged[reason]++
			levels[reason] = entry["level"]
			if path := fmt.Sprint(entry["path"]); entry["host"] != tr.address || !strings.HasPrefix(path, "/") {
				t.Errorf("the entry for %s does not name the webhook: %v", reason, entry)
			}
		}
	}
	for reason := range tourRejections {
		if reason == "unhandled" { // logged as a failed delivery
			continue
		}
		want := "warn"
		if reason == "store_unavailable" {
			want = "error"
		}
		if logged[reason] == 0 || levels[reason] != want {
			t.Errorf("%d entries at level %v for %s", logged[reason], levels[reason], reason)
		}
	}
	// One after the other, so the log has them in order: an entry for the rejection,
	// if it is not suppressed, and then that of the access log.
	flood := func() (suppressed float64) {
		var rejected, logged float64
		for _, entry := range tr.Entries() {
			switch {
			case entry["buzzbip_reason"] == "signature_mismatch":
				rejected++
			case entry["msg"] == "request rejected" && entry["reason"] == "signature_mismatch":
				n, _ := entry["suppressed"].(float64)
				suppressed += n
				if logged += 1 + n; logged != rejected+1 {
					t.Fatalf("after %v rejections the log accounts for %v", rejected+1, logged)
				}
			}
		}
		return suppressed
	}
	// the number of those suppressed comes with the next entry
	caddytest.WaitFor(t, "the next entry", func() bool {
		tr.expect(tr.request(http.MethodPost, "/main", strings.Repeat("0", 64), "{}"), http.StatusUnauthorized)
		return flood() > 0
	})
	var conflict, store bool
	for _, entry := range tr.Entries() {
		conflict = conflict || entry["level"] == "error" && entry["path"] == "/main" && strings.Contains(fmt.Sprint(entry["msg"]), "the ID of a delivered event")
		store = store || entry["level"] == "error" && strings.Contains(fmt.Sprint(entry["msg"]), "Redis is down")
	}
	if !conflict || !store {
		t.Errorf("at level error: the conflict %v, the store %v", conflict, store)
	}
}
