package buzzbip

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// What reads or changes the request after the handler works on what the
// backend gets, whichever handlers pass on a copy before or after it.
func TestHandlersThatFollowWorkOnTheRequestOfTheBackend(t *testing.T) {
	b := newBackend(t, nil)
	other := newBackend(t, nil)
	proxy := "reverse_proxy " + b.address()
	body := func() string {
		return fmt.Sprintf(`{"id":%q,"type":"message.received","createdAt":%q,"data":{"text":"urgent"}}`, newID(), time.Now().UTC().Format(time.RFC3339))
	}
	same := func(t *testing.T, got received, sent string) {
		if got.body != sent {
			t.Errorf("the backend got %q, want %q", got.body, sent)
		}
	}
	header := func(name string, want func(sent string) string) func(*testing.T, received, string) {
		return func(t *testing.T, got received, sent string) {
			same(t, got, sent)
			if got := got.Header.Get(name); got != want(sent) {
				t.Errorf("%s is %q, want %q", name, got, want(sent))
			}
		}
	}
	whole := func(sent string) string { return sent }
	tests := map[string]struct {
		handlers string
		check    func(t *testing.T, got received, sent string)
	}{
		"expression":     {"@urgent expression {http.request.body}.contains(\"urgent\")\nreverse_proxy @urgent " + b.address() + "\nreverse_proxy " + other.address(), same},
		"vars":           {"vars body {http.request.body}\nrequest_header X-Body {vars.body}\n" + proxy, header("X-Body", whole)},
		"vars matcher":   {"@urgent vars_regexp {http.request.body} urgent\nreverse_proxy @urgent " + b.address() + "\nreverse_proxy " + other.address(), same},
		"request_header": {"request_header X-Body {http.request.body}\n" + proxy, header("X-Body", whole)},
		"header_up":      {proxy + " {\nheader_up X-Body {http.request.body}\n}", header("X-Body", whole)},
		"base64":         {"request_header X-Body {http.request.body_base64}\n" + proxy, header("X-Body", func(sent string) string { return inBase64(sent).String() })},
		"rewrite": {"rewrite /rewritten\n" + proxy, func(t *testing.T, got received, sent string) {
			same(t, got, sent)
			expectText(t, "path", got.URL.Path, "/rewritten")
		}},
		"method": {"method PUT\n" + proxy, func(t *testing.T, got received, sent string) {
			same(t, got, sent)
			expectText(t, "method", got.Method, "PUT")
		}},
		"request_body set":   {"request_body {\nset other\n}\n" + proxy, func(t *testing.T, got received, _ string) { expectText(t, "body", got.body, "other") }},
		"body in a new body": {"request_body {\nset `{http.request.body}!`\n}\n" + proxy, func(t *testing.T, got received, sent string) { expectText(t, "body", got.body, sent+"!") }},
		"twice":              {"request_header X-First {http.request.body}\nrequest_header X-Body {http.request.body}\n" + proxy, header("X-Body", whole)},
		"copied after":       {"copies\nrequest_header X-Body {http.request.body}\n" + proxy, header("X-Body", whole)},
		"respond in part":    {"@never expression {http.request.body}.contains(\"no such text\")\nrespond @never no 500\n" + proxy, same},
	}
	for before, handlers := range handlersBefore(t) {
		for name, test := range tests {
			for _, buffers := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/after %s/request_buffers=%v", name, before, buffers), func(t *testing.T) {
					site := test.handlers
					if buffers {
						site = strings.Replace(site, proxy, proxy+" {\nrequest_buffers 1MiB\n}", 1)
						site = strings.Replace(site, "\n} {\n", "\n", 1)
					}
					s := start(t, "route {\n"+handlers+"\nbuzzbip_webhook "+testSecret+"\n"+site+"\n}")
					sent := body()
					expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, sent)), http.StatusOK, "")
					test.check(t, await(t, b.arrived, "the delivery"), sent)
				})
			}
		}
	}
	other.expectCount(t, 0)
}

func expectText(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("the %s is %q, want %q", what, got, want)
	}
}

func TestPlaceholdersForTheBodySeeWhatReplacedIt(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, "route {\nbuzzbip_webhook "+testSecret+"\nrequest_body {\nset other\n}\nrequest_header X-Body {http.request.body}\nreverse_proxy "+b.address()+"\n}")
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, eventBody(newID()))), http.StatusOK, "")
	if got := await(t, b.arrived, "the delivery"); got.Header.Get("X-Body") != "other" || got.body != "other" {
		t.Errorf("the backend got %q, the placeholder %q", got.body, got.Header.Get("X-Body"))
	}
}

func TestBodyIsReadAgainAsAWholeOrNotAtAll(t *testing.T) {
	p := newPayload([]byte("body"))
	p.Close()
	if got, err := io.ReadAll(p); err != nil || string(got) != "body" {
		t.Fatalf("got %q, %v", got, err)
	}
	p.Close()
	if got, err := io.ReadAll(p); err != nil || string(got) != "body" {
		t.Errorf("after its end it gave %q, %v", got, err)
	}
	p.Close()
	if _, err := io.ReadFull(p, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	p.Close()
	if got, err := io.ReadAll(p); err == nil {
		t.Errorf("closed in the middle, it gave %q", got)
	}
}

// The deadline for the body belongs to Caddy's idle timeouts: to take it back
// would set that of the server, which passes while the backend works.
func TestDeadlineOfTheServerDoesNotEndADelivery(t *testing.T) {
	const readBody = 300 * time.Millisecond
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		for _, idle := range []string{"", `"read_idle_timeout":-1,`} {
			for _, readTimeout := range []time.Duration{readBody / 3, 2 * readBody} {
				t.Run(fmt.Sprintf("%s read_timeout %s", idle, readTimeout), func(t *testing.T) {
					b := newBackend(t, func(w http.ResponseWriter, r *http.Request) { <-time.After(2 * readBody) })
					s := start(t, "respond gone 404")
					s.server = idle + fmt.Sprintf(`"read_timeout":%d,`, readBody)
					s.reload(watched(b, "read_timeout "+readTimeout.String()))
					for len(senderGone) > 0 {
						<-senderGone
					}
					body := eventBody(newID())
					first := sendAsync(client, signed(s.url, body))
					await(t, b.arrived, "the delivery")
					duplicate := sendAsync(client, signed(s.url, body))
					expect(t, await(t, first, "the delivery"), http.StatusOK, "")
					expect(t, await(t, duplicate, "the duplicate"), http.StatusOK, webhook.ResultDuplicate)
					if len(senderGone) > 0 {
						t.Error("the end of the deadline was taken for a disconnect")
					}
				})
			}
		}
	})
}

func TestReadTimeoutHoldsWithATimeoutsHandlerBefore(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		for _, idle := range []string{"", `"read_idle_timeout":-1,`} {
			s := start(t, "respond gone 404")
			s.server = idle
			s.reload("timeouts {\nread_timeout " + (2 * patience).String() + "\n}\nbuzzbip_webhook " + testSecret + " {\n read_timeout 50ms\n}" + explained)
			body := eventBody(newID())
			r := signed(s.url, body)
			r.Body = stalled(t, body[:20])
			expectRefusal(t, send(client, r), webhook.ReasonBodyTimeout)
		}
	})
}
