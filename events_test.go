package buzzbip

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

func TestPatterns(t *testing.T) {
	for _, bad := range []string{"", "*", ".*", "message", "message.", "message*", "*.sent", "message.**", "message.s*", "a.*.b", "message .sent", ".sent"} {
		if _, err := newPatterns([]string{"message.*", bad}); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	for bad, remedy := range map[string]string{
		"message.received,message.sent": "separate patterns by spaces", "message.received,": "separate patterns by spaces", ",message.sent": "separate patterns by spaces",
		"message.*,contact.*": "separate patterns by spaces", "message.received;message.sent": "separate patterns by spaces", "message.sent|message.failed": "separate patterns by spaces",
		`"message.sent"`: "without quotes", "'message.sent'": "without quotes", "“message.sent”": "without quotes", "message.sent'": "without quotes", "`message.*`": "without quotes",
		"[message.sent]": "", "{env.EVENTS}": "", `message\.sent`: "", "^message.sent$": "", "!message.sent": "", "message/x.sent": "", "message.sent?": "", "message.(sent": "", "message.sent\u200b": "", "message.\ufeffsent": "",
		"Message.Received": "message.received", "MESSAGE.*": "message.*", "Contact.created": "contact.created",
	} {
		if _, err := newPatterns([]string{"message.*", bad}); err == nil || !strings.Contains(err.Error(), strconv.Quote(bad)) || !strings.Contains(err.Error(), remedy) {
			t.Errorf("%q: the error is %v, want %q in it", bad, err, remedy)
		}
	}
	for _, unknown := range []string{"cart.item-added", "cart.item_added.v2", "Cart.readReceipt", "message.readReceipt", "message.sent.*", "kontakt.geändert", "message.-"} {
		if _, err := newPatterns([]string{unknown}); err != nil {
			t.Errorf("a type that BuzzBip may add: %v", err)
		}
	}
	p, err := newPatterns([]string{"message.*", "contact.created", "cart.*"})
	if err != nil {
		t.Fatal(err)
	}
	if got := p.undocumented(); !slices.Equal(got, []string{"cart.*"}) {
		t.Errorf("undocumented: %q", got)
	}
}

func TestTypesOutsideEventsAreAcknowledgedAndDropped(t *testing.T) {
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
			expect(t, send(client, signed(s.url, caddytest.Event{Type: typ}.Body())), http.StatusOK, want)
		}
		b.expectCount(t, 3)

		// what was ignored is not remembered
		id := caddytest.NewID()
		expect(t, send(client, signed(s.url, caddytest.Event{ID: id, Type: "message.sent"}.Body())), http.StatusOK, webhook.ResultIgnored)
		s.reload(proxied(b, ""))
		expect(t, send(client, signed(s.url, caddytest.Event{ID: id, Type: "message.sent"}.Body())), http.StatusOK, "")
	})
}

func TestUnknownTypesPassByDefault(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, ""))
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.Event{Type: "cart.abandoned"}.Body())), http.StatusOK, "")
	b.expectCount(t, 1)
}
