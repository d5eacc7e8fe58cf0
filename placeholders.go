package buzzbip

import (
	"net/http"
	"strings"
	"unicode"

	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/tidwall/gjson"
)

// delivery is what is known of a request so far. Placeholders and the matcher
// read it, in error routes too.
type delivery struct {
	key    *key          // nil until the signature is verified
	event  webhook.Event // empty until then, and if its envelope is invalid
	body   []byte        // of the event
	result webhook.Result
	reason webhook.Reason
	// claimed means that a handler of this request owns the event.
	claimed bool
	failure *adminapi.Failure // nil unless its delivery failed
}

// String is for handlers that print the variable: `{http.vars.buzzbip_webhook}`
// shows the result, and nothing of the event. It has no pointer receiver, so
// that a copy prints no more.
func (d delivery) String() string { return string(d.result) }

// deliveryVar is the name of the variable that holds the request's *delivery.
const deliveryVar = "buzzbip_webhook"

// newDelivery makes r's delivery known to placeholders and matchers, in place
// of that of an earlier handler.
func newDelivery(r *http.Request) *delivery {
	if d := deliveryOf(r); d != nil {
		*d = delivery{claimed: d.claimed}
		return d
	}
	d := new(delivery)
	caddyhttp.SetVar(r.Context(), deliveryVar, d)
	r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).Map(d.placeholder)
	return d
}

// deliveryOf returns the delivery of r, or nil if no handler has made one.
func deliveryOf(r *http.Request) *delivery {
	d, _ := caddyhttp.GetVar(r.Context(), deliveryVar).(*delivery)
	return d
}

// verified reports whether the event came from somebody who holds a secret.
func (d *delivery) verified() bool { return d != nil && d.event.ID != "" }

// errorBody returns the body that error routes may see: that of an event whose
// delivery failed, and none of a request that was rejected.
func (d *delivery) errorBody() []byte {
	if d.result == webhook.ResultFailed {
		return d.body
	}
	return nil
}

// placeholder is a [caddy.ReplacerFunc]. Its values can be those of headers.
func (d *delivery) placeholder(name string) (any, bool) {
	name, ours := strings.CutPrefix(name, "http.buzzbip_webhook.")
	if !ours {
		return nil, false
	}
	value, known := d.value(name)
	if !known {
		return nil, false
	}
	return forHeader(value), true
}

// forHeader replaces control characters with spaces, and bytes that are no
// UTF-8 with U+FFFD: a header with a line break or a NUL in it cannot be sent.
func forHeader(value string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, value)
}

// value returns what a placeholder stands for.
func (d *delivery) value(name string) (string, bool) {
	switch name {
	case "result":
		return string(d.result), true
	case "reason":
		return string(d.reason), true
	case "secret":
		if d.key != nil {
			return d.key.label, true
		}
	}
	if !d.verified() {
		return "", false
	}
	switch name {
	case "event.id":
		return d.event.ID, true
	case "event.type":
		return d.event.Type, true
	case "event.created_at":
		return d.event.CreatedAt, true
	}
	if path, ok := strings.CutPrefix(name, "event.data."); ok {
		return gjson.GetBytes(d.event.Data, path).String(), true
	}
	return "", false
}
