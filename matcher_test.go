package buzzbip

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// matching is a site that answers by what its matchers say.
const matching = `
	buzzbip_webhook ` + caddytest.Secret + `
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
		body := caddytest.Event{Type: test.typ, Data: test.data}.Body()
		if got := send(client, signed(s.url, body)); got.body != test.want {
			t.Errorf("%s with %s: %q, want %q", test.typ, test.data, got.body, test.want)
		}
	}
}

func TestMatcherRejectsWhatCannotBeAType(t *testing.T) {
	for _, directives := range []string{
		"@e buzzbip_event message.received,message.sent\nrespond @e 200",
		"@e expression buzzbip_event('message.received,message.sent')\nrespond @e 200",
		"@e `buzzbip_event('message.*', 'contact.created,contact.updated')`\nrespond @e 200",
		"buzzbip_webhook " + caddytest.Secret + " {\n events message.received, message.sent\n}",
	} {
		adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(testOptions+"https://localhost {\n"+directives+"\n}"), nil)
		if err == nil {
			err = caddy.Validate(load(t, adapted))
		}
		if err == nil || !strings.Contains(err.Error(), "separate patterns by spaces") {
			t.Errorf("%s: the error is %v", directives, err)
		}
	}
}

func load(t *testing.T, config []byte) *caddy.Config {
	t.Helper()
	c := new(caddy.Config)
	if err := json.Unmarshal(config, c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestMatcherNeverMatchesWhatNoHandlerVerified(t *testing.T) {
	s := start(t, `
		@event buzzbip_event message.*
		@cel expression buzzbip_event('message.*')
		respond @event matched 200
		respond @cel matched 200
		respond other 200`)
	if got := send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())); got.body != "other" {
		t.Errorf("got %q", got.body)
	}
}
