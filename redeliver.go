package buzzbip

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// redeliveryHeader tells the backend the number of the attempt.
const redeliveryHeader = "Redelivery-Attempt"

// redelivery is in the context of a request that was made from an event of an inbox.
// No request from outside has one.
type redelivery struct {
	event   inbox.Event
	reached bool // a handler has taken it
	outcome inbox.Outcome
}

type redeliveryKey struct{}

func redeliveryOf(r *http.Request) *redelivery {
	d, _ := r.Context().Value(redeliveryKey{}).(*redelivery)
	return d
}

// redeliver makes one attempt to deliver an event of an inbox, through the routes of
// the active configuration.
func (a *App) redeliver(ctx context.Context, backing string, e inbox.Event) inbox.Outcome {
	h := a.handlerFor(backing, e)
	if h == nil || caddy.Exiting() {
		if h == nil {
			a.reportUnserved(e)
		}
		return inbox.Outcome{NoAttempt: true}
	}
	d := &redelivery{event: e}
	r, err := newRedelivery(context.WithValue(ctx, redeliveryKey{}, d), e)
	if err == nil {
		h.serveRedelivery(r)
	}
	if !d.reached {
		a.reportUnserved(e)
		return inbox.Outcome{NoAttempt: true}
	}
	if !d.outcome.Accepted && ctx.Err() != nil {
		return inbox.Outcome{NoAttempt: true} // cut off
	}
	return d.outcome
}

// newRedelivery returns the sender's request again.
func newRedelivery(ctx context.Context, e inbox.Event) (*http.Request, error) {
	uri, err := url.ParseRequestURI(e.Request.URI)
	if err != nil {
		return nil, err
	}
	major, minor, ok := http.ParseHTTPVersion(e.Request.Proto)
	if !ok {
		return nil, fmt.Errorf("%q is not a version of HTTP", e.Request.Proto)
	}
	r := (&http.Request{
		Method: http.MethodPost, URL: uri, RequestURI: e.Request.URI, Host: e.Request.Host,
		Proto: e.Request.Proto, ProtoMajor: major, ProtoMinor: minor,
		Header: e.Request.Header.Clone(), RemoteAddr: e.Request.RemoteAddr,
	}).WithContext(ctx)
	r.Body, r.ContentLength = newPayload(&content{bytes: e.Body}), int64(len(e.Body))
	if e.Request.TLS {
		host := url.URL{Host: e.Request.Host}
		r.TLS = &tls.ConnectionState{ServerName: host.Hostname(), HandshakeComplete: true}
	}
	return r, nil
}

// serveRedelivery passes a request to the server of h. Nobody reads the response.
func (h *Handler) serveRedelivery(r *http.Request) {
	defer func() {
		if panicked := recover(); panicked != nil && panicked != any(http.ErrAbortHandler) {
			h.logger.Error("a handler panicked during a redelivery", zap.Any("panic", panicked), zap.Stack("stack"))
		}
	}()
	h.server.ServeHTTP(&unread{header: make(http.Header)}, r)
}

// unread is a response that nobody reads.
type unread struct{ header http.Header }

// Header implements [http.ResponseWriter].
func (u *unread) Header() http.Header { return u.header }

// Write implements [http.ResponseWriter].
func (u *unread) Write(data []byte) (int, error) { return len(data), nil }

// WriteHeader implements [http.ResponseWriter].
func (u *unread) WriteHeader(int) {}

// FlushError and the other methods are for [http.ResponseController].
func (u *unread) FlushError() error                { return nil }
func (u *unread) EnableFullDuplex() error          { return nil }
func (u *unread) SetReadDeadline(time.Time) error  { return nil }
func (u *unread) SetWriteDeadline(time.Time) error { return nil }

// takes reports whether h delivers an event of an inbox: of its own or, if another
// buzzbip_webhook behind h has stored it, one that h has passed on when it arrived.
func (h *Handler) takes(d *redelivery, r *http.Request) bool {
	if h.inbox != nil && h.serves(d.event.Scope) {
		return true
	}
	if d.reached || h.store == nil || h.Enforce == enforceOff {
		return false
	}
	signature, _, err := admitHeaders(r)
	return err == nil && h.secrets.verify(d.event.Body, signature) != nil
}

// redeliver passes an event of the inbox to the next handlers. Its signature and its
// age were judged when it arrived.
func (h *Handler) redeliver(d *redelivery, w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	e := d.event
	state := newState(r, stateOf(r))
	state.key = &key{label: e.Secret, scope: e.Scope}
	event, err := webhook.ParseEvent(e.Body, webhook.Requirements{})
	if err != nil {
		return err // it was valid when it arrived, so its file is damaged
	}
	state.setEvent(event, e.Body)
	state.arrived, state.number = state.now, e.Attempts+1
	r.Header.Set(redeliveryHeader, strconv.Itoa(state.number))
	a := h.attempt(state, eventInStore{h.store.backing(), e.Scope, e.Key})
	d.reached = true
	defer func() {
		switch {
		case a.delivered:
			d.outcome = inbox.Outcome{Accepted: true, Attempt: inbox.Attempt{Status: a.recorder.status}}
		case state.failure != nil:
			d.outcome = outcomeOf(state.failure, w.Header())
		default:
			d.outcome = inbox.Outcome{NoAttempt: true} // there was no memory
			return
		}
		latest.addRedelivery(state)
	}()
	response := &redelivered{ResponseWriterWrapper: caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, attempt: a}
	defer response.end()
	err = a.run(response, r, next)
	return err
}

// responseGrace is how long the rest of a response to a redelivery may take. The
// backend has said what became of the event, and other events wait.
var responseGrace = 5 * time.Second

// redelivered is the response to a redelivery. It ends responseGrace after its
// status.
type redelivered struct {
	caddyhttp.ResponseWriterWrapper
	attempt *attempt
	timer   *time.Timer
}

// WriteHeader implements [http.ResponseWriter].
func (r *redelivered) WriteHeader(status int) {
	if status >= 200 && r.timer == nil {
		r.timer = time.AfterFunc(responseGrace, r.attempt.cancel)
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *redelivered) end() {
	if r.timer != nil {
		r.timer.Stop()
	}
}

// reportUnserved logs that an event waits because nothing delivers it.
func (a *App) reportUnserved(e inbox.Event) {
	metrics.inboxAttempts.WithLabelValues(attemptUnserved).Inc()
	h := a.handlers[0]
	h.sampled.log(h.logger, zapcore.ErrorLevel, "an event in the inbox waits, because no buzzbip_webhook of the active configuration delivers it", "", func() []zap.Field {
		return []zap.Field{zap.String("event_id", e.ID), zap.String("event_type", e.Type), zap.String("host", e.Request.Host), zap.String("uri", e.Request.URI)}
	})
}
