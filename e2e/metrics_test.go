package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"

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
