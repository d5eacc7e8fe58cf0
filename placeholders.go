package buzzbip

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/tidwall/gjson"

	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// requestState is what is known of a request so far. Placeholders and the matcher
// read it, also in error routes.
type requestState struct {
	start   time.Time     // when the handler got the request
	now     time.Time     // the latest reading of the clock
	arrived time.Time     // when its whole body had arrived
	number  int           // of the attempt, from 1
	key     *key          // nil until the signature is verified
	event   webhook.Event // empty until then, and if its envelope is invalid
	body    *content      // of the event
	// orderKey is the event's, or empty
	orderKey string
	result   webhook.Result
	reason   webhook.Reason
	remote   string // address of the sender, if the request was rejected or is a conflict
	// wouldBe is what result would be if a handler enforced it that has enforce off
	wouldBe webhook.Result
	// observed says that all handlers of the request have enforce off
	observed bool
	// attempt is the delivery that is in progress, or nil
	attempt *attempt
	// spare is an attempt that was allocated with the state, or nil if it is used
	spare   *attempt
	timeout time.Duration // of the delivery, and then of error routes
	// errorRequest is the request that error routes get, once it is prepared
	errorRequest *http.Request
	failure      *adminapi.Failure // nil unless its delivery failed
}

// String is for handlers that print the variable: `{http.vars.buzzbip_webhook}`
// shows the result, and nothing of the event. It has no pointer receiver, so
// that a copy prints no more.
func (s requestState) String() string { return string(s.result) }

// stateVar is the name of the variable that holds the request's *requestState.
const stateVar = "buzzbip_webhook"

// newState makes r's delivery known to placeholders, matchers and the access log,
// in place of earlier, that of a handler before in the path of the request.
func newState(r *http.Request, earlier *requestState) *requestState {
	s := earlier
	if s == nil {
		both := new(struct {
			state requestState
			first attempt
			body  content
		})
		s = &both.state
		s.spare, s.body = &both.first, &both.body
		s.publish(r.Context())
	}
	now := time.Now()
	body := s.body
	if body.bytes != nil {
		body = new(content) // that one is of the handler before
	}
	*s = requestState{start: now, now: now, number: 1, result: webhook.ResultRejected, attempt: s.attempt, spare: s.spare, body: body}
	return s
}

// publish makes s known to placeholders, matchers and the access log.
func (s *requestState) publish(ctx context.Context) {
	caddyhttp.SetVar(ctx, stateVar, s)
	replacerOf(ctx).Map(s.placeholder)
	s.addToAccessLog(ctx)
}

func replacerOf(ctx context.Context) *caddy.Replacer {
	return ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
}

// setEvent sets the event, and its body.
func (s *requestState) setEvent(e webhook.Event, body []byte) {
	s.body.bytes, s.body.data, s.body.createdAt = body, e.Data, e.CreatedAt
	e.Data, e.CreatedAt = nil, nil // they must be read with its lock
	s.event = e
}

// stateOf returns the delivery of r, or nil if no handler has made one.
func stateOf(r *http.Request) *requestState {
	s, _ := caddyhttp.GetVar(r.Context(), stateVar).(*requestState)
	return s
}

// cost returns what the event takes of the memory for events under way.
func (s *requestState) cost() int64 { return s.body.cost() }

// reuse lets the buffer of a body be used again after the request, if nobody can have
// it then: the inbox may, and error routes.
func (s *requestState) reuse(ctx context.Context, body *content) {
	if s.result != webhook.ResultFailed && s.result != webhook.ResultStored {
		body.reuseAfter(ctx)
	}
}

// verified reports whether the sender of the event holds a secret.
func (s *requestState) verified() bool { return s != nil && s.event.ID != "" }

// errorBody returns the body that error routes may see: that of an event whose
// delivery failed, and none of a request that was rejected.
func (s *requestState) errorBody() []byte {
	if s.result == webhook.ResultFailed {
		return s.body.bytes
	}
	return nil
}

// placeholder is a [caddy.ReplacerFunc] whose values are valid in headers.
func (s *requestState) placeholder(name string) (any, bool) {
	name, ours := strings.CutPrefix(name, "http.buzzbip_webhook.")
	if !ours {
		return nil, false
	}
	value, known := s.value(name)
	if !known {
		return nil, false
	}
	return forHeader(value), true
}

// forHeader replaces control characters with spaces, and invalid UTF-8 with
// U+FFFD. A header that contains a line break or NUL cannot be sent.
func forHeader(value string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, value)
}

// value returns the value of a placeholder, and whether there is such a
// placeholder.
func (s *requestState) value(name string) (string, bool) {
	switch name {
	case "result":
		return string(s.result), true
	case "reason":
		return string(s.reason), true
	case "would_be":
		return string(s.wouldBe), true
	case "attempt":
		return strconv.Itoa(s.number), true
	case "secret":
		if s.key != nil {
			return s.key.label, true
		}
	}
	if !s.verified() {
		return "", false
	}
	switch name {
	case "event.id":
		return s.event.ID, true
	case "event.type":
		return s.event.Type, true
	}
	s.body.mu.RLock()
	defer s.body.mu.RUnlock()
	if name == "event.created_at" {
		return string(s.body.createdAt), true
	}
	if path, ok := strings.CutPrefix(name, "event.data."); ok {
		return gjson.GetBytes(s.body.data, path).String(), true
	}
	return "", false
}
