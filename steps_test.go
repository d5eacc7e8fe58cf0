package buzzbip

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// explained makes the webhook.Reasons of refusals visible to the sender.
const explained = `
	handle_errors {
		header X-Reason {http.buzzbip_webhook.reason}
		header X-Refusal {http.buzzbip_webhook.result}
		respond "{err.message}"
	}`

func expectRefusal(t *testing.T, got response, reason webhook.Reason) {
	t.Helper()
	expect(t, got, reason.Status(), "")
	if got := got.header.Get("X-Reason"); got != string(reason) {
		t.Fatalf("refused for %q, want %q", got, reason)
	}
	if got := got.header.Get("X-Refusal"); got != string(webhook.ResultRejected) {
		t.Fatalf("the result is %q, want %q", got, webhook.ResultRejected)
	}
	if got.body == "" {
		t.Fatal("no explanation")
	}
}

// envelope returns the body of an event with createdAt at an offset from now.
func envelope(id, typ string, offset time.Duration) string {
	return fmt.Sprintf(`{"id":%q,"type":%q,"createdAt":%q,"data":{}}`, id, typ, time.Now().Add(offset).UTC().Format(time.RFC3339Nano))
}

func TestRefusals(t *testing.T) {
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
	long := `{"id":"` + strings.Repeat("x", 2000) + `"}`
	tests := []struct {
		name    string
		request func(url string) *http.Request
		reason  webhook.Reason
	}{
		{"GET", post("", func(r *http.Request) { r.Method = http.MethodGet }), webhook.ReasonMethodNotAllowed},
		{"PUT", post(eventBody("a"), func(r *http.Request) { r.Method = http.MethodPut }), webhook.ReasonMethodNotAllowed},
		{"no signature", post(eventBody("a"), func(r *http.Request) { r.Header.Del(webhook.SignatureHeader) }), webhook.ReasonSignatureMissing},
		{"two signatures", post(eventBody("a"), func(r *http.Request) {
			r.Header.Add(webhook.SignatureHeader, r.Header.Get(webhook.SignatureHeader))
		}), webhook.ReasonSignatureMalformed},
		{"empty signature", post(eventBody("a"), func(r *http.Request) { r.Header.Set(webhook.SignatureHeader, "") }), webhook.ReasonSignatureMalformed},
		{"short signature", post(eventBody("a"), func(r *http.Request) { r.Header.Set(webhook.SignatureHeader, "abcd") }), webhook.ReasonSignatureMalformed},
		{"prefixed signature", post(eventBody("a"), func(r *http.Request) {
			r.Header.Set(webhook.SignatureHeader, "sha256="+r.Header.Get(webhook.SignatureHeader))
		}), webhook.ReasonSignatureMalformed},
		{"signature that is not hex", post(eventBody("a"), func(r *http.Request) {
			r.Header.Set(webhook.SignatureHeader, strings.Repeat("g", 64))
		}), webhook.ReasonSignatureMalformed},
		{"too large, declared", post(long, nil), webhook.ReasonBodyTooLarge},
		{"too large, not declared", post(long, unknownLength), webhook.ReasonBodyTooLarge},
		{"other secret", post(eventBody("a"), func(r *http.Request) {
			r.Header.Set(webhook.SignatureHeader, signature("another secret", eventBody("a")))
		}), webhook.ReasonSignatureMismatch},
		{"other body", post(eventBody("a"), func(r *http.Request) {
			r.Header.Set(webhook.SignatureHeader, signature(testSecret, eventBody("b")))
		}), webhook.ReasonSignatureMismatch},
		{"trailing newline", post(eventBody("a")+"\n", func(r *http.Request) {
			r.Header.Set(webhook.SignatureHeader, signature(testSecret, eventBody("a")))
		}), webhook.ReasonSignatureMismatch},
		{"no body", post("", nil), webhook.ReasonEnvelopeInvalid},
		{"no JSON", post("id=evt_1", nil), webhook.ReasonEnvelopeInvalid},
		{"no JSON, length not declared", post("id=evt_1", unknownLength), webhook.ReasonEnvelopeInvalid},
		{"older than max_age", post(envelope("a", "message.sent", -61*time.Minute), nil), webhook.ReasonEventStale},
		{"from the future", post(envelope("a", "message.sent", 6*time.Minute), nil), webhook.ReasonEventFromFuture},
	}
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b := newBackend(t, nil)
		s := start(t, proxied(b, "max_body_size 1000\nmax_age 1h")+explained)
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				got := send(client, test.request(s.url))
				expectRefusal(t, got, test.reason)
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
			envelope(newID(), "message.sent", -59*time.Minute),
			envelope(newID(), "message.sent", 4*time.Minute),
		} {
			expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
			expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
		}
	})
}

func TestRefusedRequestsLeaveNoState(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, "max_age 1h"))
	client := newClient(t, "HTTP/1.1")
	id := newID()
	body := eventBody(id)
	forged := signed(s.url, body)
	forged.Header.Set(webhook.SignatureHeader, signature("another secret", body))
	for _, r := range []*http.Request{
		forged,
		signed(s.url, envelope(id, "message.received", -2*time.Hour)),
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
	body := eventBody(newID())
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

func TestNothingIsReadOfARequestThatItsHeadersRefuse(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: testSecret}}}
	provision(t, h)
	for name, change := range map[string]func(*http.Request){
		"method":          func(r *http.Request) { r.Method = http.MethodGet },
		"signature":       func(r *http.Request) { r.Header.Del(webhook.SignatureHeader) },
		"declared length": func(r *http.Request) { r.ContentLength = webhook.DefaultMaxBodySize + 1 },
	} {
		t.Run(name, func(t *testing.T) {
			body := &tap{Reader: strings.NewReader(eventBody("a"))}
			r := signed("https://localhost/", "")
			r.Body = io.NopCloser(body)
			change(r)
			if _, err := serve(h, r, nil); err == nil {
				t.Fatal("the request was not refused")
			}
			if body.read > 0 {
				t.Errorf("%d bytes were read", body.read)
			}
		})
	}
}

func TestMemoryGrowsWithWhatArrivesNotWithWhatIsDeclared(t *testing.T) {
	for _, declared := range []int64{1 << 30, -1} {
		body := &tap{Reader: io.LimitReader(zeros{}, 3000)}
		buf, err := readAll(body, declared, 1<<30)
		if err != nil || len(buf) != 3000 {
			t.Fatalf("read %d bytes, %v", len(buf), err)
		}
		if cap(buf) > 4*3000 {
			t.Errorf("declared %d, arrived %d, allocated %d", declared, len(buf), cap(buf))
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// stalled returns a body of which no more than a part ever comes.
func stalled(t *testing.T, part string) io.ReadCloser {
	body, sender := io.Pipe()
	t.Cleanup(func() { sender.Close() })
	go io.WriteString(sender, part)
	return body
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func TestBodyThatArrivesTooSlowlyIsRefused(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		for _, declared := range []bool{true, false} {
			t.Run(fmt.Sprintf("declared=%v", declared), func(t *testing.T) {
				b := newBackend(t, nil)
				s := start(t, proxied(b, "read_timeout 50ms")+explained)
				body := eventBody(newID())
				r := signed(s.url, body)
				r.Body = stalled(t, body[:20])
				if !declared {
					r.ContentLength = -1
				}
				expectRefusal(t, send(client, r), webhook.ReasonBodyTimeout)
				b.expectCount(t, 0)
			})
		}
	})
}

// The deadline for the body must not cut off what comes after it, also where
// Caddy sets none of its own.
func TestReadTimeoutDoesNotLimitTheDelivery(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		for _, server := range []string{"", `"read_idle_timeout":-1,`} {
			const readTimeout = 100 * time.Millisecond
			b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
				<-time.After(2 * readTimeout)
			})
			s := start(t, "respond gone 404")
			s.server = server
			s.reload(watched(b, "read_timeout "+readTimeout.String()))
			for range 2 { // also on a connection that is used again
				expect(t, send(client, signed(s.url, eventBody(newID()))), http.StatusOK, "")
			}
			if len(senderGone) > 0 {
				t.Error("the end of the deadline was taken for that of the connection")
			}
		}
	})
}

func TestTighterDeadlineOfTheServerHolds(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		for _, server := range []string{"", `"read_idle_timeout":-1,`} {
			s := start(t, "respond gone 404")
			s.server = server + `"read_timeout":50000000,`
			s.reload("buzzbip_webhook " + testSecret + " {\n read_timeout " + (2 * patience).String() + "\n}" + explained)
			body := eventBody(newID())
			var got response
			// a machine that is busy may not even have read the headers in time
			waitFor(t, "an answer", func() bool {
				r := signed(s.url, body)
				r.Body = stalled(t, body[:20])
				// the transport waits for the body even if the connection ends
				end := time.AfterFunc(time.Second, func() { r.Body.Close() })
				defer end.Stop()
				got = send(client, r)
				return got.err == nil
			})
			expectRefusal(t, got, webhook.ReasonBodyTimeout)
		}
	})
}

func TestBodyThatIsCutOffIsRefused(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, ""))
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			client := newClient(t, protocol)
			body := eventBody(newID())
			ctx, cancel := context.WithCancel(t.Context())
			r := signed(s.url, body).WithContext(ctx)
			r.Body = io.NopCloser(io.MultiReader(strings.NewReader(body[:20]), readFunc(func([]byte) (int, error) {
				cancel()
				return 0, io.ErrUnexpectedEOF
			})))
			if got := send(client, r); got.err == nil {
				t.Fatalf("answered %d", got.status)
			}
			waitFor(t, "the refusal in the log", func() bool {
				return strings.Contains(s.logs(), `"reason":"body_incomplete"`)
			})
			expect(t, send(newClient(t, protocol), signed(s.url, body)), http.StatusOK, "")
		})
	}
	b.expectCount(t, len(protocols))
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestTypesThatAreNotAskedForAreAcknowledgedAndDropped(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b := newBackend(t, nil)
		s := start(t, proxied(b, "events contact.* message.received"))
		for typ, want := range map[string]webhook.Result{
			"message.received":  "",
			"contact.created":   "",
			"contact.merged":    "", // not documented, but of the prefix
			"message.sent":      webhook.ResultIgnored,
			"contacts.created":  webhook.ResultIgnored,
			"contact":           webhook.ResultIgnored,
			"message.receivedx": webhook.ResultIgnored,
		} {
			expect(t, send(client, signed(s.url, envelope(newID(), typ, 0))), http.StatusOK, want)
		}
		b.expectCount(t, 3)

		// what was ignored is not remembered
		id := newID()
		expect(t, send(client, signed(s.url, envelope(id, "message.sent", 0))), http.StatusOK, webhook.ResultIgnored)
		s.reload(proxied(b, ""))
		expect(t, send(client, signed(s.url, envelope(id, "message.sent", 0))), http.StatusOK, "")
	})
}

func TestUnknownTypesPassByDefault(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, ""))
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, envelope(newID(), "cart.abandoned", 0))), http.StatusOK, "")
	b.expectCount(t, 1)
}

func TestSameIDWithAnotherBodyIsAnAlarm(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		for _, policy := range []string{"", "on_conflict drop", "on_conflict deliver"} {
			t.Run(policy, func(t *testing.T) {
				b := newBackend(t, nil)
				s := start(t, proxied(b, policy))
				id := newID()
				body, other := envelope(id, "message.sent", 0), envelope(id, "message.failed", 0)
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

func TestConflictsAmongConcurrentCopies(t *testing.T) {
	release := make(chan struct{})
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) { <-release })
	s := start(t, proxied(b, ""))
	client := newClient(t, "HTTP/1.1")
	id := newID()
	first := sendAsync(client, signed(s.url, envelope(id, "message.sent", 0)))
	await(t, b.arrived, "the first")
	second := sendAsync(client, signed(s.url, envelope(id, "message.failed", 0)))
	close(release)
	expect(t, await(t, first, "the first answer"), http.StatusOK, "")
	expect(t, await(t, second, "the second answer"), http.StatusOK, webhook.ResultConflict)
	b.expectCount(t, 1)
}

func TestDedupeOffVerifiesAndPassesOnEveryCopy(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, "dedupe off"))
	client := newClient(t, "HTTP/1.1")
	body := eventBody(newID())
	for range 3 {
		expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
	}
	forged := signed(s.url, body)
	forged.Header.Set(webhook.SignatureHeader, strings.Repeat("0", 64))
	expect(t, send(client, forged), http.StatusUnauthorized, "")
	b.expectCount(t, 3)
}

func TestFullStoreThatRefuses(t *testing.T) {
	b := newBackend(t, nil)
	scope := newID()
	s := start(t, proxied(b, "scope "+scope+`
		store memory {
			capacity 2
			when_full refuse
		}`)+explained)
	client := newClient(t, "HTTP/1.1")
	bodies := []string{eventBody(newID()), eventBody(newID()), eventBody(newID())}
	expect(t, send(client, signed(s.url, bodies[0])), http.StatusOK, "")
	expect(t, send(client, signed(s.url, bodies[1])), http.StatusOK, "")
	got := send(client, signed(s.url, bodies[2]))
	expectRefusal(t, got, webhook.ReasonStoreFull)
	if got.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	expect(t, send(client, signed(s.url, bodies[0])), http.StatusOK, webhook.ResultDuplicate)
	b.expectCount(t, 2)
}

func TestBackendGetsTheSameBytesWithALength(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b := newBackend(t, nil)
		s := start(t, proxied(b, ""))
		for name, declared := range map[string]bool{"declared": true, "chunked": false} {
			for _, size := range []int{10, firstRead - 200, firstRead, 5 * firstRead, 500 << 10} {
				t.Run(fmt.Sprintf("%s/%d", name, size), func(t *testing.T) {
					// spaces and escapes that a parser would not keep
					body := fmt.Sprintf(" {\"id\" : %q,\n\t\"type\":\"message.\\u0072eceived\", \"createdAt\":%q, \"data\":{\"a\":1.0, \"a\":\"%s\"} } \n",
						newID(), time.Now().UTC().Format(time.RFC3339), strings.Repeat("x", size))
					r := signed(s.url, body)
					r.Header.Set("Expect", "100-continue")
					if !declared {
						r.ContentLength = -1
						r.Body = io.NopCloser(io.MultiReader(r.Body))
						r.Trailer = http.Header{"X-Unsigned": {"trailer"}}
					}
					expect(t, send(client, r), http.StatusOK, "")
					got := await(t, b.arrived, "the delivery")
					if got.body != body {
						t.Errorf("the backend got other bytes")
					}
					if got.ContentLength != int64(len(body)) || len(got.TransferEncoding) > 0 {
						t.Errorf("length %d, transfer encoding %v; want %d", got.ContentLength, got.TransferEncoding, len(body))
					}
					if got.Header.Get(webhook.SignatureHeader) != signature(testSecret, body) {
						t.Errorf("the signature became %q", got.Header.Get(webhook.SignatureHeader))
					}
					if len(got.Trailer) > 0 || got.Header.Get("Expect") != "" {
						t.Errorf("trailer %v, expect %q", got.Trailer, got.Header.Get("Expect"))
					}
				})
			}
		}
	})
}

func TestBodyCanBeReadAgainOnlyAsAWhole(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: testSecret}}, Dedupe: dedupeOff}
	provision(t, h)
	body := eventBody("a")
	_, err := serve(h, signed("https://localhost/", body), func(w http.ResponseWriter, r *http.Request) error {
		if got := r.Header.Get("Content-Length"); got != strconv.Itoa(len(body)) { // FastCGI looks here
			t.Errorf("Content-Length is %q", got)
		}
		part := make([]byte, 10)
		if _, err := io.ReadFull(r.Body, part); err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if rest, err := io.ReadAll(r.Body); err == nil {
			t.Errorf("a body that was closed gave %q", rest)
		}
		again, err := r.GetBody()
		if err != nil {
			t.Fatal(err)
		}
		if whole, err := io.ReadAll(again); err != nil || !bytes.Equal(whole, []byte(body)) {
			t.Errorf("GetBody gave %q, %v", whole, err)
		}
		w.WriteHeader(http.StatusOK)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
