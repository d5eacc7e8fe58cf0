package buzzbip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// runWithInbox is run for a handler with an inbox.
func (a *attempt) runWithInbox(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	result, err := a.keptResult(r)
	if err != nil {
		a.settle()
		return a.reject(a.state, w, r, webhook.ReasonStoreUnavailable, fmt.Errorf("the inbox does not answer: %w", err))
	}
	if result != "" {
		a.settle()
		return answer(a.state, w, result)
	}
	return a.deliverOrKeep(w, r, next)
}

// deliverOrKeep delivers the event of a for the first time. If the backend fails, or
// does not answer within answer_within, the event goes to the inbox.
func (a *attempt) deliverOrKeep(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	k := &keeper{attempt: a, state: a.state, w: w, request: newArrival(r, a.state), deadline: a.answerBy(a.state)}
	if !a.inbox.AcceptsAlways() {
		k.tried = k.first.Try(r.Context(), a.inbox.dispatcher, k.request.target, a.turn)
	}
	if k.tried {
		if a.tryMemory() {
			return k.deliver(r, next)
		}
		k.end(inbox.Outcome{NoAttempt: true})
	}
	kept, pending, err := k.keepWithoutAttempt()
	switch {
	case err != nil:
		a.settle()
		return a.reject(a.state, w, r, webhook.ReasonOverloaded, err)
	case kept:
		return answer(a.state, w, webhook.ResultStored)
	case pending:
		return a.reject(a.state, w, r, webhook.ReasonStoreUnavailable, errNoAnswer)
	}
	return a.run(w, r, next)
}

// keepWithoutAttempt is keep for an event that is not tried, which takes memory as long
// as the disk takes.
func (k *keeper) keepWithoutAttempt() (kept, pending bool, err error) {
	cost := k.request.body.cost()
	if !underWay.hold(cost, k.attempt.maxInFlight) {
		return false, false, errOverloaded
	}
	defer underWay.unhold(cost)
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keep(), k.pending, nil
}

// inboxEvent returns the event as the inbox keeps it.
func (k *keeper) inboxEvent() inbox.Event {
	a, request := k.attempt, k.request
	request.body.shared = true // if a context ends first, the inbox still has it
	e := inbox.Event{
		Target: request.target,
		Scope:  a.target.scope, Key: a.target.key, Digest: a.claim.Digest,
		ID: a.event.ID, Type: a.event.Type, OrderKey: request.orderKey, Secret: request.secret,
		Arrived: request.at,
		Request: inbox.Request{
			Host: request.host, URI: request.url.RequestURI(), Proto: request.proto, TLS: request.tls,
			RemoteAddr: request.remote, Header: request.repeated(),
		},
		Body: request.body.bytes,
	}
	if a.server != nil {
		e.Request.Server = a.server.Name()
	}
	return e
}

// keeper is the response to the sender while the next handlers run. It is passed on
// as it is if the backend accepts the event, or if the inbox does not take it.
type keeper struct {
	attempt    *attempt
	first      inbox.First // if tried
	tried      bool        // an attempt is made
	w          http.ResponseWriter
	request    *arrival      // nil once nothing can be kept any more
	state      *requestState // the sender's
	connection net.Conn      // the sender's, if the next handlers run in its request
	fork       *fork         // what the next handlers get, if they run beside the sender's request

	deadline time.Time // when the sender is to be told about its event
	toldLate bool      // keepLate was called; deliverySet locks

	mu       sync.Mutex
	decided  bool        // by what the backend answered; nothing is kept after that
	passing  atomic.Bool // the response goes to the sender; changed with mu held
	kept     bool        // the event is in the inbox
	answered bool        // the sender, by answerEarly or because the handler ends
	pending  bool        // it is not known whether the inbox takes the event
	ended    bool        // first knows the outcome
	accepted bool        // that the backend has accepted the event
}

// deliver runs the next handlers. If they have not answered within answer_within, the
// sender is told that the event is in the inbox, and they go on.
func (k *keeper) deliver(r *http.Request, next caddyhttp.Handler) error {
	a := k.attempt
	a.keeper, a.recorder.onSuccess = k, k
	if r.ProtoMajor == 1 && a.state.attempt == nil { // else the sender is that of another delivery
		k.connection, _ = r.Context().Value(connectionKey{}).(net.Conn)
	}
	if k.connection != nil {
		return k.deliverHere(r, next)
	}
	return k.deliverBeside(r, next) // also as a part of a redelivery, which the handler must not hold up
}

// deliverHere delivers in the sender's request, whose header the next handlers fill. If
// the response does not pass, the header is as before.
func (k *keeper) deliverHere(r *http.Request, next caddyhttp.Handler) error {
	defer underWay.release(k.attempt.memory)
	k.request.detach(k.w.Header())
	err := k.run(r, next)
	return k.finish(err)
}

// finish ends the response when the next handlers have ended, unless it was late.
func (k *keeper) finish(err error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.answered = true // keepLate may be waiting for the lock
	request := k.request
	k.request = nil
	defer request.recycle()
	if k.passing.Load() {
		return err
	}
	if k.fork == nil {
		header := k.w.Header()
		clear(header)
		maps.Copy(header, request.response.header())
	}
	return answer(k.state, k.w, webhook.ResultStored) // if answerEarly came first: for the access log
}

// answerEarly answers the sender while the next handlers run. They, and those before,
// may be using its response, headers and variables. So it writes to the connection itself.
func (k *keeper) answerEarly() {
	k.answered = true
	header := k.request.response.header()
	header.Set(webhook.ResultHeader, string(webhook.ResultStored))
	header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	response := http.Response{StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1, Header: header, Close: true}
	var text bytes.Buffer
	_ = response.Write(&text)
	_ = k.connection.SetWriteDeadline(time.Now().Add(earlyAnswerTimeout))
	_, _ = k.connection.Write(text.Bytes())
	_ = k.connection.Close()
}

// earlyAnswerTimeout bounds the writing of an answer of some 200 bytes.
const earlyAnswerTimeout = 5 * time.Second

// connectionKey is where the context of a request has its connection.
type connectionKey struct{}

// withConnection is for [caddyhttp.Server.RegisterConnContext].
func withConnection(ctx context.Context, c net.Conn) context.Context {
	if ctx.Value(connectionKey{}) != nil {
		return ctx // several handlers of a server have registered it
	}
	return context.WithValue(ctx, connectionKey{}, c)
}

// deliverBeside delivers beside the sender's request, which may end before: over HTTP/2
// and HTTP/3, its response ends when the handler returns.
func (k *keeper) deliverBeside(r *http.Request, next caddyhttp.Handler) error {
	a := k.attempt
	f := newFork(r, k)
	k.fork, a.state = f, &f.state
	a.turn.Hold()
	go func() {
		defer a.turn.Leave()
		defer underWay.release(a.memory)
		defer func() {
			f.panicked = recover()
			f.returns <- true
		}()
		f.err = k.run(f.request, next)
	}()
	if ended := <-f.returns; !ended {
		return answer(k.state, k.w, webhook.ResultStored)
	}
	f.share()
	err := k.finish(f.err)
	if f.panicked != nil && k.passing.Load() {
		panic(f.panicked)
	}
	return err
}

// run runs the next handlers. What they panic with does not matter to a sender that is
// told that its event is in the inbox.
func (k *keeper) run(r *http.Request, next caddyhttp.Handler) error {
	defer func() {
		if passed := k.pass(); !passed {
			_ = recover() // it is in the log
		}
	}()
	return k.attempt.deliver(k, r, next)
}

// keepLate keeps the event of a delivery that has not ended, and tells the sender.
func (k *keeper) keepLate() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kept && !k.passing.Load() && !k.answered || !k.decided && k.keep() {
		if k.fork != nil {
			k.fork.returns <- false
		} else {
			k.answerEarly()
		}
	}
}

// failed keeps the event of a delivery that has failed, unless that was decided
// before, and reports whether it is kept.
func (k *keeper) failed(o inbox.Outcome) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kept {
		k.end(o)
		return true
	}
	if k.decided {
		return false
	}
	k.decided = true
	k.end(o)
	return !k.pending && k.keep()
}

// end tells the dispatcher the outcome of the attempt, once.
func (k *keeper) end(o inbox.Outcome) {
	if !k.ended {
		k.ended, k.accepted = true, o.Accepted
		k.first.End(o)
	}
}

// isKeptOrPending reports whether the claim is, or may become, that of an event in the inbox.
func (k *keeper) isKeptOrPending() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.kept || k.pending
}

func (k *keeper) isKept() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.kept
}

// succeed implements [successHook]. A success after the event was stored is told to
// the dispatcher, which then removes it.
func (k *keeper) succeed(status int) int {
	if k.pass() && k.attempt.inbox.Policy().KeepDelivered > 0 {
		k.keepDelivered(status)
	}
	k.mu.Lock()
	k.end(inbox.Outcome{Accepted: true, Attempt: inbox.Attempt{Status: status}})
	k.mu.Unlock()
	return k.attempt.succeed(status) // it settles the claim, unless that is pending
}

// keepDelivered keeps the event for replay. If that fails, it is delivered
// nevertheless.
func (k *keeper) keepDelivered(status int) {
	a := k.attempt
	event, now := k.inboxEvent(), time.Now()
	_, err := askInbox(func(ctx context.Context) error {
		return a.inbox.dispatcher.AddDelivered(ctx, event.Target, a.turn, event, inbox.Attempt{Time: now, Duration: now.Sub(a.start).Seconds(), Status: status})
	})
	if err != nil && !errors.Is(err, inbox.ErrKept) {
		a.sampled.log(a.logger, zapcore.ErrorLevel, "failed to keep delivered events: they cannot be replayed", "", func() []zap.Field {
			return []zap.Field{zap.String("event_id", a.event.ID), zap.Error(err)}
		})
	}
}

// pass lets the response go to the sender, unless the event is in the inbox, and
// reports whether it does. If it is not known whether the event is there, it does.
func (k *keeper) pass() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.decided = true
	switch {
	case k.passing.Load():
		return true
	case k.kept:
		return false
	}
	if k.fork != nil {
		header := k.w.Header()
		clear(header)
		maps.Copy(header, k.fork.header)
	}
	k.passing.Store(true)
	return true
}

// Header implements [http.ResponseWriter].
func (k *keeper) Header() http.Header {
	if k.fork != nil && !k.passing.Load() {
		return k.fork.header
	}
	return k.w.Header()
}

// WriteHeader implements [http.ResponseWriter].
func (k *keeper) WriteHeader(status int) {
	if status < 200 && status != http.StatusSwitchingProtocols {
		return // the sender may still get another response
	}
	if !k.passing.Load() {
		f := &adminapi.Failure{Time: time.Now().UTC(), Duration: time.Since(k.attempt.start).Seconds(), Cause: causeOfStatus(status), Status: status, Error: k.attempt.errorText(status, nil)}
		if k.failed(outcomeOf(f, k.Header())) || !k.pass() {
			k.attempt.cancel() // the rest of the response is of no use
			return
		}
	}
	if k.fork != nil {
		k.fork.share() // handlers before, too, may use what was set
	}
	k.w.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (k *keeper) Write(data []byte) (int, error) {
	if k.passing.Load() {
		return k.w.Write(data)
	}
	return len(data), nil
}

// FlushError is what [http.ResponseController] calls.
func (k *keeper) FlushError() error {
	if k.passing.Load() {
		return http.NewResponseController(k.w).Flush()
	}
	return nil
}

// outcomeOf returns the outcome of a failed attempt.
func outcomeOf(f *adminapi.Failure, header http.Header) inbox.Outcome {
	o := inbox.Outcome{Attempt: inbox.Attempt{Time: f.Time, Duration: f.Duration, Status: f.Status, Cause: string(f.Cause), Error: f.Error}}
	switch f.Cause {
	case webhook.CauseUnreachable, webhook.CauseTimeout, webhook.CauseConnectionBroken, webhook.CauseUnhandled:
		o.Down = true
	}
	switch f.Status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		o.Down = true
	}
	o.RetryAfter = retryAfterOf(header)
	return o
}

// retryAfterOf returns how long a response asks to wait (RFC 9110, section 10.2.3).
func retryAfterOf(header http.Header) time.Duration {
	text := header.Get("Retry-After")
	if seconds, err := strconv.Atoi(text); err == nil {
		return time.Duration(min(max(seconds, 0), math.MaxInt32)) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}

// keptResult returns the result of an event that the inbox has already, or nothing
// if the inbox does not have it, or if it is to be delivered nevertheless.
func (a *attempt) keptResult(r *http.Request) (webhook.Result, error) {
	kept, err := a.inbox.Find(r.Context(), a.claim.Scope, a.claim.Key)
	switch {
	case errors.Is(err, inbox.ErrNotFound):
		return "", nil
	case err != nil:
		return "", err
	case kept.Digest == a.claim.Digest:
		return webhook.ResultDuplicate, nil
	}
	a.reportConflict(a.state, r)
	if a.OnConflict == onConflictDeliver {
		return "", nil
	}
	return webhook.ResultConflict, nil
}
