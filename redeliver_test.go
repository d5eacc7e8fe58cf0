package buzzbip

import (
	"net/http"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

func TestRedeliveryHasTheProtocolOfTheEvent(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		protocol := client.Transport.(requireProtocol).protocol
		matcher := strings.TrimSuffix(strings.ToLower(protocol), ".0")
		b, working := failing(t, http.StatusInternalServerError)
		site := "@arrived protocol " + matcher + "\nroute @arrived {\n" + proxied(b, kept(t, "")) + " {\nheader_up X-Proto {http.request.proto}\n}\n}\nrespond 421"
		s := start(t, site)
		expect(t, send(client, signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
		caddytest.Receive(t, b.arrived, "the first attempt")
		second := caddytest.Receive(t, b.arrived, "the redelivery")
		if got := second.Header.Get("X-Proto"); got != protocol {
			t.Errorf("the redelivery has the protocol %q, want %q", got, protocol)
		}
		working.Store(true)
		waitForEmptyInbox(t)
	})
}

func TestRedeliveryTakesServerOptionsThatChangeTheConnection(t *testing.T) {
	b, working := failing(t, http.StatusInternalServerError)
	s := start(t, "respond gone 404")
	s.server = `"enable_full_duplex":true,"read_timeout":60000000000,"write_timeout":60000000000,"read_idle_timeout":60000000000,"write_idle_timeout":60000000000,`
	s.reload(proxied(b, kept(t, "")))
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
	working.Store(true)
	waitForEmptyInbox(t)
	if logs := s.logs(); strings.Contains(logs, "full duplex") || strings.Contains(logs, "deadline") {
		t.Error(logs)
	}
}
