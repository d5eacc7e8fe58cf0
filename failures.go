package buzzbip

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// statusCanceled is what reverse_proxy writes when the context of the request is
// canceled. Here only handlers can do that, not the sender.
const statusCanceled = 499

// fail reports a failed delivery. It is called before the claim is settled:
// after that, the success of another delivery may already have been recorded.
func (a *attempt) fail(r *http.Request, duration time.Duration, err error, panicked any, timedOut bool) {
	// the cause is that of an error that cannot be shown
	f := &adminapi.Failure{Time: a.state.now.UTC(), Duration: duration.Seconds(), Cause: webhook.CausePanic}
	logged := a.state.failure != nil // by another buzzbip_webhook behind this one
	a.state.failure = f
	f.Cause, f.Status = causeOf(a.recorder.status, err, panicked, timedOut, a.state.reason == webhook.ReasonUnhandled)
	f.Error = a.errorText(f.Status, err)
	traffic.attempt(false, a.state.now)
	metrics.failures.WithLabelValues(string(f.Cause)).Inc()
	if a.holdsClaim() {
		failures.add(a.failureKey(), *f, a.claim.Retention)
	}
	if !logged {
		a.logFailure(f, duration, r, err)
	}
}

func (a *attempt) logFailure(f *adminapi.Failure, duration time.Duration, r *http.Request, err error) {
	a.sampled.log(a.logger, zapcore.WarnLevel, "delivery failed", string(f.Cause), func() []zap.Field {
		fields := append(endpoint(r),
			zap.String("event_id", a.event.ID),
			zap.String("event_type", a.event.Type),
			zap.String("cause", string(f.Cause)))
		if f.Status != 0 {
			fields = append(fields, zap.Int("status", f.Status))
		}
		fields = append(fields, zap.Duration("duration", duration))
		if handlerErr, ok := errors.AsType[caddyhttp.HandlerError](err); ok {
			err = handlerErr.Err
		}
		return append(fields, zap.Error(err)) // no field if it is nil
	})
}

// causeOf returns the cause of a failed delivery and the status that goes with
// it, given the status that was written (0: none), the error that was returned,
// and the value that the next handlers panicked with.
func causeOf(status int, err error, panicked any, timedOut, unhandled bool) (webhook.Cause, int) {
	aborted := panicked == http.ErrAbortHandler // how reverse_proxy passes on a response that breaks off
	switch {
	case panicked != nil && !aborted:
		return webhook.CausePanic, status
	case status == statusCanceled, aborted && status == 0:
		return webhook.CauseCanceled, status
	case status != 0:
		return causeOfStatus(status), status
	case unhandled, err == nil:
		return webhook.CauseUnhandled, 0
	case timedOut:
		return webhook.CauseTimeout, 0
	}
	return causeOfError(err)
}

func causeOfStatus(status int) webhook.Cause {
	switch status / 100 {
	case 3:
		return webhook.CauseStatus3xx
	case 4:
		return webhook.CauseStatus4xx
	case 5:
		return webhook.CauseStatus5xx
	}
	return webhook.CauseStatusOther
}

// causeOfError judges an error by what reverse_proxy returns, and others by the
// status that they are answered with.
func causeOfError(err error) (webhook.Cause, int) {
	handlerErr, _ := errors.AsType[caddyhttp.HandlerError](err)
	timeout, _ := errors.AsType[net.Error](err)
	_, network := errors.AsType[*net.OpError](err)
	switch {
	case errors.Is(err, context.Canceled) || handlerErr.StatusCode == statusCanceled:
		return webhook.CauseCanceled, 0
	case isUnreachable(err):
		return webhook.CauseUnreachable, 0
	case timeout != nil && timeout.Timeout():
		return webhook.CauseTimeout, 0
	case network, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		// the rest of what its transports return has no types
		handlerErr.StatusCode == http.StatusBadGateway && strings.HasPrefix(handlerErr.Trace, "reverseproxy."):
		return webhook.CauseConnectionBroken, 0
	case handlerErr.StatusCode == 0:
		handlerErr.StatusCode = http.StatusInternalServerError // as Caddy does
	}
	return causeOfStatus(handlerErr.StatusCode), handlerErr.StatusCode
}

// isUnreachable reports whether a connection to a backend could not be made.
func isUnreachable(err error) bool {
	_, dial := errors.AsType[reverseproxy.DialError](err)
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	_, record := errors.AsType[tls.RecordHeaderError](err)
	network, _ := errors.AsType[*net.OpError](err)
	if dial || certificate || record || network != nil && network.Op == "remote error" { // a TLS alert
		return true
	}
	for _, text := range []string{
		"no upstreams available",                    // of reverse_proxy, which has no type for it
		"making dial info",                          // an upstream that is a placeholder of nothing
		"server gave HTTP response to HTTPS client", // of net/http
	} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

// localAddress is that of the connection which an error of the package net is about.
var localAddress = regexp.MustCompile(`\S+->`)

// errorText describes a failure, up to 500 bytes, by the error that the next handlers
// have returned or else by their status.
func (a *attempt) errorText(status int, err error) string {
	if err != nil {
		return errorText(err)
	}
	repl, _ := a.context.Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if status == 0 || repl == nil {
		return ""
	}
	upstream, _ := repl.GetString("http.reverse_proxy.upstream.hostport")
	if upstream == "" {
		return ""
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s", status, http.StatusText(status))) + " from " + upstream
}

// errorText returns what an error says, up to 500 bytes, without what differs between
// failures of the same kind: the ID that Caddy gives each error, and local ports.
func errorText(err error) string {
	if handlerErr, ok := errors.AsType[caddyhttp.HandlerError](err); ok && handlerErr.Err != nil {
		err = handlerErr.Err
	}
	text := localAddress.ReplaceAllString(err.Error(), "")
	return strings.ToValidUTF8(text[:min(len(text), 500)], "")
}

// maxFailures is how many failures are remembered, for lookups. Each takes about
// 250 bytes, and up to 500 for its error.
const maxFailures = 4096

// failures holds the last failed delivery of events that are not delivered.
var failures failureLog

// failureKey is an event in a scope, of a kind of store.
type failureKey struct {
	store, scope string
	key          dedupe.Key
}

func (a *attempt) failureKey() failureKey {
	return failureKey{a.store.name, a.claim.Scope, a.claim.Key}
}

type failureLog struct {
	mu     sync.Mutex
	last   map[failureKey]rememberedFailure
	order  [maxFailures]failureKey // by number, modulo maxFailures
	number int
}

type rememberedFailure struct {
	adminapi.Failure
	number  int
	expires time.Time
}

// add remembers the failure for as long as a success would be: with a shared
// store, another instance may have one that this instance does not see.
func (l *failureLog) add(k failureKey, f adminapi.Failure, retention time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil {
		l.last = make(map[failureKey]rememberedFailure)
	}
	oldest := &l.order[l.number%maxFailures]
	if l.last[*oldest].number == l.number-maxFailures { // else it has failed again since
		delete(l.last, *oldest)
	}
	*oldest = k
	l.last[k] = rememberedFailure{f, l.number, f.Time.Add(retention)}
	l.number++
}

// remove forgets the failure of an event that has been delivered.
func (l *failureLog) remove(k failureKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.last, k)
}

// find returns the last failure of an event, or nil.
func (l *failureLog) find(k failureKey) *adminapi.Failure {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f, ok := l.last[k]; ok && time.Now().Before(f.expires) {
		return &f.Failure
	}
	return nil
}
