package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

func TestMetricsCountWhatHappensAcrossReloads(t *testing.T) {
	tr := takeTour(t, "")
	check := func(when string) {
		t.Helper()
		if got := tr.Series("requests_total"); !maps.Equal(got, tourRequests) {
			t.Errorf("%s the deliveries are %v, want %v", when, got, tourRequests)
		}
		rejections := make(map[string]float64)
		for reason, n := range tourRejections {
			rejections[fmt.Sprintf("reason=%q", reason)] = n
		}
		if got := tr.Series("rejections_total"); !maps.Equal(got, rejections) {
			t.Errorf("%s the rejections are %v, want %v", when, got, rejections)
		}
		for _, cause := range []string{"status_3xx", "status_4xx", "status_5xx", "status_other", "unreachable", "timeout", "connection_broken", "canceled", "unhandled", "panic"} {
			if got := tr.Metric(fmt.Sprintf("failures_total{cause=%q}", cause)); got != tourFailures[cause] {
				t.Errorf("%s %v failures are %s, want %v", when, got, cause, tourFailures[cause])
			}
		}
		for series, want := range map[string]float64{
			`signature_matches_total{secret="main"}`:  9,
			`signature_matches_total{secret="old"}`:   2,
			`signature_matches_total{secret="other"}`: 5,
			"in_flight":                           0,
			"in_flight_bytes":                     0,
			"abandoned_deliveries_total":          1,
			"conflicts_total":                     1,
			"event_age_seconds_count":             15,
			`event_age_seconds_bucket{le="3600"}`: 14,
			`delivery_duration_seconds_count{event_type="message.received"}`:            5,
			`delivery_duration_seconds_count{event_type="other"}`:                       1,
			`remembered_events{store="memory"}`:                                         4,
			`remembered_events{store="redis"}`:                                          0,
			`evicted_events_total{store="memory"}`:                                      0,
			`store_forgotten_events_total{store="redis"}`:                               0,
			`store_up{store="memory"}`:                                                  1,
			`store_up{store="redis"}`:                                                   0,
			`store_errors_total{operation="claim",store="redis"}`:                       1,
			`store_operation_duration_seconds_count{operation="settle",store="memory"}`: 5,
			`store_operation_duration_seconds_count{operation="claim",store="memory"}`:  10, // two of the duplicate that waits
		} {
			if got := tr.Metric(series); got != want {
				t.Errorf("%s %s is %v, want %v", when, series, got, want)
			}
		}
	}
	check("before a reload")
	tr.Reload()
	check("after a reload")

	config, err := os.ReadFile(tr.Config)
	if err != nil {
		t.Fatal(err)
	}
	broken := strings.Replace(string(config), "handle /nowhere {", "handle /nowhere {\n\t\tbuzzbip_webhook {env.NOT_SET}\n", 1)
	if status, _ := tr.Load(broken); status == http.StatusOK {
		t.Fatal("a configuration without a secret was loaded")
	}
	check("after a reload that failed")
}

// Prometheus takes the first value of a series for where it begins: if that were
// the first match of an old secret, it would seem unused.
func TestMetricsHaveSecretsThatHaveNotMatchedYet(t *testing.T) {
	c := caddytest.Start(t, "", "", fmt.Sprintf(`
http://%s {
	buzzbip_webhook {
		secret %s current
		secret %s previous
		dedupe off
	}
}`, caddytest.FreeAddress(t), caddytest.Secret, oldSecret))
	want := map[string]float64{`secret="current"`: 0, `secret="previous"`: 0}
	if got := c.Series("signature_matches_total"); !maps.Equal(got, want) {
		t.Errorf("the matches are %v, want %v", got, want)
	}
}

// inboxMetrics are those of an inbox that has a fixed value.
type inboxMetrics struct {
	waiting, dead, delivered   float64
	accepted, failed, unserved float64
	paused, up                 float64
}

func (want inboxMetrics) check(t *testing.T, c *caddytest.Caddy, when string) {
	t.Helper()
	all := func() (events, attempts, gauges map[string]float64) {
		return c.Series("inbox_events"), c.Series("inbox_attempts_total"), map[string]float64{"paused": c.Metric("inbox_paused"), "up": c.Metric("inbox_up")}
	}
	wantEvents := map[string]float64{`state="waiting"`: want.waiting, `state="dead"`: want.dead, `state="delivered"`: want.delivered}
	wantAttempts := map[string]float64{`result="accepted"`: want.accepted, `result="failed"`: want.failed, `result="unserved"`: want.unserved}
	wantGauges := map[string]float64{"paused": want.paused, "up": want.up}
	end := time.Now().Add(caddytest.Patience)
	events, attempts, gauges := all()
	for ; !(maps.Equal(events, wantEvents) && maps.Equal(attempts, wantAttempts) && maps.Equal(gauges, wantGauges)); events, attempts, gauges = all() {
		if time.Now().After(end) {
			t.Fatalf("%s the inbox has %v, %v and %v, want %v, %v and %v", when, events, attempts, gauges, wantEvents, wantAttempts, wantGauges)
		}
		time.Sleep(10 * time.Millisecond)
	}
	bytes, oldest := c.Metric("inbox_bytes"), c.Metric("inbox_oldest_seconds")
	if (bytes > 0) != (want.waiting+want.dead > 0) || (oldest > 0) != (want.waiting > 0) || oldest > time.Since(testStart).Seconds() {
		t.Errorf("%s the events that wait or are dead take %v bytes, and the oldest waits for %vs", when, bytes, oldest)
	}
}

var testStart = time.Now()

func TestMetricsOfTheInboxFollowWhatHappensInIt(t *testing.T) {
	var status atomic.Int64
	status.Store(http.StatusInternalServerError)
	b := caddytest.NewBackend(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(status.Load())) })
	address, file := caddytest.FreeAddress(t), filepath.Join(t.TempDir(), "inbox.db")
	c := caddytest.Start(t, "", "", fmt.Sprintf(`
http://%s {
	buzzbip_webhook %s {
		inbox sqlite %s {
			retry 1h
			dead_on 422
			keep_delivered 1h
		}
	}
	reverse_proxy %s
}`, address, caddytest.Secret, file, b.Address()))
	want := inboxMetrics{up: 1}
	want.check(t, c, "at the start")
	store := func() (id string) {
		t.Helper()
		id = caddytest.NewID()
		if got := caddytest.Post(t.Context(), "http://"+address, caddytest.Event{ID: id}.Body()); got.Status != http.StatusOK || got.Result != "stored" {
			t.Fatalf("the answer is %+v", got)
		}
		return id
	}

	store()
	first := c.Metric("inbox_bytes")
	last := store()
	want.waiting = 2
	want.check(t, c, "after two events were stored")
	if bytes := c.Metric("inbox_bytes"); bytes != 2*first || first < float64(len(caddytest.NewEvent())) {
		t.Errorf("one event takes %v bytes, two %v", first, bytes)
	}
	status.Store(http.StatusUnprocessableEntity)
	store()
	want.dead = 1
	want.check(t, c, "after a death")

	c.Change("/buzzbip_webhook/inbox/pause", "")
	want.paused = 1
	store()
	want.waiting = 3
	want.check(t, c, "while it is paused")
	c.Reload()
	want.check(t, c, "after a reload")
	config, err := os.ReadFile(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := c.Load(strings.Replace(string(config), caddytest.Secret, "{env.NOT_SET}", 1)); status == http.StatusOK {
		t.Fatal("a configuration without a secret was loaded")
	}
	want.check(t, c, "after a reload that failed")
	status.Store(http.StatusInternalServerError)
	c.Change("/buzzbip_webhook/inbox/resume", "")
	want.paused, want.failed = 0, 1 // what was stored in the meantime is due at once
	want.check(t, c, "after it was resumed")

	status.Store(http.StatusOK)
	c.Change("/buzzbip_webhook/inbox/retry", `{"id":["`+last+`"]}`)
	want.accepted, want.waiting, want.delivered = 1, 2, 1
	want.check(t, c, "after an event was accepted")
	c.Change("/buzzbip_webhook/inbox/discard", `{"state":["dead"]}`)
	want.dead = 0
	want.check(t, c, "after the dead event was discarded")

	if status, text := c.Load(strings.Replace(string(config), caddytest.Secret, "another-signing-secret", 1)); status != http.StatusOK {
		t.Fatal(text)
	}
	c.Change("/buzzbip_webhook/inbox/retry", `{"state":["waiting"]}`)
	want.unserved = 2
	want.check(t, c, "after no handler serves the events any more")
	c.Change("/buzzbip_webhook/inbox/discard", "{}")
	want.waiting, want.delivered = 0, 0
	want.check(t, c, "after all events were discarded")

	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	want.up = 0
	want.check(t, c, "after its file was removed")
	if n := c.Metric(`requests_total{event_type="message.received",result="stored"}`); n != 4 {
		t.Errorf("%v requests were stored, want 4", n)
	}
}

func TestInboxThatIsFullIsNotUpUntilItHasRoom(t *testing.T) {
	url, c := storingEndpoint(t, "retry 1h\nmax_size 20KiB", "")
	stores := func() bool {
		return caddytest.Post(t.Context(), url, caddytest.NewEvent()).Result == "stored"
	}
	up := func(want float64, when string) {
		t.Helper()
		if got := c.Metric("inbox_up"); got != want {
			t.Errorf("%s inbox_up is %v", when, got)
		}
	}
	for n := 0; stores(); n++ {
		up(1, "while there is room")
		if n > 1000 {
			t.Fatal("the inbox is never full")
		}
	}
	up(0, "when it is full")
	c.Reload()
	up(0, "after a reload")
	c.Change("/buzzbip_webhook/inbox/discard", "{}")
	up(1, "when it has room again")
	if !stores() {
		t.Error("the event was not stored")
	}
	up(1, "when it has stored an event")
}
