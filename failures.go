package buzzbip

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// Cause says why a delivery failed.
type Cause string

// The causes are a closed set.
const (
	// CauseStatus3xx: the backend answered with a redirect. Nobody follows it.
	CauseStatus3xx Cause = "status_3xx"
	CauseStatus4xx Cause = "status_4xx"
	CauseStatus5xx Cause = "status_5xx"
	// CauseStatusOther: the status is of no class above, and no 2xx.
	CauseStatusOther Cause = "status_other"
	// CauseUnreachable: there was no connection to a backend, or no backend that
	// is healthy.
	CauseUnreachable Cause = "unreachable"
	// CauseTimeout: there was no answer within delivery_timeout, or within a
	// timeout of the next handlers.
	CauseTimeout Cause = "timeout"
	// CauseConnectionBroken: the connection to the backend ended before its
	// answer, or the answer was not HTTP.
	CauseConnectionBroken Cause = "connection_broken"
	// CauseCanceled: a handler ended the delivery itself, as abort does.
	CauseCanceled Cause = "canceled"
	// CauseUnhandled: no handler answered.
	CauseUnhandled Cause = "unhandled"
	// CausePanic: a handler panicked.
	CausePanic Cause = "panic"
)

var causes = []Cause{
	CauseStatus3xx, CauseStatus4xx, CauseStatus5xx, CauseStatusOther, CauseUnreachable, CauseTimeout,
	CauseConnectionBroken, CauseCanceled, CauseUnhandled, CausePanic,
}

// statusCanceled is what reverse_proxy writes when the context of a request was
// canceled. The sender cannot do that here.
const statusCanceled = 499

// failure is a delivery that failed.
type failure struct {
	Time     time.Time `json:"time"` // when it ended
	Cause    Cause     `json:"cause"`
	Status   int       `json:"status,omitempty"` // of the next handlers, if they answered
	Duration float64   `json:"duration"`         // in seconds
	duration time.Duration
}

// String completes "last attempt failed".
func (f *failure) String() string {
	what := "(" + string(f.Cause) + ")"
	if f.Status != 0 {
		what = "with " + strconv.Itoa(f.Status)
	}
	return what + " at " + f.Time.Format(time.RFC3339)
}

// fail reports a delivery that failed. It is called before the claim is
// settled, so that a later success removes what is remembered of it.
func (a *attempt) fail(r *http.Request, status int, err error, panicked any, timedOut bool) {
	f := &failure{Time: time.Now().UTC(), duration: time.Since(a.start)}
	f.Duration = f.duration.Seconds()
	f.Cause, f.Status = causeOf(status, err, panicked, timedOut, a.d.reason == ReasonUnhandled)
	metrics.failures.WithLabelValues(string(f.Cause)).Inc()
	if a.claim != nil {
		failures.add(a.failureKey(), *f, a.claim.Retention)
	}
	if a.d.failure == nil { // else another buzzbip_webhook behind this one has logged it
		a.logFailure(f, r, err)
	}
	a.d.failure = f
}

func (a *attempt) logFailure(f *failure, r *http.Request, err error) {
	const message = "delivery failed"
	a.sampled.logEach(message+string(f.Cause), a.logger, zapcore.WarnLevel, message, func() []zap.Field {
		fields := append(endpoint(r),
			zap.String("event_id", a.event.id),
			zap.String("event_type", a.event.typ),
			zap.String("cause", string(f.Cause)))
		if f.Status != 0 {
			fields = append(fields, zap.Int("status", f.Status))
		}
		fields = append(fields, zap.Duration("duration", f.duration))
		if handlerErr, ok := errors.AsType[caddyhttp.HandlerError](err); ok {
			err = handlerErr.Err
		}
		return append(fields, zap.Error(err)) // no field if it is nil
	})
}

// causeOf judges a delivery that failed, by the status that was written, the
// error that was returned, or what panicked.
func causeOf(status int, err error, panicked any, timedOut, unhandled bool) (Cause, int) {
	aborted := panicked == http.ErrAbortHandler // how reverse_proxy passes on a response that breaks off
	switch {
	case panicked != nil && !aborted:
		return CausePanic, status
	case status == statusCanceled, aborted && status == 0:
		return CauseCanceled, status
	case status != 0:
		return causeOfStatus(status), status
	case unhandled, err == nil:
		return CauseUnhandled, 0
	case timedOut:
		return CauseTimeout, 0
	}
	return causeOfError(err)
}

func causeOfStatus(status int) Cause {
	switch status / 100 {
	case 3:
		return CauseStatus3xx
	case 4:
		return CauseStatus4xx
	case 5:
		return CauseStatus5xx
	}
	return CauseStatusOther
}

// causeOfError judges an error by what reverse_proxy returns, and others by the
// status that they are answered with.
func causeOfError(err error) (Cause, int) {
	handlerErr, _ := errors.AsType[caddyhttp.HandlerError](err)
	timeout, _ := errors.AsType[net.Error](err)
	_, network := errors.AsType[*net.OpError](err)
	switch {
	case errors.Is(err, context.Canceled) || handlerErr.StatusCode == statusCanceled:
		return CauseCanceled, 0
	case isUnreachable(err):
		return CauseUnreachable, 0
	case timeout != nil && timeout.Timeout():
		return CauseTimeout, 0
	case network, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		// the rest of what its transports return has no types
		handlerErr.StatusCode == http.StatusBadGateway && strings.HasPrefix(handlerErr.Trace, "reverseproxy."):
		return CauseConnectionBroken, 0
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

// maxFailures is how many failures are remembered, for lookups. Each takes about
// 250 bytes.
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
	failure
	number  int
	expires time.Time
}

// add remembers the failure for as long as a success would be: with a shared
// store, another instance may have one that this instance does not see.
func (l *failureLog) add(k failureKey, f failure, retention time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil {
		l.last = make(map[failureKey]rememberedFailure)
	}
	oldest := &l.order[l.number%maxFailures]
	if l.last[*oldest].number == l.number-maxFailures { // it has not failed again since
		delete(l.last, *oldest)
	}
	*oldest = k
	l.last[k] = rememberedFailure{f, l.number, f.Time.Add(retention)}
	l.number++
}

// remove is for an event that was delivered after all.
func (l *failureLog) remove(k failureKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.last, k)
}

// find returns the last failure of an event, or nil.
func (l *failureLog) find(k failureKey) *failure {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f, ok := l.last[k]; ok && time.Now().Before(f.expires) {
		return &f.failure
	}
	return nil
}
