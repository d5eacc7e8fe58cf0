package buzzbip

import (
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

// retryAfter is when a sender may come back, in seconds.
const retryAfter = "10"

// ServeHTTP takes a delivery through its steps, from the cheapest to the
// dearest: what one of them refuses leaves no trace and costs no more.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	d := newDelivery(r)
	defer h.report(d, r, time.Now())
	if reason, err := h.admit(d, w, r); reason != "" {
		return h.refuse(d, w, r, reason, err)
	}
	if !h.events.match(d.event.Type) {
		return answer(d, w, webhook.ResultIgnored)
	}
	if h.store == nil {
		return (&attempt{Handler: h, d: d, event: d.event}).run(w, r, next)
	}

	request := dedupe.Request{
		Scope:     d.key.scope,
		Key:       dedupe.KeyOf(d.event.ID),
		Digest:    dedupe.DigestOf(d.body),
		Wait:      h.duplicateWait,
		Lease:     h.deliveryTimeout + leaseMargin,
		Retention: h.retention,
	}
	if d.claimed || chains.lead(r, &request) {
		// another buzzbip_webhook has handed this very delivery on to us
		return (&attempt{Handler: h, d: d, event: d.event, request: &request}).run(w, r, next)
	}
	claimed := time.Now()
	verdict, err := h.store.Claim(r.Context(), request)
	if err == nil && verdict.State == dedupe.Conflicting {
		metrics.conflicts.Inc()
		h.logger.Error("an event arrived with the id of another that was delivered", append(endpoint(r),
			zap.String("event_id", d.event.ID),
			zap.String("event_type", d.event.Type),
			zap.String("secret", d.key.label))...)
		if h.OnConflict == onConflictDeliver {
			request.Redeliver = true
			request.Wait = max(h.duplicateWait-time.Since(claimed), 0)
			verdict, err = h.store.Claim(r.Context(), request)
		}
	}
	switch {
	case errors.Is(err, dedupe.ErrInFlight):
		return h.refuse(d, w, r, webhook.ReasonInFlight, err)
	case errors.Is(err, dedupe.ErrFull):
		return h.refuse(d, w, r, webhook.ReasonStoreFull, err)
	case err != nil:
		return h.refuse(d, w, r, webhook.ReasonStoreUnavailable, fmt.Errorf("the store of event ids does not answer: %w", err))
	}
	switch verdict.State {
	case dedupe.Delivered:
		return answer(d, w, webhook.ResultDuplicate)
	case dedupe.Conflicting:
		return answer(d, w, webhook.ResultConflict)
	}
	return (&attempt{Handler: h, d: d, event: d.event, request: &request, claim: &verdict.Claim}).run(w, r, next)
}

// admit verifies a request and completes d with its event and body. A reason
// that is not empty says why it failed.
func (h *Handler) admit(d *delivery, w http.ResponseWriter, r *http.Request) (webhook.Reason, error) {
	if r.Method != http.MethodPost {
		return webhook.ReasonMethodNotAllowed, fmt.Errorf("webhooks are sent with POST, not %s", r.Method)
	}
	signature, reason, err := webhook.ParseSignature(r.Header)
	if err != nil {
		return reason, err
	}
	body, reason, err := h.readBody(w, r)
	if err != nil {
		return reason, err
	}
	key := h.keys.verify(body, signature)
	if key == nil {
		return webhook.ReasonSignatureMismatch, errors.New("the signature is not that of the body under any of the secrets")
	}
	d.key = key
	key.matched()
	if d.event, err = webhook.ParseEvent(body, h.requires); err != nil {
		return webhook.ReasonEnvelopeInvalid, fmt.Errorf("the envelope of the event is invalid: %w", err)
	}
	age := time.Since(d.event.Created)
	if !d.event.Created.IsZero() {
		metrics.eventAge.Observe(max(age, 0).Seconds())
	}
	if h.maxAge > 0 {
		switch {
		case age > h.maxAge:
			return webhook.ReasonEventStale, fmt.Errorf("the event is older than max_age: created %s", d.event.CreatedAt)
		case age < -webhook.ClockSkew:
			return webhook.ReasonEventFromFuture, fmt.Errorf("the event is from the future: created %s", d.event.CreatedAt)
		}
	}
	d.body = body
	return "", nil
}

// answer acknowledges a delivery that does not go to the next handlers.
func answer(d *delivery, w http.ResponseWriter, result webhook.Result) error {
	d.result = result
	w.Header().Set(webhook.ResultHeader, string(result))
	w.WriteHeader(http.StatusOK)
	return nil
}

// refuse turns a refusal into the error that the sender gets.
func (h *Handler) refuse(d *delivery, w http.ResponseWriter, r *http.Request, reason webhook.Reason, err error) error {
	d.reason = reason
	switch reason {
	case webhook.ReasonUnhandled:
		d.result = webhook.ResultFailed
	case webhook.ReasonInFlight:
		d.result = webhook.ResultInFlight
		w.Header().Set(webhook.ResultHeader, string(webhook.ResultInFlight))
	default:
		d.result = webhook.ResultRejected
	}
	status := reason.Status()
	switch status {
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", http.MethodPost)
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", retryAfter)
	}
	if reason == webhook.ReasonUnhandled { // logged as a failed delivery
		return caddyhttp.Error(status, err)
	}
	level := zapcore.WarnLevel
	if reason == webhook.ReasonStoreUnavailable {
		level = zapcore.ErrorLevel
	}
	h.sampled.log(h.logger, level, "refused: "+string(reason), func() []zap.Field {
		fields := append(endpoint(r), zap.String("remote_addr", r.RemoteAddr), zap.Error(err))
		if d.verified() {
			fields = append(fields, zap.String("event_id", d.event.ID), zap.String("event_type", d.event.Type))
		}
		return fields
	})
	return caddyhttp.Error(status, err)
}

// endpoint tells those who have several webhooks which one a request is for.
func endpoint(r *http.Request) []zap.Field {
	path := r.URL.Path
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		path = original.URL.Path
	}
	return []zap.Field{zap.String("host", r.Host), zap.String("path", path)}
}
