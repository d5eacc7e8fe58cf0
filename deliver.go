package buzzbip

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// inFlight counts the deliveries that are with the next handlers.
var inFlight atomic.Int64

// awaitDeliveries keeps the process from ending, within the grace period,
// before deliveries whose sender has disconnected: over HTTP/2 and HTTP/3 no
// connection is left that a server waits for.
func awaitDeliveries(gracePeriod context.Context) error {
	for caddy.Exiting() && inFlight.Load() > 0 {
		select {
		case <-gracePeriod.Done():
			return fmt.Errorf("deliveries under way are cut off: %w", context.Cause(gracePeriod))
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// attempt is one delivery of an event to the next handlers.
type attempt struct {
	*Handler
	state     *requestState
	event     webhook.Event // that of state, which a buzzbip_webhook behind this one uses too
	claimable *eventInStore // nil without deduplication
	claim     *dedupe.Claim // nil if there is none to settle
	start     time.Time
	delivered bool
}

// run passes the event to the next handlers and settles the claim by their answer.
func (a *attempt) run(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) (err error) {
	sender := r.Context()
	// the delivery goes on if the sender disconnects
	ctx, cancel := context.WithTimeout(context.WithoutCancel(sender), a.deliveryTimeout)
	defer cancel()
	sent := &sending{body: a.state.body}
	if a.claimable != nil {
		sent.token = rand.Text()
		chains.add(*a.claimable, sent)
		defer chains.remove(*a.claimable, sent)
	}

	a.state.result, a.state.timeout = webhook.ResultFailed, a.deliveryTimeout
	if a.claim != nil {
		a.state.claimed = append(a.state.claimed, *a.claimable)
	}
	rec := &responseRecorder{
		ResponseWriterWrapper: caddyhttp.ResponseWriterWrapper{ResponseWriter: w},
		onSuccess:             a.succeed,
	}
	inFlight.Add(1)
	a.start = time.Now()
	defer func() {
		panicked := recover()
		defer inFlight.Add(-1)
		if !a.delivered {
			defer a.settle() // also if the error that is reported makes that panic
			a.fail(r, rec.status, err, panicked, errors.Is(ctx.Err(), context.DeadlineExceeded))
		}
		metrics.deliveryDuration.WithLabelValues(eventTypeLabel(a.state)).Observe(time.Since(a.start).Seconds())
		if sender.Err() != nil {
			metrics.abandoned.Inc()
		}
		if panicked != nil {
			panic(panicked) // the stack trace is still that of the first panic
		}
	}()

	// not a copy: placeholders and handlers that read or replace the body must
	// work on the request that goes to the backend
	during := newDeliveryContext(sent.trace(ctx))
	defer during.become(sender)
	*r = *r.WithContext(during)
	sent.prepare(r)
	err = next.ServeHTTP(rec, r)
	if rec.status != 0 {
		if a.claim != nil && rec.inFlight() {
			a.reportChain()
		}
		return err
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		if err == nil {
			err = ctx.Err()
		}
		// not wrapped, for a HandlerError would bring its own status
		return caddyhttp.Error(http.StatusGatewayTimeout, fmt.Errorf("the event was not delivered within delivery_timeout: %v", err))
	case err != nil:
		if handlerErr, ok := errors.AsType[caddyhttp.HandlerError](err); ok && handlerErr.StatusCode < 300 && handlerErr.StatusCode != 0 {
			// not wrapped, for its status would acknowledge the event
			return caddyhttp.Error(http.StatusBadGateway, fmt.Errorf("the next handlers returned an error with status %d: %v", handlerErr.StatusCode, handlerErr.Err))
		}
		return err
	}
	return a.reject(a.state, w, r, webhook.ReasonUnhandled, errors.New("no handler after buzzbip_webhook answered: is there a reverse_proxy or the like for this request?"))
}

// deliveryContext is the context of a request while the next handlers run. After
// that it becomes the sender's again. It cannot be replaced in the request then,
// since a transport may still read the request, to send the rest of the body.
type deliveryContext struct {
	current atomic.Pointer[context.Context]
}

func newDeliveryContext(ctx context.Context) *deliveryContext {
	c := new(deliveryContext)
	c.become(ctx)
	return c
}

func (c *deliveryContext) become(ctx context.Context) { c.current.Store(&ctx) }

// Deadline implements [context.Context].
func (c *deliveryContext) Deadline() (time.Time, bool) { return (*c.current.Load()).Deadline() }

// Done implements [context.Context].
func (c *deliveryContext) Done() <-chan struct{} { return (*c.current.Load()).Done() }

// Err implements [context.Context].
func (c *deliveryContext) Err() error { return (*c.current.Load()).Err() }

// Value implements [context.Context].
func (c *deliveryContext) Value(key any) any { return (*c.current.Load()).Value(key) }

// succeed is called when the next handlers write a 2xx, before the sender sees
// it.
func (a *attempt) succeed(status int) int {
	a.delivered, a.state.result = true, webhook.ResultDelivered
	if a.claim != nil {
		failures.remove(a.failureKey())
	}
	a.settle()
	return status
}

func (a *attempt) settle() {
	if a.claim == nil {
		return
	}
	a.state.claimed = slices.DeleteFunc(a.state.claimed, func(e eventInStore) bool { return e == *a.claimable })
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	if err := a.store.Settle(ctx, *a.claim, a.delivered); err != nil {
		a.sampled.log(a.logger, zapcore.ErrorLevel, "failed to record the outcome of a delivery", "", func() []zap.Field {
			return []zap.Field{zap.String("event_id", a.event.ID), zap.Bool("delivered", a.delivered), zap.Error(err)}
		})
	}
}

func (a *attempt) reportChain() {
	a.sampled.log(a.logger, zapcore.ErrorLevel, "the backend waits for the delivery that it is to answer: it is another buzzbip_webhook with the same scope and store; set dedupe off, or another scope, at one of the two", "", func() []zap.Field {
		return []zap.Field{zap.String("event_id", a.event.ID), zap.String("event_type", a.event.Type)}
	})
}
