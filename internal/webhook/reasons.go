package webhook

import "net/http"

// Reason says why a request was rejected. It is the value of the placeholder
// `{http.buzzbip_webhook.reason}` and of the label reason in metrics.
type Reason string

// The reasons. No other is used.
const (
	// ReasonMethodNotAllowed: the method of a rejected request is not POST.
	ReasonMethodNotAllowed Reason = "method_not_allowed"
	// ReasonSignatureMissing: the request has no [SignatureHeader].
	ReasonSignatureMissing Reason = "signature_missing"
	// ReasonSignatureMalformed: [SignatureHeader] is repeated or is not 64 hex digits.
	ReasonSignatureMalformed Reason = "signature_malformed"
	// ReasonBodyTooLarge: the body is larger than max_body_size.
	ReasonBodyTooLarge Reason = "body_too_large"
	// ReasonBodyTimeout: the body did not arrive within read_timeout.
	ReasonBodyTimeout Reason = "body_timeout"
	// ReasonBodyIncomplete: the connection ended before the end of the body.
	ReasonBodyIncomplete Reason = "body_incomplete"
	// ReasonSignatureMismatch: no configured secret gives this signature.
	ReasonSignatureMismatch Reason = "signature_mismatch"
	// ReasonEnvelopeInvalid: [ParseEvent] rejects the body.
	ReasonEnvelopeInvalid Reason = "envelope_invalid"
	// ReasonEventStale: createdAt is older than max_age.
	ReasonEventStale Reason = "event_stale"
	// ReasonEventFromFuture: createdAt is more than [ClockSkew] in the future.
	ReasonEventFromFuture Reason = "event_from_future"
	// ReasonInFlight: the same event is still being delivered, so the sender is asked to retry.
	ReasonInFlight Reason = "in_flight"
	// ReasonStoreUnavailable: the store failed, so the sender is asked to retry.
	ReasonStoreUnavailable Reason = "store_unavailable"
	// ReasonStoreFull: the store is full and when_full forbids forgetting, so the sender is asked to retry.
	ReasonStoreFull Reason = "store_full"
	// ReasonOverloaded: the memory of max_in_flight is in use, so the sender is asked to retry.
	ReasonOverloaded Reason = "overloaded"
	// ReasonUnhandled: no handler after buzzbip_webhook answered.
	ReasonUnhandled Reason = "unhandled"
)

// Reasons lists all reasons, in the order of the steps of a request.
var Reasons = []Reason{
	ReasonMethodNotAllowed, ReasonSignatureMissing, ReasonSignatureMalformed, ReasonBodyTooLarge, ReasonBodyTimeout,
	ReasonBodyIncomplete, ReasonSignatureMismatch, ReasonEnvelopeInvalid, ReasonEventStale, ReasonEventFromFuture,
	ReasonInFlight, ReasonStoreUnavailable, ReasonStoreFull, ReasonOverloaded, ReasonUnhandled,
}

// Status returns the HTTP status of the answer to a request that is rejected for
// r, or 500 if r is not one of [Reasons].
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
	case ReasonInFlight, ReasonStoreUnavailable, ReasonStoreFull, ReasonOverloaded:
		return http.StatusServiceUnavailable
	case ReasonUnhandled:
		return http.StatusBadGateway
	}
	return http.StatusInternalServerError
}

// Signature reports whether r says that the signature is missing or wrong.
func (r Reason) Signature() bool {
	return r == ReasonSignatureMissing || r == ReasonSignatureMalformed || r == ReasonSignatureMismatch
}

// ResultHeader is the response header with the [Result] of a request that is
// valid and yet was not passed to the next handlers.
const ResultHeader = "X-BuzzBip-Result"

// Result is the outcome of a request. It is the value of the placeholder
// `{http.buzzbip_webhook.result}` and of the label result in metrics.
type Result string

// The results. No other is used.
const (
	// ResultDelivered: the next handlers answered with a 2xx.
	ResultDelivered Result = "delivered"
	// ResultFailed: the next handlers answered with another status, or not at all.
	ResultFailed Result = "failed"
	// ResultDuplicate: the event was delivered earlier.
	ResultDuplicate Result = "duplicate"
	// ResultConflict: an event with the same ID and another body was delivered earlier.
	ResultConflict Result = "conflict"
	// ResultIgnored: the type of the event is not one of the option events.
	ResultIgnored Result = "ignored"
	// ResultStored: the event is in the inbox, and will be delivered later.
	ResultStored Result = "stored"
	// ResultInFlight: the same event is still being delivered, so the sender is asked to retry.
	ResultInFlight Result = "in_flight"
	// ResultRejected: the request was rejected for a [Reason] other than [ReasonInFlight].
	ResultRejected Result = "rejected"
)

// WouldBeUnknown is what the result would have been of a request that was only
// observed, and whose body the next handlers did not read to its end.
const WouldBeUnknown Result = "unknown"

// Failure reports whether r is a failure for the sender, which then retries.
func (r Result) Failure() bool {
	return r == ResultFailed || r == ResultInFlight || r == ResultRejected
}

// Results lists all results.
var Results = []Result{ResultDelivered, ResultFailed, ResultStored, ResultDuplicate, ResultConflict, ResultIgnored, ResultInFlight, ResultRejected}

// Cause says why a delivery failed, see [ResultFailed].
type Cause string

// The causes. No other is used.
const (
	// CauseStatus3xx: the backend answered with a redirect, which nobody follows.
	CauseStatus3xx Cause = "status_3xx"
	// CauseStatus4xx: the backend answered with a 4xx.
	CauseStatus4xx Cause = "status_4xx"
	// CauseStatus5xx: the backend answered with a 5xx.
	CauseStatus5xx Cause = "status_5xx"
	// CauseStatusOther: the backend answered with a status outside of 200 to 599.
	CauseStatusOther Cause = "status_other"
	// CauseUnreachable: there was no connection to a backend, or no healthy backend.
	CauseUnreachable Cause = "unreachable"
	// CauseTimeout: there was no answer within delivery_timeout or a timeout of the next handlers.
	CauseTimeout Cause = "timeout"
	// CauseConnectionBroken: the connection ended before the answer did, or the answer was not HTTP.
	CauseConnectionBroken Cause = "connection_broken"
	// CauseCanceled: a handler canceled the delivery, as abort does.
	CauseCanceled Cause = "canceled"
	// CauseUnhandled: no handler after buzzbip_webhook answered.
	CauseUnhandled Cause = "unhandled"
	// CausePanic: a handler panicked.
	CausePanic Cause = "panic"
)

// Causes lists all causes.
var Causes = []Cause{
	CauseStatus3xx, CauseStatus4xx, CauseStatus5xx, CauseStatusOther, CauseUnreachable, CauseTimeout,
	CauseConnectionBroken, CauseCanceled, CauseUnhandled, CausePanic,
}
