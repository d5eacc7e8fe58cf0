package buzzbip

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
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
		}`, caddytest.Secret, b.address()))
	id := caddytest.NewID()
	body := caddytest.Event{ID: id}.Body()
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, body)), http.StatusOK, "")
	got := caddytest.Receive(t, b.arrived, "the delivery")
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

// A header with a control character in it would make every attempt fail.
func TestEveryPlaceholderCanBeAHeader(t *testing.T) {
	var controls, blanks strings.Builder
	for r := range rune(0x100) {
		if unicode.IsControl(r) {
			fmt.Fprintf(&controls, `\u%04x`, r)
			blanks.WriteByte(' ')
		}
	}
	b := newBackend(t, nil)
	s := start(t, fmt.Sprintf(`
		buzzbip_webhook {
			secret %s "ma
in"
			envelope lenient
		}
		reverse_proxy %s {
			header_up X-Event "[{http.buzzbip_webhook.event.id}|{http.buzzbip_webhook.event.type}|{http.buzzbip_webhook.event.created_at}]"
			header_up X-Text {http.buzzbip_webhook.event.data.text}
			header_up X-Controls "[{http.buzzbip_webhook.event.data.controls}]"
			header_up X-Half "[{http.buzzbip_webhook.event.data.half}]"
			header_up X-Object "[{http.buzzbip_webhook.event.data.object}]"
			header_up X-Pretty "[{http.buzzbip_webhook.event.data.object.@pretty}]"
			header_up X-Secret "{http.buzzbip_webhook.secret}"
		}`, caddytest.Secret, b.address()))
	id := caddytest.NewID()
	body := fmt.Sprintf(`{"id":"%[1]s\n%[1]s","type":"message.\u0000received","createdAt":"just\tnow","data":{"text":"caf\u00e9\n\u0000 \ud83d\ude00","controls":"%[2]s","half":"a\ud83db\ude00","object":{"a":
	1}}}`, id, controls.String())
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		body := strings.Replace(body, id, caddytest.NewID(), 1)
		id := body[len(`{"id":"`):strings.Index(body, `"type"`)]
		id = strings.ReplaceAll(strings.TrimSuffix(id, `",`), `\n`, " ")
		expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
		got := caddytest.Receive(t, b.arrived, "the delivery")
		for header, want := range map[string]string{
			"X-Event":    "[" + id + "|message. received|just now]",
			"X-Text":     "café   😀",
			"X-Controls": "[" + blanks.String() + "]",
			"X-Half":     "[a\ufffdb\ufffd]",
			"X-Object":   `[{"a":  1}]`,
			"X-Pretty":   `[{   "a": 1 } ]`,
			"X-Secret":   "ma in",
		} {
			if got := got.Header.Get(header); got != want {
				t.Errorf("%s is %q, want %q", header, got, want)
			}
		}
	})
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
	r := signed(s.url, caddytest.NewEvent())
	r.Header.Set(webhook.SignatureHeader, strings.Repeat("0", 64))
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
	h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}}, Events: []string{"message.received"}, Scope: caddytest.NewID()}
	provision(t, h)
	ok := func(w http.ResponseWriter, r *http.Request) error { w.WriteHeader(http.StatusOK); return nil }
	fails := func(w http.ResponseWriter, r *http.Request) error { w.WriteHeader(http.StatusTeapot); return nil }
	silent := func(w http.ResponseWriter, r *http.Request) error { return nil }
	body := caddytest.Event{ID: "evt"}.Body()
	for _, step := range []struct {
		body   string
		next   func(http.ResponseWriter, *http.Request) error
		result webhook.Result
	}{
		{body, fails, webhook.ResultFailed},
		{body, silent, webhook.ResultFailed},
		{body, ok, webhook.ResultDelivered},
		{body, ok, webhook.ResultDuplicate},
		{body + " ", ok, webhook.ResultConflict},
		{strings.Replace(body, "received", "sent", 1), ok, webhook.ResultIgnored},
		{"{}", ok, webhook.ResultRejected},
	} {
		r := signed("https://localhost/", step.body)
		got, _ := serve(h, r, step.next)
		if got != string(step.result) {
			t.Errorf("the result is %q, want %q", got, step.result)
		}
	}
}

func TestSecondHandlerTakesOverThePlaceholders(t *testing.T) {
	const otherSecret = "the-secret-of-another-webhook-entirely"
	s := start(t, `
		route {
			buzzbip_webhook {
				secret `+caddytest.Secret+` first
				dedupe off
			}
			buzzbip_webhook {
				secret `+otherSecret+` x
				secret `+caddytest.Secret+` second
				dedupe off
			}
			respond {http.buzzbip_webhook.secret} 200
		}`)
	if got := send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())); got.body != "second" {
		t.Errorf("got %d %q", got.status, got.body)
	}
}

// The variable is for us, but every handler can name it.
func TestVariableShowsNothingButTheResult(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, fmt.Sprintf(`
		log {
			output test
		}
		log_append by_name buzzbip_webhook
		log_append by_placeholder {http.vars.buzzbip_webhook}
		@vars vars {http.vars.buzzbip_webhook} failed
		@name vars buzzbip_webhook failed
		@regexp vars_regexp buzzbip_webhook ^failed$
		@cel expression {path} == "/expression" && {http.vars.buzzbip_webhook} != "x"
		route {
			buzzbip_webhook %s {
				scope the-scope-that-nobody-sees
			}
			header @vars X-Vars yes
			header @name X-Name yes
			header @regexp X-Regexp yes
			respond @cel matched 200
			reverse_proxy %s {
				header_up X-Variable "{http.vars.buzzbip_webhook}"
			}
		}
		handle_errors {
			respond "[{http.vars.buzzbip_webhook}]"
		}`, caddytest.Secret, b.address()))
	client := newClient(t, "HTTP/1.1")
	body := caddytest.NewEvent()
	got := send(client, signed(s.url, body))
	expect(t, got, http.StatusOK, "")
	for _, header := range []string{"X-Vars", "X-Name", "X-Regexp"} {
		if got.header.Get(header) != "yes" {
			t.Errorf("%s: the matcher does not see the result", header)
		}
	}
	variable := caddytest.Receive(t, b.arrived, "the delivery").Header.Get("X-Variable")
	if variable != string(webhook.ResultFailed) { // as long as nobody has answered
		t.Errorf("the variable is %q", variable)
	}
	shown := got.body + variable + fmt.Sprint(got.header)
	shown += send(client, signed(strings.Replace(s.url, "/webhooks/buzzbip", "/expression", 1), caddytest.NewEvent())).body
	var log string
	for end := time.Now().Add(caddytest.Patience); strings.Count(log, `"by_name"`) < 2 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		log = s.logs()
	}
	if !strings.Contains(log, `"by_name":"delivered"`) || !strings.Contains(log, `"by_placeholder":"delivered"`) ||
		!strings.Contains(log, "unsupported conversion") { // of the expression
		t.Errorf("the log does not have the result: %s", log)
	}

	d := requestState{event: webhook.Event{ID: "evt_1", Data: []byte(`{"text":"hello"}`)}, result: webhook.ResultDelivered,
		key: &key{label: "main", scope: "the-scope-that-nobody-sees"}}
	for _, format := range []string{"%v", "%+v", "%s", "%q"} {
		shown += fmt.Sprintf(format, d) + fmt.Sprintf(format, &d) + fmt.Sprintf(format, struct{ D any }{&d})
	}
	asJSON, err := json.Marshal(map[string]any{"d": &d})
	if err != nil {
		t.Fatal(err)
	}
	shown += string(asJSON)
	for _, hidden := range []string{"hello", fmt.Sprint([]byte("hello")), caddytest.Secret, "the-scope-that-nobody-sees", "evt_"} {
		for what, text := range map[string]string{"what is shown": shown, "the log": log} {
			// the access log names the event on purpose
			if strings.Contains(text, hidden) && (what != "the log" || hidden != "evt_") {
				t.Errorf("%s has %q: %s", what, hidden, text)
			}
		}
	}
}
