package buzzbip

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// raw is the address of a backend that answers each request with some bytes and
// breaks the connection.
func raw(t *testing.T, answer string) string {
	return newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(conn, answer)
		conn.Close()
	}).address()
}

func answering(t *testing.T, status int) string {
	return newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
	}).address()
}

// silent is the address of a backend that does not answer.
func silent(t *testing.T) string {
	return newBackend(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }).address()
}

// down is an address that nobody listens at.
func down(t *testing.T) string { return caddytest.FreeAddress(t) }

func overTLS(t *testing.T) string {
	b := httptest.NewUnstartedServer(nil)
	b.Config.ErrorLog = log.New(io.Discard, "", 0)
	b.StartTLS()
	t.Cleanup(b.Close)
	return b.Listener.Addr().String()
}

func TestFailedDeliveriesAreReportedWithTheirCause(t *testing.T) {
	proxy := func(upstream string) string { return "reverse_proxy " + upstream }
	for _, test := range []struct {
		name     string
		options  string
		handlers string // after buzzbip_webhook
		answer   int    // 0: the connection breaks
		cause    webhook.Cause
		status   int
	}{
		{"redirect", "", proxy(answering(t, 308)), 308, webhook.CauseStatus3xx, 308},
		{"client error", "", proxy(answering(t, 404)), 404, webhook.CauseStatus4xx, 404},
		{"server error", "", proxy(answering(t, 500)), 500, webhook.CauseStatus5xx, 500},
		{"server error that breaks off", "", proxy(raw(t, "HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\nx")), 0, webhook.CauseStatus5xx, 500},
		{"status of no class", "", "respond 600", 600, webhook.CauseStatusOther, 600},
		{"error of a handler", "", "error 503", 503, webhook.CauseStatus5xx, 503},
		{"error of a handler that looks like a proxy's", "", "error 502", 502, webhook.CauseStatus5xx, 502},
		{"down", "", proxy(down(t)), 502, webhook.CauseUnreachable, 0},
		{"down, and not healthy for a retry", "", "reverse_proxy " + down(t) + " {\nfail_duration 1m\nlb_retries 1\n}", 502, webhook.CauseUnreachable, 0},
		{"down, with fastcgi", "", "reverse_proxy " + down(t) + " {\ntransport fastcgi\n}", 502, webhook.CauseUnreachable, 0},
		{"upstream of an empty placeholder", "", "reverse_proxy {http.vars.nothing}", 502, webhook.CauseUnreachable, 0},
		{"certificate that is not trusted", "", proxy("https://" + overTLS(t)), 502, webhook.CauseUnreachable, 0},
		{"HTTP where HTTPS is expected", "", proxy("https://" + answering(t, 200)), 502, webhook.CauseUnreachable, 0},
		{"connection that breaks", "", proxy(raw(t, "")), 502, webhook.CauseConnectionBroken, 0},
		{"connection that breaks in the headers", "", proxy(raw(t, "HTTP/1.1 200 OK\r\nX-")), 502, webhook.CauseConnectionBroken, 0},
		{"answer that is not HTTP", "", proxy(raw(t, "SSH-2.0-OpenSSH\r\n")), 502, webhook.CauseConnectionBroken, 0},
		{"broken connection, with fastcgi", "", "reverse_proxy " + raw(t, "x") + " {\ntransport fastcgi\n}", 502, webhook.CauseConnectionBroken, 0},
		{"delivery_timeout", "delivery_timeout 50ms", proxy(silent(t)), 504, webhook.CauseTimeout, 0},
		{"delivery_timeout of any handler", "delivery_timeout 50ms", "odd wait", 504, webhook.CauseTimeout, 0},
		{"delivery_timeout and another error", "delivery_timeout 50ms", "odd wait_and_fail", 504, webhook.CauseTimeout, 0},
		{"timeout of the transport", "", "reverse_proxy " + silent(t) + " {\ntransport http {\nresponse_header_timeout 50ms\n}\n}", 504, webhook.CauseTimeout, 0},
		{"timeout of a read", "", "reverse_proxy " + silent(t) + " {\ntransport http {\nread_timeout 50ms\n}\n}", 504, webhook.CauseTimeout, 0},
		{"route that leads nowhere", "", "", 502, webhook.CauseUnhandled, 0},
		{"panic", "", "odd crash", 0, webhook.CausePanic, 0},
		{"abort", "", "abort", 0, webhook.CauseCanceled, 0},
		{"canceled", "", "odd status_499", 499, webhook.CauseCanceled, 499},
	} {
		for _, errorRoutes := range []string{"", "handle_errors {\nrespond sorry 418\n}"} {
			name := test.name
			if errorRoutes != "" {
				name += ", with handle_errors"
			}
			t.Run(name, func(t *testing.T) {
				before := failuresTotal(t)
				s := start(t, fmt.Sprintf("log {\noutput test\n}\nroute {\nbuzzbip_webhook %s {\n%s\n}\n%s\n}\n%s", caddytest.Secret, test.options, test.handlers, errorRoutes))
				id := caddytest.NewID()
				client := newClient(t, "HTTP/1.1")
				client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
				got := send(client, signed(s.url, caddytest.Event{ID: id}.Body()))
				if answer := test.answer; answer == 0 != (got.err != nil) || answer != 0 && got.status != answer && (errorRoutes == "" || got.status != 418) {
					t.Errorf("answered %d, %v", got.status, got.err)
				}
				s.expectFailure(before, id, test.cause, test.status)
			})
		}
	}
}

func TestFailedDeliveryIsReportedThoughItsSenderDisconnected(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		before := failuresTotal(t)
		release := make(chan struct{})
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			<-release
			w.WriteHeader(http.StatusInternalServerError)
		})
		s := start(t, "log {\noutput test\n}\n"+watched(b, ""))
		id := caddytest.NewID()
		disconnect(t, client, signed(s.url, caddytest.Event{ID: id}.Body()), b)
		close(release)
		s.expectFailure(before, id, webhook.CauseStatus5xx, http.StatusInternalServerError)
	})
}

func TestProxyWithoutAHealthyUpstreamIsUnreachable(t *testing.T) {
	upstream := down(t)
	proxy := "reverse_proxy " + upstream + " {\nfail_duration 1m\n}\n"
	before := failuresTotal(t)
	s := start(t, fmt.Sprintf("log {\noutput test\n}\nhandle /plain {\n%s}\nhandle {\nbuzzbip_webhook %s\n%[1]s}", proxy, caddytest.Secret))
	client, id := newClient(t, "HTTP/1.1"), caddytest.NewID()
	plain := signed(strings.Replace(s.url, "/webhooks/buzzbip", "/plain", 1), "")
	expect(t, send(client, plain), http.StatusBadGateway, "")
	expect(t, send(client, signed(s.url, caddytest.Event{ID: id}.Body())), http.StatusServiceUnavailable, "")
	s.expectFailure(before, id, webhook.CauseUnreachable, 0)
}

// One buzzbip_webhook after the other is still one failed delivery.
func TestFailedDeliveryIsLoggedOnceForTwoHandlers(t *testing.T) {
	s := start(t, fmt.Sprintf("route {\nbuzzbip_webhook %s\nbuzzbip_webhook %[1]s {\nscope another\n}\nreverse_proxy %s\n}", caddytest.Secret, answering(t, 500)))
	id := caddytest.NewID()
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.Event{ID: id}.Body())), http.StatusInternalServerError, "")
	if logs := s.logs(); strings.Count(logs, `"msg":"delivery failed"`) != 1 {
		t.Errorf("the log has %s", logs)
	}
}

// failuresTotal returns the metric by cause.
func failuresTotal(t testing.TB) map[string]float64 {
	t.Helper()
	return gather(t, metrics.failures)
}

// gather returns the values of a counter or a gauge, by the values of their labels.
func gather(t testing.TB, c prometheus.Collector) map[string]float64 {
	t.Helper()
	values := make(map[string]float64)
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, label := range m.GetLabel() {
				labels = append(labels, label.GetValue())
			}
			values[strings.Join(labels, " ")] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return values
}

// expectFailure fails the test unless the failure of one delivery shows in the
// log, once, and in the metric, the access log, the feed and lookups.
func (s *site) expectFailure(before map[string]float64, id string, cause webhook.Cause, status int) {
	t := s.t
	t.Helper()
	var warnings, access []map[string]any
	var entry *feedEntry
	for end := time.Now().Add(caddytest.Patience); (len(access) == 0 || entry == nil) && time.Now().Before(end); time.Sleep(time.Millisecond) {
		warnings, access = nil, nil
		for line := range strings.Lines(s.logs()) {
			var fields map[string]any
			if err := json.Unmarshal([]byte(line), &fields); err != nil {
				continue // a panic is no JSON
			}
			switch {
			case fields["event_id"] == id:
				warnings = append(warnings, fields)
			case fields["buzzbip_event_id"] == id:
				access = append(access, fields)
			}
		}
		entries, _ := latest.since(0)
		for _, e := range entries {
			if e.ID == id {
				entry = &e
			}
		}
	}
	wantStatus := any(float64(status))
	if status == 0 {
		wantStatus = nil
	}
	if len(warnings) != 1 {
		t.Fatalf("the log has %d entries about the event: %v", len(warnings), warnings)
	}
	if w := warnings[0]; w["level"] != "warn" || w["msg"] != "delivery failed" || w["cause"] != string(cause) || w["status"] != wantStatus ||
		w["event_type"] != "message.received" || w["duration"] == nil || w["path"] != "/webhooks/buzzbip" {
		t.Errorf("the log has %v, want %s %v", w, cause, wantStatus)
	}
	if len(access) != 1 || access[0]["buzzbip_cause"] != string(cause) || access[0]["buzzbip_status"] != wantStatus || access[0]["buzzbip_result"] != "failed" {
		t.Errorf("the access log has %v, want %s %v", access, cause, wantStatus)
	}
	wantError, _ := warnings[0]["error"].(string)
	wantError = localAddress.ReplaceAllString(wantError, "")
	if wantError == "" && entry != nil && status != 0 {
		wantError = entry.Error
		if text := fmt.Sprintf("%d %s", status, http.StatusText(status)); !strings.HasPrefix(wantError, strings.TrimSpace(text)+" from ") && wantError != "" {
			t.Errorf("the feed has the error %q", wantError)
		}
	}
	if got, _ := access[0]["buzzbip_error"].(string); got != wantError {
		t.Errorf("the access log has the error %q, want %q", got, wantError)
	}
	if entry != nil && entry.Error != wantError {
		t.Errorf("the feed has the error %q, want %q", entry.Error, wantError)
	}
	if entry == nil || entry.Cause != cause || entry.Status != status || entry.Result != webhook.ResultFailed {
		t.Errorf("the feed has %+v, want %s %d", entry, cause, status)
	}
	after := failuresTotal(t)
	for name, n := range after {
		if want := map[bool]float64{true: 1}[name == string(cause)]; n-before[name] != want {
			t.Errorf("%s is counted %v times, want %v", name, n-before[name], want)
		}
	}
	key := failureKey{"memory", running().backings()[0].scopes[0].id, dedupe.KeyOf(id)}
	if f := failures.find(key); f == nil || f.Cause != cause || f.Status != status || time.Since(f.Time) > caddytest.Patience {
		t.Errorf("the failure that is remembered is %+v, want %s %d", f, cause, status)
	}
}

// A flood of one cause must not hide the first failure of another.
func TestFailuresAreSampledByCause(t *testing.T) {
	s := start(t, fmt.Sprintf(`
		buzzbip_webhook %s
		@down header X-Mode down
		reverse_proxy @down %s
		reverse_proxy %s`, caddytest.Secret, down(t), answering(t, 500)))
	client := newClient(t, "HTTP/1.1")
	for range 50 {
		send(client, signed(s.url, caddytest.NewEvent()))
	}
	r := signed(s.url, caddytest.NewEvent())
	r.Header.Set("X-Mode", "down")
	expect(t, send(client, r), http.StatusBadGateway, "")
	count := func(cause webhook.Cause) int { return strings.Count(s.logs(), fmt.Sprintf(`"cause":%q`, cause)) }
	if count(webhook.CauseUnreachable) != 1 || count(webhook.CauseStatus5xx) == 0 || count(webhook.CauseStatus5xx) > 25 {
		t.Errorf("the log has %s", s.logs())
	}
	for end := time.Now().Add(caddytest.Patience); !strings.Contains(s.logs(), `"suppressed":`) && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		send(client, signed(s.url, caddytest.NewEvent()))
	}
	if logs := s.logs(); !strings.Contains(logs, `"suppressed":`) {
		t.Errorf("the log does not say how many entries were suppressed: %s", logs)
	}
}

func TestFailureIsForgottenOnSuccessAndWithTime(t *testing.T) {
	var l failureLog
	key := func(i int) failureKey { return failureKey{"memory", "scope", dedupe.KeyOf(fmt.Sprint(i))} }
	now := adminapi.Failure{Time: time.Now(), Cause: webhook.CauseTimeout}
	l.add(key(-1), now, -time.Second)
	if f := l.find(key(-1)); f != nil {
		t.Errorf("what a success would be forgotten by is remembered: %v", f)
	}
	for range 2 * maxFailures { // again and again: it takes one place at most
		l.add(key(0), now, time.Hour)
	}
	if f := l.find(key(0)); f == nil || len(l.last) != 1 {
		t.Errorf("the failure is %v, of %d", f, len(l.last))
	}
	if f := l.find(failureKey{"memory", "other", dedupe.KeyOf("0")}); f != nil {
		t.Errorf("another scope has the failure %v", f)
	}
	l.remove(key(0))
	if f := l.find(key(0)); f != nil {
		t.Errorf("after a success the failure is %v", f)
	}
	for i := range 3 * maxFailures {
		l.add(key(i), now, time.Hour)
	}
	if first := 2 * maxFailures; len(l.last) != maxFailures || l.find(key(first-1)) != nil || l.find(key(first)) == nil {
		t.Errorf("%d failures are remembered", len(l.last))
	}
}
