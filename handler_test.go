package buzzbip

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// explained shows the sender why a request was rejected.
const explained = `
	handle_errors {
		header X-Reason {http.buzzbip_webhook.reason}
		header X-Result {http.buzzbip_webhook.result}
		respond "{err.message}"
	}`

func expectRejection(t *testing.T, got response, reason webhook.Reason) {
	t.Helper()
	expect(t, got, reason.Status(), "")
	if got := got.header.Get("X-Reason"); got != string(reason) {
		t.Fatalf("rejected for %q, want %q", got, reason)
	}
	if got := got.header.Get("X-Result"); got != string(webhook.ResultRejected) {
		t.Fatalf("the result is %q, want %q", got, webhook.ResultRejected)
	}
	if got.body == "" {
		t.Fatal("no explanation")
	}
}

func TestRejections(t *testing.T) {
	post := func(body string, change func(*http.Request)) func(string) *http.Request {
		return func(url string) *http.Request {
			r := signed(url, body)
			if change != nil {
				change(r)
			}
			return r
		}
	}
	unknownLength := func(r *http.Request) {
		r.ContentLength = -1
		r.Body = io.NopCloser(io.MultiReader(r.Body)) // hides the length from net/http
	}
	event := caddytest.NewEvent()
	long := `{"id":"` + strings.Repeat("x", 2000) + `"}`
	tests := []struct {
		name    string
		request func(url string) *http.Request
		reason  webhook.Reason
	}{
		{"GET", post("", func(r *http.Request) { r.Method = http.MethodGet }), webhook.ReasonMethodNotAllowed},
		{"PUT", post(event, func(r *http.Request) { r.Method = http.MethodPut }), webhook.ReasonMethodNotAllowed},
		{"no signature", post(event, func(r *http.Request) { r.Header.Del(webhook.SignatureHeader) }), webhook.ReasonSignatureMissing},
		{"two signatures", post(event, func(r *http.Request) {
			r.Header.Add(webhook.SignatureHeader, r.Header.Get(webhook.SignatureHeader))
		}), webhook.ReasonSignatureMalformed},
		{"empty signature", post(event, func(r *http.Request) { r.Header.Set(webhook.SignatureHeader, "") }), webhook.ReasonSignatureMalformed},
		{"short signature", post(event, func(r *http.Request) { r.Header.Set(webhook.SignatureHeader, "abcd") }), webhook.ReasonSignatureMalformed},
		{"prefixed signature", post(event, func(r *http.Request) {
			r.Header.Set(webhook.SignatureHeader, "sha256="+r.Header.Get(webhook.SignatureHeader))
		}), webhook.ReasonSignatureMalformed},
		{"signature that is not hex", post(event, func(r *http.Request) {
			r.Header.Set(webhook.SignatureHeader, strings.Repeat("g", 64))
		}), webhook.ReasonSignatureMalformed},
		{"too large, declared", post(long, nil), webhook.ReasonBodyTooLarge},
		{"too large, not declared", post(long, unknownLength), webhook.ReasonBodyTooLarge},
		{"other secret", post(event, func(r *http.Request) {
			r.Header.Set(webhook.SignatureHeader, caddytest.SignWith("another secret", event))
		}), webhook.ReasonSignatureMismatch},
		{"other body", post(event, func(r *http.Request) {
			r.Header.Set(webhook.SignatureHeader, caddytest.Sign(caddytest.NewEvent()))
		}), webhook.ReasonSignatureMismatch},
		{"trailing newline", post(event+"\n", func(r *http.Request) {
			r.Header.Set(webhook.SignatureHeader, caddytest.Sign(event))
		}), webhook.ReasonSignatureMismatch},
		{"no body", post("", nil), webhook.ReasonEnvelopeInvalid},
		{"no JSON", post("id=evt_1", nil), webhook.ReasonEnvelopeInvalid},
		{"no JSON, length not declared", post("id=evt_1", unknownLength), webhook.ReasonEnvelopeInvalid},
		{"older than max_age", post(caddytest.Event{Type: "message.sent", Created: time.Now().Add(-61 * time.Minute)}.Body(), nil), webhook.ReasonEventStale},
		{"from the future", post(caddytest.Event{Type: "message.sent", Created: time.Now().Add(6 * time.Minute)}.Body(), nil), webhook.ReasonEventFromFuture},
	}
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b := newBackend(t, nil)
		s := start(t, proxied(b, "max_body_size 1000\nmax_age 1h")+explained)
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				got := send(client, test.request(s.url))
				expectRejection(t, got, test.reason)
				allow := got.header.Get("Allow")
				if want := test.reason == webhook.ReasonMethodNotAllowed; want != (allow == http.MethodPost) {
					t.Errorf("Allow is %q", allow)
				}
				if !strings.Contains(s.logs(), `"reason":"`+string(test.reason)+`"`) {
					t.Errorf("the log does not name the reason:\n%s", s.logs())
				}
			})
		}
		b.expectCount(t, 0)

		for _, body := range []string{
			caddytest.Event{Type: "message.sent", Created: time.Now().Add(-59 * time.Minute)}.Body(),
			caddytest.Event{Type: "message.sent", Created: time.Now().Add(4 * time.Minute)}.Body(),
		} {
			expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
			expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
		}
	})
}

func TestRejectedRequestsLeaveNoState(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, "max_age 1h"))
	client := newClient(t, "HTTP/1.1")
	id := caddytest.NewID()
	body := caddytest.Event{ID: id}.Body()
	forged := signed(s.url, body)
	forged.Header.Set(webhook.SignatureHeader, caddytest.SignWith("another secret", body))
	for _, r := range []*http.Request{
		forged,
		signed(s.url, caddytest.Event{ID: id, Created: time.Now().Add(-2 * time.Hour)}.Body()),
		signed(s.url, strings.TrimSuffix(body, "}")),
	} {
		if got := send(client, r); got.status < 400 {
			t.Fatalf("answered %d", got.status)
		}
	}
	expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
	b.expectCount(t, 1)
}

func TestSignatureMayBeUpperCase(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, ""))
	body := caddytest.NewEvent()
	r := signed(s.url, body)
	r.Header.Set(webhook.SignatureHeader, strings.ToUpper(r.Header.Get(webhook.SignatureHeader)))
	expect(t, send(newClient(t, "HTTP/1.1"), r), http.StatusOK, "")
}

// tap counts what is read of a body.
type tap struct {
	io.Reader
	read int
}

func (tp *tap) Read(p []byte) (int, error) {
	n, err := tp.Reader.Read(p)
	tp.read += n
	return n, err
}

func TestNoBodyIsReadOfARequestRejectedByItsHeaders(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}}}
	provision(t, h)
	for name, change := range map[string]func(*http.Request){
		"method":          func(r *http.Request) { r.Method = http.MethodGet },
		"signature":       func(r *http.Request) { r.Header.Del(webhook.SignatureHeader) },
		"declared length": func(r *http.Request) { r.ContentLength = webhook.DefaultMaxBodySize + 1 },
	} {
		t.Run(name, func(t *testing.T) {
			body := &tap{Reader: strings.NewReader(caddytest.NewEvent())}
			r := signed("https://localhost/", "")
			r.Body = io.NopCloser(body)
			change(r)
			if _, err := serve(h, r, nil); err == nil {
				t.Fatal("the request was not rejected")
			}
			if body.read > 0 {
				t.Errorf("%d bytes were read", body.read)
			}
		})
	}
}

func TestSameIDWithAnotherBodyIsAnAlarm(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		for _, policy := range []string{"", "on_conflict drop", "on_conflict deliver"} {
			t.Run(policy, func(t *testing.T) {
				b := newBackend(t, nil)
				s := start(t, proxied(b, policy))
				id := caddytest.NewID()
				body, other := caddytest.Event{ID: id, Type: "message.sent"}.Body(), caddytest.Event{ID: id, Type: "message.failed"}.Body()
				expect(t, send(client, signed(s.url, body)), http.StatusOK, "")

				got := send(client, signed(s.url, other))
				if policy == "on_conflict deliver" {
					expect(t, got, http.StatusOK, "")
					b.expectCount(t, 2)
					expect(t, send(client, signed(s.url, other)), http.StatusOK, webhook.ResultDuplicate)
				} else {
					expect(t, got, http.StatusOK, webhook.ResultConflict)
					b.expectCount(t, 1)
					expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
				}
				log := s.logs()
				if !strings.Contains(log, `"level":"error"`) || !strings.Contains(log, id) {
					t.Errorf("no alarm in the log: %s", log)
				}
			})
		}
	})
}

func TestConflictWithAnEventInFlight(t *testing.T) {
	release := make(chan struct{})
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) { <-release })
	s := start(t, proxied(b, ""))
	client := newClient(t, "HTTP/1.1")
	id := caddytest.NewID()
	first := sendAsync(client, signed(s.url, caddytest.Event{ID: id, Type: "message.sent"}.Body()))
	caddytest.Receive(t, b.arrived, "the first")
	second := sendAsync(client, signed(s.url, caddytest.Event{ID: id, Type: "message.failed"}.Body()))
	close(release)
	expect(t, caddytest.Receive(t, first, "the first answer"), http.StatusOK, "")
	expect(t, caddytest.Receive(t, second, "the second answer"), http.StatusOK, webhook.ResultConflict)
	b.expectCount(t, 1)
}

func TestDedupeOffVerifiesAndPassesOnEveryDuplicate(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, "dedupe off"))
	client := newClient(t, "HTTP/1.1")
	body := caddytest.NewEvent()
	for range 3 {
		expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
	}
	forged := signed(s.url, body)
	forged.Header.Set(webhook.SignatureHeader, strings.Repeat("0", 64))
	expect(t, send(client, forged), http.StatusUnauthorized, "")
	b.expectCount(t, 3)
}

func TestFullStoreRejectsNewEvents(t *testing.T) {
	b := newBackend(t, nil)
	scope := caddytest.NewID()
	s := start(t, proxied(b, "scope "+scope+`
		store memory {
			capacity 2
			when_full refuse
		}`)+explained)
	client := newClient(t, "HTTP/1.1")
	bodies := []string{caddytest.NewEvent(), caddytest.NewEvent(), caddytest.NewEvent()}
	expect(t, send(client, signed(s.url, bodies[0])), http.StatusOK, "")
	expect(t, send(client, signed(s.url, bodies[1])), http.StatusOK, "")
	got := send(client, signed(s.url, bodies[2]))
	expectRejection(t, got, webhook.ReasonStoreFull)
	if got.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	expect(t, send(client, signed(s.url, bodies[0])), http.StatusOK, webhook.ResultDuplicate)
	b.expectCount(t, 2)
}

func TestUnsignedPartsOfARequestDoNotBypassDeduplication(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, ""))
	client := newClient(t, "HTTP/1.1")
	body := caddytest.NewEvent()
	expect(t, send(client, signed(s.url, body)), http.StatusOK, "")

	for name, change := range map[string]func(*http.Request){
		"path":  func(r *http.Request) { r.URL.Path = "/elsewhere" },
		"query": func(r *http.Request) { r.URL.RawQuery = "again=1" },
		"host":  func(r *http.Request) { r.Host = "localhost" },
		"headers": func(r *http.Request) {
			r.Header.Set("Idempotency-Key", "other")
			r.Header.Set("Content-Type", "text/plain")
		},
		"case": func(r *http.Request) {
			r.Header.Set(webhook.SignatureHeader, strings.ToUpper(caddytest.Sign(body)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := signed(s.url, body)
			change(r)
			expect(t, send(client, r), http.StatusOK, webhook.ResultDuplicate)
		})
	}
	b.expectCount(t, 1)
}

func TestDuplicateThatWaitedLongEnoughIsAskedToRetry(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		release := make(chan struct{})
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) { <-release })
		s := start(t, proxied(b, "answer_within 20ms"))
		body := caddytest.NewEvent()
		first := sendAsync(client, signed(s.url, body))
		caddytest.Receive(t, b.arrived, "the first delivery")

		got := send(client, signed(s.url, body))
		expect(t, got, http.StatusServiceUnavailable, webhook.ResultInFlight)
		if got.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
		close(release)
		expect(t, caddytest.Receive(t, first, "the first answer"), http.StatusOK, "")
		b.expectCount(t, 1)
	})
}

func TestUnavailableStoreAsksTheSenderToRetry(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, "store broken claim")+explained)
	got := send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent()))
	expectRejection(t, got, webhook.ReasonStoreUnavailable)
	if got.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	if log := s.logs(); !strings.Contains(log, `"level":"error"`) || !strings.Contains(log, errBroken.Error()) {
		t.Errorf("no word of it in the log: %s", log)
	}
	b.expectCount(t, 0)
}

func TestAnswerWithinIsThatOfBothClaimsTogether(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, "store broken conflict\nanswer_within 1s\non_conflict deliver"))
	waits = nil
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, "")
	if len(waits) != 2 || waits[0] > time.Second || waits[1] > waits[0]-10*time.Millisecond {
		t.Errorf("the claims waited up to %v", waits)
	}
}

func TestRequestsToRetryAreNotInCaddysErrorLog(t *testing.T) {
	for name, routes := range map[string]string{"no error routes": "", "error routes": explained} {
		t.Run(name, func(t *testing.T) {
			b, release := hanging(t)
			s := start(t, proxied(b, "answer_within 1ms")+routes)
			client := newClient(t, "HTTP/2.0")
			body := caddytest.NewEvent()
			first := sendAsync(client, signed(s.url, body))
			caddytest.Receive(t, b.arrived, "the delivery")
			for range 3 {
				expect(t, send(client, signed(s.url, body)), http.StatusServiceUnavailable, webhook.ResultInFlight)
			}
			if log := s.logs(); strings.Contains(log, "http.log.error") || !strings.Contains(log, `"reason":"in_flight"`) {
				t.Errorf("the log is %s", log)
			}
			release <- http.StatusOK
			expect(t, caddytest.Receive(t, first, "the answer"), http.StatusOK, "")
		})
	}
}
