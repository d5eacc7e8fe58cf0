package buzzbip

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

func TestLenientEnvelopeWithMaxAgeNeedsCreatedAt(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: testSecret}}, Envelope: webhook.EnvelopeLenient}
	provision(t, h)
	if h.requires != (webhook.Requirements{}) {
		t.Errorf("lenient asks for %+v", h.requires)
	}
	hour := defaultReadTimeout
	h = &Handler{Secrets: []Secret{{Value: testSecret}}, Envelope: webhook.EnvelopeLenient, MaxAge: &hour}
	provision(t, h)
	if want := (webhook.Requirements{CreatedAt: true}); h.requires != want {
		t.Errorf("lenient with max_age asks for %+v, want %+v", h.requires, want)
	}
}

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
