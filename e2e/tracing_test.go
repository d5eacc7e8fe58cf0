package e2e

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// spans collects what is exported to it over OTLP.
type spans struct {
	*httptest.Server
	mu  sync.Mutex
	all []*trace.Span
	raw bytes.Buffer // all that arrived
}

func collectSpans(t *testing.T) *spans {
	s := new(spans)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("an export: %v", err)
			return
		}
		request := new(collector.ExportTraceServiceRequest)
		if err := proto.Unmarshal(body, request); err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("an export to %s: %v", r.URL.Path, err)
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.raw.Write(body)
		for _, resource := range request.GetResourceSpans() {
			for _, scope := range resource.GetScopeSpans() {
				s.all = append(s.all, scope.GetSpans()...)
			}
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// next waits until there are as many spans as requests and returns the last.
func (s *spans) next(t *testing.T, requests int) *trace.Span {
	t.Helper()
	var last *trace.Span
	caddytest.WaitFor(t, "a span", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.all) > requests {
			t.Fatalf("%d requests made %d spans", requests, len(s.all))
		}
		if len(s.all) == requests {
			last = s.all[requests-1]
		}
		return last != nil
	})
	return last
}

// attributes returns those that the example adds, by name, and the HTTP status.
func attributes(span *trace.Span) (ours map[string]string, status int64) {
	ours = make(map[string]string)
	for _, a := range span.GetAttributes() {
		if name, ok := strings.CutPrefix(a.GetKey(), "buzzbip."); ok {
			ours[name] = a.GetValue().GetStringValue()
		}
		if a.GetKey() == "http.response.status_code" {
			status = a.GetValue().GetIntValue()
		}
	}
	return ours, status
}

func TestExampleTracing(t *testing.T) {
	const (
		person   = "+49 151 00000000"
		started  = "0af7651916cd43dd8448eb211c80319c"
		sampled  = "00-" + started + "-b7ad6b7169203331-01"
		unwanted = "00-" + started + "-b7ad6b7169203331-00"
	)
	parents := make(chan string, 10)
	b := caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		parents <- r.Header.Get("Traceparent")
		if r.Header.Get("X-Mode") == "fail" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	s := collectSpans(t)
	address := caddytest.FreeAddress(t)
	config := example(t, "tracing/Caddyfile", "hooks.example.com {", "http://"+address+" {", "127.0.0.1:9000", b.Address(), "http://localhost:4318", s.URL)
	env := []string{"BUZZBIP_SECRET=" + caddytest.Secret, "OTEL_BSP_SCHEDULE_DELAY=10"}
	// as its comments say
	for _, line := range regexp.MustCompile(`(?m)^#\t(OTEL_\w+=.+)$`).FindAllStringSubmatch(config, -1) {
		env = append(env, line[1])
	}
	if len(env) != 6 {
		t.Fatalf("the environment is %q", env)
	}
	c := caddytest.Start(t, "", "\tdefault_bind 127.0.0.1", config, env...)
	tr := &tour{t: t, Caddy: c, address: address}

	event := func() (id, body string) {
		body = caddytest.Event{Data: fmt.Sprintf(`{"contact":{"phone":%q}}`, person)}.Body()
		return strings.Split(body, `"`)[3], body
	}
	id, body := event()
	failedID, failed := event()
	unreachableID, unreachable := event()
	_, forged := event()
	forgery := strings.Repeat("0123456789abcdef", 4)

	for i, step := range []struct {
		name, body, signature string
		header                [2]string
		before                func()
		status                int // that the sender gets
		spanStatus            int64
		broken                bool // the span counts as an error
		delivered             bool
		want                  map[string]string
	}{
		{
			name: "accepted", body: body, status: 200, spanStatus: 200, delivered: true,
			want: map[string]string{"result": "delivered", "reason": "", "event.id": id, "event.type": "message.received", "secret": "main"},
		},
		{
			name: "duplicate", body: body, header: [2]string{"Traceparent", sampled}, status: 200, spanStatus: 200,
			want: map[string]string{"result": "duplicate", "reason": "", "event.id": id, "event.type": "message.received", "secret": "main"},
		},
		{
			name: "forged", body: forged, signature: forgery, header: [2]string{"Traceparent", unwanted}, status: 401, spanStatus: 200,
			want: map[string]string{"result": "rejected", "reason": "signature_mismatch", "event.id": "", "event.type": "", "secret": ""},
		},
		{
			name: "failed", body: failed, header: [2]string{"X-Mode", "fail"}, status: 500, spanStatus: 500, broken: true, delivered: true,
			want: map[string]string{"result": "failed", "reason": "", "event.id": failedID, "event.type": "message.received", "secret": "main"},
		},
		{
			name: "unreachable", body: unreachable, before: b.Close, status: 502, spanStatus: 200,
			want: map[string]string{"result": "failed", "reason": "", "event.id": unreachableID, "event.type": "message.received", "secret": "main"},
		},
	} {
		if step.before != nil {
			step.before()
		}
		signature := step.signature
		if signature == "" {
			signature = caddytest.Sign(step.body)
		}
		r := tr.request(http.MethodPost, "/webhooks/buzzbip", signature, step.body)
		if step.header[0] != "" {
			r.Header.Set(step.header[0], step.header[1])
		}
		tr.expect(r, step.status)

		span := s.next(t, i+1)
		got, status := attributes(span)
		if fmt.Sprint(got) != fmt.Sprint(step.want) {
			t.Errorf("%s: the attributes are %v, want %v", step.name, got, step.want)
		}
		// If spans record errors some day, the comment in the example must change.
		if failed := span.GetStatus().GetCode() == trace.Status_STATUS_CODE_ERROR; status != step.spanStatus || failed != step.broken {
			t.Errorf("%s: the span has status %d and is an error: %t, want %d, %t", step.name, status, failed, step.spanStatus, step.broken)
		}
		if span.GetName() != "buzzbip_webhook" {
			t.Errorf("%s: the span is %q", step.name, span.GetName())
		}
		traceID := hex.EncodeToString(span.GetTraceId())
		if goesOn := step.header[0] == "Traceparent"; goesOn != (traceID == started) {
			t.Errorf("%s: the span is of trace %s", step.name, traceID)
		}
		if step.delivered {
			if parent, want := <-parents, fmt.Sprintf("00-%s-%x-01", traceID, span.GetSpanId()); parent != want {
				t.Errorf("%s: the backend got traceparent %q, want %q", step.name, parent, want)
			}
		}
		if len(parents) > 0 {
			t.Errorf("%s: it went to the backend", step.name)
		}
	}

	c.Stop() // and with it the last exports
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, hidden := range map[string]string{
		"a secret":                         caddytest.Secret,
		"a signature":                      caddytest.Sign(body),
		"the signature of a forgery":       forgery,
		"what it should have been":         caddytest.Sign(forged),
		"what is nobody's business":        person,
		"the signature of what had failed": caddytest.Sign(failed),
	} {
		if bytes.Contains(s.raw.Bytes(), []byte(hidden)) {
			t.Errorf("the spans show %s", name)
		}
	}
	if !bytes.Contains(s.raw.Bytes(), []byte("buzzbip-webhooks")) {
		t.Error("the spans are of no service")
	}
}
