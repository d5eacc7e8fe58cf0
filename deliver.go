package buzzbip

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// awaitDeliveries keeps the process from ending, within the grace period,
// before deliveries whose sender has disconnected: over HTTP/2 and HTTP/3 no
// connection is left that a server waits for.
func awaitDeliveries(gracePeriod context.Context) error {
	for caddy.Exiting() && deliveries.count() > 0 {
		select {
		case <-gracePeriod.Done():
			return fmt.Errorf("deliveries under way are cut off: %w", context.Cause(gracePeriod))
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// attempt is one delivery of an event to the next handlers. It has all that a
// delivery needs in one allocation, with the state of the request. It is not reused:
// a transport may still read from it after the delivery.
type attempt struct {
	*Handler
	state     *requestState
	event     webhook.Event // that of state, which a buzzbip_webhook behind this one uses too
	outer     *attempt      // by an earlier handler, in progress in the same request
	target    eventInStore  // zero without deduplication
	claim     dedupe.Claim
	claimed   bool        // and claim is not settled yet
	turn      *inbox.Turn // nil without an order key
	delivered bool
	start     time.Time
	memory    int64   // what the delivery takes of underWay
	keeper    *keeper // nil unless the event goes to an inbox if the delivery fails
	cancel    context.CancelFunc

	values   valuesOf // of the sender's context
	context  deliveryContext
	sent     sending
	recorder responseRecorder
	settling lazyTimeout
}

// attempt returns a new attempt to deliver the event. It starts now.
func (h *Handler) attempt(state *requestState, target eventInStore) *attempt {
	a := state.spare
	if a == nil {
		a = new(attempt)
	}
	state.spare = nil
	a.Handler, a.state, a.event, a.target, a.start = h, state, state.event, target, state.now
	a.recorder.onSuccess = a
	return a
}

// hasClaimed reports whether a, or an attempt around it, has claimed an event.
func (a *attempt) hasClaimed(target eventInStore) bool {
	for ; a != nil; a = a.outer {
		// also if the event was stored meanwhile: it is still being delivered
		if a.target == target && (a.holdsClaim() || a.keeper != nil && a.keeper.isKeptOrPending()) {
			return true
		}
	}
	return false
}

// acquireMemory takes memory for the delivery, which then starts.
func (a *attempt) acquireMemory(r *http.Request) error {
	a.memory = a.state.cost()
	if a.state.attempt != nil || deliveries.contain(r) {
		underWay.add(a.memory) // the delivery that it is part of would wait for itself
		return nil
	}
	waited, err := underWay.acquire(r.Context(), a.memory, a.maxInFlight, a.waitLeft(a.state))
	if waited {
		a.state.now = time.Now()
		a.start = a.state.now
	}
	return err
}

// tryMemory takes memory for the delivery if there is enough without waiting.
func (a *attempt) tryMemory() bool {
	a.memory = a.state.cost()
	_, err := underWay.acquire(context.Background(), a.memory, a.maxInFlight, 0)
	return err == nil
}

// run passes the event to the next handlers and settles the claim by their answer.
func (a *attempt) run(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) (err error) {
	err = a.awaitTurn(r)
	if err == nil {
		err = a.acquireMemory(r)
	}
	if err != nil {
		a.settle()
		return a.reject(a.state, w, r, webhook.ReasonOverloaded, err)
	}
	defer underWay.release(a.memory)
	return a.deliver(w, r, next)
}

// deliver is run when there is memory.
func (a *attempt) deliver(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) (err error) {
	a.context.sender = r.Context()
	a.values.Context = a.context.sender
	// the delivery goes on if the sender disconnects
	ctx, cancel := context.WithDeadline(&a.values, a.start.Add(a.deliveryTimeout))
	defer cancel()
	if a.keeper == nil && redeliveryOf(r) != nil {
		defer context.AfterFunc(a.context.sender, cancel)() // its context ends with the process
	}
	a.cancel = cancel
	token := rand.Text()
	a.sent.token[0] = token // the next handlers may change it, as request_header does
	deliveries.add(token, a)
	defer deliveries.remove(token)

	a.state.result, a.state.timeout = webhook.ResultFailed, a.deliveryTimeout
	a.outer, a.state.attempt = a.state.attempt, a
	defer func() {
		panicked := recover()
		a.state.attempt = a.outer
		a.state.now = time.Now()
		duration := a.state.now.Sub(a.start)
		if !a.delivered {
			defer a.settle() // also if the error that is reported makes that panic
			a.failOrKeep(r, duration, err, panicked, errors.Is(ctx.Err(), context.DeadlineExceeded))
		}
		a.state.typeSeries().duration().Observe(duration.Seconds())
		if a.context.sender.Err() != nil && (a.keeper == nil || !a.keeper.isKept()) {
			metrics.abandoned.Inc()
		}
		if panicked != nil {
			panic(panicked) // the stack trace is still that of the first panic
		}
	}()

	a.context.delivery = a.sent.trace(ctx)
	defer a.context.ended.Store(true)
	// not a copy: placeholders and handlers that read or replace the body must
	// work on the request that goes to the backend
	*r = *r.WithContext(&a.context)
	a.sent.prepare(r, a.state.body)
	// placeholders of a fork read its request; to ask them would prepare them for every event
	if _, beside := a.context.sender.(*fork); !beside && !placeholdersRead(r) {
		setBodyPlaceholders(r, a.state.body)
	}
	a.recorder.ResponseWriterWrapper = caddyhttp.ResponseWriterWrapper{ResponseWriter: w}
	err = next.ServeHTTP(&a.recorder, r)
	if a.recorder.status != 0 {
		if a.recorder.inFlight() && a.holdsClaim() {
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

// failOrKeep reports a failed delivery, and keeps its event also if that panics.
func (a *attempt) failOrKeep(r *http.Request, duration time.Duration, err error, panicked any, timedOut bool) {
	if a.keeper != nil {
		defer func() { a.keeper.failed(outcomeOf(a.state.failure, a.recorder.Header())) }()
	}
	a.fail(r, duration, err, panicked, timedOut)
}

// valuesOf is a context as [context.WithoutCancel] returns it, without an allocation
// of its own.
type valuesOf struct{ context.Context }

// Deadline implements [context.Context].
func (valuesOf) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done implements [context.Context].
func (valuesOf) Done() <-chan struct{} { return nil }

// Err implements [context.Context].
func (valuesOf) Err() error { return nil }

// deliveryContext is the context of a request while the next handlers run. After
// that it becomes the sender's again. It cannot be replaced in the request then,
// since a transport may still read the request, to send the rest of the body.
type deliveryContext struct {
	delivery, sender context.Context
	ended            atomic.Bool
}

func (c *deliveryContext) current() context.Context {
	if c.ended.Load() {
		return c.sender
	}
	return c.delivery
}

// Deadline implements [context.Context].
func (c *deliveryContext) Deadline() (time.Time, bool) { return c.current().Deadline() }

// Done implements [context.Context].
func (c *deliveryContext) Done() <-chan struct{} { return c.current().Done() }

// Err implements [context.Context].
func (c *deliveryContext) Err() error { return c.current().Err() }

// Value implements [context.Context].
func (c *deliveryContext) Value(key any) any { return c.current().Value(key) }

// succeed is called when the next handlers write a 2xx, before the sender sees
// it.
func (a *attempt) succeed(status int) int {
	a.delivered, a.state.result = true, webhook.ResultDelivered
	traffic.attempt(true, time.Now())
	if a.settle() {
		failures.remove(a.failureKey())
	}
	return status
}

// holdsClaim reports whether the claim is still to be settled. A keeper may settle
// it while the delivery goes on.
func (a *attempt) holdsClaim() bool {
	if a.keeper != nil {
		a.keeper.mu.Lock()
		defer a.keeper.mu.Unlock()
	}
	return a.claimed
}

// settle settles the claim, and reports whether that was still to be done.
func (a *attempt) settle() bool {
	if !a.holdsClaim() {
		return false
	}
	a.settleAs(a.claim, a.delivered)
	return true
}

// settleAs settles the claim, which a still holds.
func (a *attempt) settleAs(claim dedupe.Claim, delivered bool) {
	a.claimed = false
	defer a.settling.stop()
	if err := a.store.settle(&a.settling, claim, delivered); err != nil {
		a.sampled.log(a.logger, zapcore.ErrorLevel, "failed to record the outcome of a delivery", "", func() []zap.Field {
			return []zap.Field{zap.String("event_id", a.event.ID), zap.Bool("delivered", delivered), zap.Error(err)}
		})
	}
}

// lazyTimeout is a context that ends when settleTimeout has passed since its first
// use. A store in memory does not use it, which saves a timer for each delivery.
type lazyTimeout struct {
	once   sync.Once
	ctx    context.Context
	cancel context.CancelFunc
}

func (c *lazyTimeout) started() context.Context {
	c.once.Do(func() { c.ctx, c.cancel = context.WithTimeout(context.Background(), settleTimeout) })
	return c.ctx
}

// stop releases the timer. Nothing may use the context after it.
func (c *lazyTimeout) stop() {
	if c.cancel != nil {
		c.cancel()
	}
}

// Deadline implements [context.Context].
func (c *lazyTimeout) Deadline() (time.Time, bool) { return c.started().Deadline() }

// Done implements [context.Context].
func (c *lazyTimeout) Done() <-chan struct{} { return c.started().Done() }

// Err implements [context.Context].
func (c *lazyTimeout) Err() error { return c.started().Err() }

// Value implements [context.Context].
func (c *lazyTimeout) Value(any) any { return nil }

func (a *attempt) reportChain() {
	a.sampled.log(a.logger, zapcore.ErrorLevel, "the backend waits for the delivery that it is to answer: it is another buzzbip_webhook with the same scope and store; set dedupe off, or another scope, at one of the two", "", func() []zap.Field {
		return []zap.Field{zap.String("event_id", a.event.ID), zap.String("event_type", a.event.Type)}
	})
}
