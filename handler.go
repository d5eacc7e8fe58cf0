package buzzbip

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// ResultHeader is the response header that names the [result] of a request that
// did not reach the next handlers although nothing was wrong with it, such as
// `duplicate`.
//
// [result]: https://github.com/buzzbip/caddy-webhook/blob/main/docs/CONFIGURATION.md#what-the-sender-gets
const ResultHeader = webhook.ResultHeader

// retryAfter is the value of Retry-After, in seconds.
const retryAfter = "10"

// ServeHTTP takes a request through its steps, the cheapest first. A request that
// fails a step leaves no state behind.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if d := redeliveryOf(r); d != nil && h.takes(d, r) {
		return h.redeliver(d, w, r, next)
	}
	if h.Enforce == enforceOff {
		return h.observe(w, r, next)
	}
	state := stateOf(r)
	if err := state.rejectedBefore(r); err != nil {
		return err
	}
	state = newState(r, state)
	defer state.report()
	defer state.reuse(r.Context(), state.body)
	if reason, err := h.admit(state, w, r); reason != "" {
		return h.reject(state, w, r, reason, err)
	}
	if !h.events.match(state.event.Type) {
		return answer(state, w, webhook.ResultIgnored)
	}
	if h.store == nil {
		return h.attempt(state, eventInStore{}).run(w, r, next)
	}
	request := h.claimRequest(state, dedupe.DigestOf(state.body.bytes))
	target := eventInStore{h.store.backing(), request.Scope, request.Key}
	if state.attempt.hasClaimed(target) || deliveries.lead(r, target) {
		// another buzzbip_webhook has claimed the event and passed it on to us
		return h.attempt(state, target).run(w, r, next)
	}
	if h.inbox != nil {
		if err := h.inbox.await(r.Context(), h.waitLeft(state)); err != nil {
			return h.reject(state, w, r, webhook.ReasonStoreUnavailable, fmt.Errorf("the inbox does not answer: %w", err))
		}
	}
	turn := h.enter(state, r)
	defer turn.Leave()
	verdict, err := h.claim(state, r, request)
	if err != nil {
		reason, err := claimRejection(err)
		return h.reject(state, w, r, reason, err)
	}
	switch verdict.State {
	case dedupe.Delivered:
		return answer(state, w, webhook.ResultDuplicate)
	case dedupe.Conflicting:
		return answer(state, w, webhook.ResultConflict)
	}
	a := h.attempt(state, target)
	a.claim, a.claimed, a.turn = verdict.Claim, true, turn
	if h.inbox != nil {
		return a.runWithInbox(w, r, next)
	}
	return a.run(w, r, next)
}

func (h *Handler) claimRequest(state *requestState, digest dedupe.Digest) dedupe.Request {
	return dedupe.Request{
		Scope:     state.key.scope,
		Key:       dedupe.KeyOf(state.event.ID),
		Digest:    digest,
		Lease:     h.answerWithin + h.deliveryTimeout + leaseMargin,
		Retention: h.retention,
	}
}

// claim asks the store for the right to deliver the event.
func (h *Handler) claim(state *requestState, r *http.Request, request dedupe.Request) (dedupe.Verdict, error) {
	verdict, err := h.claimOrWait(state, r, request)
	if err != nil || verdict.State != dedupe.Conflicting {
		return verdict, err
	}
	h.reportConflict(state, r)
	if h.OnConflict != onConflictDeliver {
		return verdict, nil
	}
	request.Redeliver = true
	return h.claimOrWait(state, r, request)
}

// claimRejection returns the reason of an error of claim.
func claimRejection(err error) (webhook.Reason, error) {
	switch {
	case errors.Is(err, dedupe.ErrInFlight):
		return webhook.ReasonInFlight, err
	case errors.Is(err, dedupe.ErrFull):
		return webhook.ReasonStoreFull, err
	}
	return webhook.ReasonStoreUnavailable, fmt.Errorf("the store of event IDs does not answer: %w", err)
}

func (h *Handler) reportConflict(state *requestState, r *http.Request) {
	metrics.conflicts.Inc()
	state.remote = remoteAddress(r)
	h.logger.Error("event has the ID of a delivered event, but another body", append(endpoint(r),
		zap.String("event_id", state.event.ID),
		zap.String("event_type", state.event.Type),
		zap.String("secret", state.key.label))...)
	arrivedAt, _ := arrivedFrom(r)
	h.app.notices.add(noticeConflict, map[string]any{
		"event_id": state.event.ID, "event_type": state.event.Type, "secret": state.key.label, "host": r.Host, "path": arrivedAt.Path,
	})
}

// claimOrWait is claim of the store. While the event is in flight it waits, if
// there is memory for that.
func (h *Handler) claimOrWait(state *requestState, r *http.Request, request dedupe.Request) (dedupe.Verdict, error) {
	verdict, err := h.claimNow(state, r, request)
	if !errors.Is(err, dedupe.ErrInFlight) || state.observed || !underWay.hold(state.cost(), h.maxInFlight) {
		return verdict, err
	}
	defer underWay.unhold(state.cost())
	request.Wait = h.waitLeft(state)
	return h.claimNow(state, r, request)
}

func (h *Handler) claimNow(state *requestState, r *http.Request, request dedupe.Request) (verdict dedupe.Verdict, err error) {
	verdict, state.now, err = h.store.claim(r.Context(), request, state.now)
	return verdict, err
}

// waitLeft returns how much longer the event may wait.
func (h *Handler) waitLeft(state *requestState) time.Duration {
	return max(h.answerBy(state).Sub(state.now), 0)
}

// answerBy returns when the sender is to be told about its event.
func (h *Handler) answerBy(state *requestState) time.Time { return state.arrived.Add(h.answerWithin) }

// admit verifies a request and completes state with its event and body. If a step
// fails, it returns the reason.
func (h *Handler) admit(state *requestState, w http.ResponseWriter, r *http.Request) (webhook.Reason, error) {
	signature, reason, err := admitHeaders(r)
	if err != nil {
		return reason, err
	}
	body, reason, err := h.readBody(w, r, state.start)
	if err != nil {
		return reason, err
	}
	return h.verify(state, body, signature)
}

// admitHeaders is the part of admit that needs no body.
func admitHeaders(r *http.Request) (signature [sha256.Size]byte, reason webhook.Reason, err error) {
	if r.Method != http.MethodPost {
		return signature, webhook.ReasonMethodNotAllowed, fmt.Errorf("webhooks are sent with POST, not %s", r.Method)
	}
	return webhook.ParseSignature(r.Header)
}

// verify is the part of admit that needs the whole body. It completes state with the
// event.
func (h *Handler) verify(state *requestState, body []byte, signature [sha256.Size]byte) (webhook.Reason, error) {
	key := h.secrets.verify(body, signature)
	if key == nil {
		recycle(body)
		return webhook.ReasonSignatureMismatch, errors.New("the signature is not that of the body under any of the secrets")
	}
	state.key, state.now = key, time.Now()
	state.arrived = state.now
	key.matched(state.now)
	event, err := webhook.ParseEvent(body, h.requires)
	if err != nil {
		return webhook.ReasonEnvelopeInvalid, fmt.Errorf("the envelope of the event is invalid: %w", err)
	}
	state.setEvent(event, body)
	age := state.now.Sub(event.Created)
	if !event.Created.IsZero() {
		metrics.eventAge.Observe(max(age, 0).Seconds())
	}
	if h.maxAge > 0 {
		switch {
		case age > h.maxAge:
			return webhook.ReasonEventStale, fmt.Errorf("the event is older than max_age: created %s", event.CreatedAt)
		case age < -webhook.ClockSkew:
			return webhook.ReasonEventFromFuture, fmt.Errorf("the event is from the future: created %s", event.CreatedAt)
		}
	}
	return "", nil
}

// answer acknowledges a request that does not reach the next handlers.
func answer(state *requestState, w http.ResponseWriter, result webhook.Result) error {
	state.result, state.now = result, time.Now()
	w.Header().Set(webhook.ResultHeader, string(result))
	w.WriteHeader(http.StatusOK)
	return nil
}

// reject returns the error that the sender gets.
func (h *Handler) reject(state *requestState, w http.ResponseWriter, r *http.Request, reason webhook.Reason, err error) error {
	state.reason, state.now, state.remote = reason, time.Now(), remoteAddress(r)
	switch reason {
	case webhook.ReasonUnhandled:
		state.result = webhook.ResultFailed
	case webhook.ReasonInFlight:
		state.result = webhook.ResultInFlight
		w.Header().Set(webhook.ResultHeader, string(webhook.ResultInFlight))
	default:
		state.result = webhook.ResultRejected
	}
	switch reason.Status() {
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", http.MethodPost)
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", retryAfter)
	}
	if reason != webhook.ReasonUnhandled { // that is logged as a failed delivery
		h.logRejection(state, r, err)
	}
	if reason.Status() == http.StatusServiceUnavailable && !h.errorRoutes && state.attempt == nil {
		// as Caddy answers an error, but without an entry in its error log for
		// each: in an outage there may be many
		w.WriteHeader(reason.Status())
		return nil
	}
	return caddyhttp.Error(reason.Status(), err)
}

func (h *Handler) logRejection(state *requestState, r *http.Request, err error) {
	level := zapcore.WarnLevel
	if state.reason == webhook.ReasonStoreUnavailable {
		level = zapcore.ErrorLevel
	}
	h.sampled.log(h.logger, level, "request rejected", string(state.reason), func() []zap.Field { return rejectionFields(state, r, err) })
}

func rejectionFields(state *requestState, r *http.Request, err error) []zap.Field {
	fields := append(endpoint(r),
		zap.String("reason", string(state.reason)),
		zap.String("remote_addr", r.RemoteAddr),
		zap.Error(err))
	if state.verified() {
		fields = append(fields, zap.String("event_id", state.event.ID), zap.String("event_type", state.event.Type))
	}
	return fields
}

// remoteAddress returns the address of the sender, without a port. Behind trusted
// proxies it is not theirs.
func remoteAddress(r *http.Request) string {
	address, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	return address
}

// endpoint returns the fields that tell one webhook of several from the others.
func endpoint(r *http.Request) []zap.Field {
	arrivedAt, _ := arrivedFrom(r)
	return []zap.Field{zap.String("host", r.Host), zap.String("path", arrivedAt.Path)}
}
