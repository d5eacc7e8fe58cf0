package buzzbip

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestPlaceholdersOfADelivery(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, fmt.Sprintf(`
		buzzbip_webhook {
			secret %s main
		}
		reverse_proxy %s {
			header_up X-Event "{http.buzzbip_webhook.event.id} {http.buzzbip_webhook.event.type} {http.buzzbip_webhook.event.created_at}"
			header_up X-Data "{http.buzzbip_webhook.event.data.conversation.id} {http.buzzbip_webhook.event.data.tags.1} {http.buzzbip_webhook.event.data.tags.#}"
			header_up X-Missing "[{http.buzzbip_webhook.event.data.no.such.thing}]"
			header_up X-Secret "{http.buzzbip_webhook.secret}"
		}`, testSecret, b.address()))
	id := newID()
	body := eventBody(id)
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, body)), http.StatusOK, "")
	got := await(t, b.arrived, "the delivery")
	createdAt := strings.SplitN(strings.SplitN(body, `"createdAt":"`, 2)[1], `"`, 2)[0]
	for header, want := range map[string]string{
		"X-Event":   id + " message.received " + createdAt,
		"X-Data":    "cnv_1 b 2",
		"X-Missing": "[]",
		"X-Secret":  "main",
	} {
		if got := got.Header.Get(header); got != want {
			t.Errorf("%s is %q, want %q", header, got, want)
		}
	}
}

func TestPlaceholdersOfWhatIsNotVerifiedAreNotSet(t *testing.T) {
	// Caddy leaves what is not set as it is
	const unset = "{http.buzzbip_webhook.event.id} {http.buzzbip_webhook.event.type} {http.buzzbip_webhook.event.created_at} {http.buzzbip_webhook.event.data.text} {http.buzzbip_webhook.secret}"
	b := newBackend(t, nil)
	s := start(t, proxied(b, "")+`
		handle_errors {
			@message buzzbip_event message.*
			header @message X-Matched yes
			respond "`+unset+` {http.buzzbip_webhook.result} {http.buzzbip_webhook.reason}"
		}`)
	r := signed(s.url, eventBody(newID()))
	r.Header.Set(SignatureHeader, strings.Repeat("0", 64))
	got := send(newClient(t, "HTTP/1.1"), r)
	if got.body != unset+" rejected signature_mismatch" || got.header.Get("X-Matched") != "" {
		t.Errorf("got %q with %v", got.body, got.header)
	}

	// of an envelope that is invalid only the secret is known
	got = send(newClient(t, "HTTP/1.1"), signed(s.url, `{"id":"evt_1","data":{"text":"x"}}`))
	if got.body != strings.Replace(unset, "{http.buzzbip_webhook.secret}", "1", 1)+" rejected envelope_invalid" {
		t.Errorf("got %q", got.body)
	}
}

func TestResultsAreKnownToPlaceholders(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: testSecret}}, Events: []string{"message.received"}, Scope: newID()}
	provision(t, h)
	ok := func(w http.ResponseWriter, r *http.Request) error { w.WriteHeader(http.StatusOK); return nil }
	fails := func(w http.ResponseWriter, r *http.Request) error { w.WriteHeader(http.StatusTeapot); return nil }
	silent := func(w http.ResponseWriter, r *http.Request) error { return nil }
	body := eventBody("evt")
	for _, step := range []struct {
		body   string
		next   func(http.ResponseWriter, *http.Request) error
		result Result
	}{
		{body, fails, ResultFailed},
		{body, silent, ResultFailed},
		{body, ok, ResultDelivered},
		{body, ok, ResultDuplicate},
		{body + " ", ok, ResultConflict},
		{strings.Replace(body, "received", "sent", 1), ok, ResultIgnored},
		{"{}", ok, ResultRejected},
	} {
		r := signed("https://localhost/", step.body)
		got, _ := serve(h, r, step.next)
		if got != string(step.result) {
			t.Errorf("the result is %q, want %q", got, step.result)
		}
	}
}

// matching is a site that answers by what its matchers say.
const matching = `
	buzzbip_webhook ` + testSecret + `
	@all buzzbip_event message.* contact.created
	@cel expression buzzbip_event('conversation.opened', 'contact.*') && {http.buzzbip_webhook.event.data.vip} == "true"
	respond @all matched 200
	respond @cel expression 200
	respond other 200`

func TestMatcher(t *testing.T) {
	s := start(t, matching)
	client := newClient(t, "HTTP/2.0")
	for _, test := range []struct{ typ, data, want string }{
		{"message.received", `{}`, "matched"},
		{"message.failed", `{}`, "matched"},
		{"contact.created", `{"vip":true}`, "matched"},
		{"contact.updated", `{"vip":true}`, "expression"},
		{"contact.updated", `{"vip":false}`, "other"},
		{"conversation.opened", `{"vip":true}`, "expression"},
		{"conversation.resolved", `{"vip":true}`, "other"},
		{"messages.received", `{}`, "other"},
	} {
		body := fmt.Sprintf(`{"id":%q,"type":%q,"createdAt":%q,"data":%s}`, newID(), test.typ, time.Now().Format(time.RFC3339), test.data)
		if got := send(client, signed(s.url, body)); got.body != test.want {
			t.Errorf("%s with %s: %q, want %q", test.typ, test.data, got.body, test.want)
		}
	}
}

func TestMatcherNeverMatchesWhatNoHandlerVerified(t *testing.T) {
	s := start(t, `
		@event buzzbip_event message.*
		@cel expression buzzbip_event('message.*')
		respond @event matched 200
		respond @cel matched 200
		respond other 200`)
	if got := send(newClient(t, "HTTP/1.1"), signed(s.url, eventBody(newID()))); got.body != "other" {
		t.Errorf("got %q", got.body)
	}
}

func TestSecondHandlerTakesOverThePlaceholders(t *testing.T) {
	const otherSecret = "the-secret-of-another-webhook-entirely"
	s := start(t, `
		route {
			buzzbip_webhook {
				secret `+testSecret+` first
				dedupe off
			}
			buzzbip_webhook {
				secret `+otherSecret+` x
				secret `+testSecret+` second
				dedupe off
			}
			respond {http.buzzbip_webhook.secret} 200
		}`)
	if got := send(newClient(t, "HTTP/1.1"), signed(s.url, eventBody(newID()))); got.body != "second" {
		t.Errorf("got %d %q", got.status, got.body)
	}
}
