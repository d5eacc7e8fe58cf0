package webhook

import "net/http"

// Reason says why a request was refused. It is what the placeholder
// `{http.buzzbip_webhook.reason}` is replaced by.
type Reason string

// The reasons are a closed set.
const (
	ReasonMethodNotAllowed   Reason = "method_not_allowed"
	ReasonSignatureMissing   Reason = "signature_missing"
	ReasonSignatureMalformed Reason = "signature_malformed"
	ReasonBodyTooLarge       Reason = "body_too_large"
	ReasonBodyTimeout        Reason = "body_timeout"
	ReasonBodyIncomplete     Reason = "body_incomplete"
	ReasonSignatureMismatch  Reason = "signature_mismatch"
	ReasonEnvelopeInvalid    Reason = "envelope_invalid"
	ReasonEventStale         Reason = "event_stale"
	ReasonEventFromFuture    Reason = "event_from_future"
	ReasonInFlight           Reason = "in_flight"
	ReasonStoreUnavailable   Reason = "store_unavailable"
	ReasonStoreFull          Reason = "store_full"
	ReasonUnhandled          Reason = "unhandled"
)

// Reasons are all reasons.
var Reasons = []Reason{
	ReasonMethodNotAllowed, ReasonSignatureMissing, ReasonSignatureMalformed, ReasonBodyTooLarge, ReasonBodyTimeout,
	ReasonBodyIncomplete, ReasonSignatureMismatch, ReasonEnvelopeInvalid, ReasonEventStale, ReasonEventFromFuture,
	ReasonInFlight, ReasonStoreUnavailable, ReasonStoreFull, ReasonUnhandled,
}

// Status returns the HTTP status that a request refused for r is answered with.
func (r Reason) Status() int {
	switch r {
	case ReasonMethodNotAllowed:
		return http.StatusMethodNotAllowed
	case ReasonSignatureMissing, ReasonSignatureMalformed, ReasonSignatureMismatch:
		return http.StatusUnauthorized
	case ReasonBodyTooLarge:
		return http.StatusRequestEntityTooLarge
	case ReasonBodyTimeout:
		return http.StatusRequestTimeout
	case ReasonBodyIncomplete, ReasonEnvelopeInvalid:
		return http.StatusBadRequest
	case ReasonEventStale, ReasonEventFromFuture:
		return http.StatusForbidden
	case ReasonInFlight, ReasonStoreUnavailable, ReasonStoreFull:
		return http.StatusServiceUnavailable
	case ReasonUnhandled:
		return http.StatusBadGateway
	}
	return http.StatusInternalServerError
}

// ResultHeader tells the sender the result of a request that did not reach the
// next handlers although nothing was wrong with it.
const ResultHeader = "X-BuzzBip-Result"

// Result says what became of a request. It is what the placeholder
// `{http.buzzbip_webhook.result}` is replaced by.
type Result string

// The results are a closed set.
const (
	// ResultDelivered: the next handlers answered 2xx.
	ResultDelivered Result = "delivered"
	// ResultFailed: the next handlers answered anything else, or nothing.
	ResultFailed Result = "failed"
	// ResultDuplicate: the event was delivered before.
	ResultDuplicate Result = "duplicate"
	// ResultConflict: another body was delivered under the event's id before.
	ResultConflict Result = "conflict"
	// ResultIgnored: the event's type is not among those to pass on.
	ResultIgnored Result = "ignored"
	// ResultInFlight: the event was still being delivered when a duplicate of
	// it had waited long enough.
	ResultInFlight Result = "in_flight"
	// ResultRejected: the request was refused for another [Reason].
	ResultRejected Result = "rejected"
)

// Failure reports whether the sender is to send the event again.
func (r Result) Failure() bool {
	return r == ResultFailed || r == ResultInFlight || r == ResultRejected
}

// Results are all results.
var Results = []Result{ResultDelivered, ResultFailed, ResultDuplicate, ResultConflict, ResultIgnored, ResultInFlight, ResultRejected}

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

// Causes are all causes.
var Causes = []Cause{
	CauseStatus3xx, CauseStatus4xx, CauseStatus5xx, CauseStatusOther, CauseUnreachable, CauseTimeout,
	CauseConnectionBroken, CauseCanceled, CauseUnhandled, CausePanic,
}
