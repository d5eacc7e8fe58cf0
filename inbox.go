package buzzbip

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
)

// inboxNamespace is where Caddy finds the inboxes.
const inboxNamespace = "http.buzzbip_webhook.inboxes"

// exitGrace is how long redeliveries under way may take when the process ends.
var exitGrace = 10 * time.Second

// dispatchers has a dispatcher for each place where inboxes keep their events. It
// outlives the configuration.
var dispatchers = caddy.NewUsagePool()

type pooledDispatcher struct {
	*inbox.Dispatcher
	room  *room
	store inbox.Store
}

// Destruct implements [caddy.Destructor].
func (d pooledDispatcher) Destruct() error {
	ctx, cancel := context.WithTimeout(context.Background(), exitGrace)
	defer cancel()
	d.Stop(ctx)
	if stats := d.store.Stats(); stats.Waiting > 0 && !caddy.Exiting() {
		caddy.Log().Named("http.handlers.buzzbip_webhook").Warn("the inbox is not in the configuration any more, but events wait in it; put it back to have them delivered",
			zap.String("path", stats.Backing), zap.Int("events", stats.Waiting))
	}
	return nil
}

// room tells whether an inbox is full. It depends on the sizes of events when it is.
type room struct{ full atomic.Int64 }

// learn takes into account how keeping an event has ended.
func (r *room) learn(err error, stats func() inbox.Stats) {
	switch {
	case err == nil:
		r.full.Store(0)
	case errors.Is(err, inbox.ErrFull):
		r.full.Store(stats().Bytes + 1)
	}
}

// isFull reports whether the last event had no room, and nothing has left the inbox
// since.
func (r *room) isFull(stats inbox.Stats) bool {
	full := r.full.Load()
	return full > 0 && stats.Bytes >= full-1
}

// inboxUse is the inbox of a handler.
type inboxUse struct {
	inbox.Module
	kind       string
	backing    string            // set by startInboxes
	dispatcher *inbox.Dispatcher // set by startInboxes
	room       *room             // set by startInboxes
	started    chan struct{}     // closed by startInboxes
	stop       func()            // undoes startInboxes; nil before it and after
}

// await waits until the inbox is open. Caddy starts its apps in any order, so there
// may be requests before.
func (in *inboxUse) await(ctx context.Context, wait time.Duration) error {
	select {
	case <-in.started:
		return nil
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	select {
	case <-in.started:
		return nil
	case <-ctx.Done():
		return errors.New("it is not open yet")
	}
}

func (h *Handler) provisionInbox(ctx caddy.Context) error {
	if h.InboxRaw == nil {
		return nil
	}
	module, err := ctx.LoadModule(h, "InboxRaw")
	if err != nil {
		return fmt.Errorf("loading inbox: %w", err)
	}
	h.inbox = &inboxUse{Module: module.(inbox.Module), kind: module.(caddy.Module).CaddyModule().ID.Name(), started: make(chan struct{})}
	if h.server, _ = ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); h.server != nil {
		h.server.RegisterConnContext(withConnection)
	}
	policy := h.inbox.Policy()
	// as long as the event can be in the inbox, and then as if it was delivered
	h.keptRetention = policy.DeadAfter + policy.KeepDead + h.retention
	return nil
}

// startInboxes opens the inboxes.
func (a *App) startInboxes() error {
	first := make(map[string]*Handler)
	for _, h := range a.handlers {
		if h.inbox == nil {
			continue
		}
		if starter, ok := h.inbox.Module.(inbox.Starter); ok {
			if err := starter.Start(); err != nil {
				return fmt.Errorf("inbox %s: %w", h.inbox.kind, err)
			}
		}
		h.inbox.backing = h.inbox.kind + " " + h.inbox.Stats().Backing
		pooled, _, err := dispatchers.LoadOrNew(h.inbox.backing, func() (caddy.Destructor, error) {
			return pooledDispatcher{inbox.NewDispatcher(h.inbox.Module), new(room), h.inbox.Module}, nil
		})
		if err != nil {
			return err
		}
		backing, dispatcher := h.inbox.backing, pooled.(pooledDispatcher).Dispatcher
		h.inbox.room = pooled.(pooledDispatcher).room
		release := func() { _, _ = dispatchers.Delete(backing) }
		h.inbox.dispatcher, h.inbox.stop = dispatcher, release
		close(h.inbox.started)
		if first[backing] == nil {
			first[backing] = h
		}
		if err := sameOptions(first[backing].inbox, h.inbox); err != nil {
			return err
		}
		for _, result := range attemptResults {
			metrics.inboxAttempts.WithLabelValues(result) // so that Prometheus sees the first one
		}
	}
	return nil
}

// activateInboxes lets the dispatchers work by this configuration. It is called when
// all apps have started: before that, a redelivery could find a server that is still
// starting, or a configuration that then fails to start.
func (a *App) activateInboxes() {
	for _, h := range a.inboxes() {
		backing, release := h.inbox.backing, h.inbox.stop
		deactivate := h.inbox.dispatcher.Activate(inbox.Config{
			Policy:   h.inbox.Policy(),
			Deliver:  func(ctx context.Context, e inbox.Event) inbox.Outcome { return a.redeliver(ctx, backing, e) },
			Remember: func(ctx context.Context, e inbox.Event) error { return a.remember(ctx, backing, e) },
			Hooks:    a.inboxHooks(h),
		})
		h.inbox.stop = func() { deactivate(); release() }
	}
}

// sameOptions returns an error if two handlers with one inbox give it different
// options.
func sameOptions(first, other *inboxUse) error {
	options, others := first.Effective(), other.Effective()
	for _, name := range slices.Sorted(maps.Keys(options)) {
		if options[name] != others[name] {
			return fmt.Errorf("two handlers have the inbox %s, but %s is %q in one and %q in the other: give both the same options, or one of them another path",
				first.backing, name, options[name], others[name])
		}
	}
	return nil
}

// stopInboxes releases the inboxes. Deliveries of this configuration that are still
// under way can use them as long as the next one does.
func (a *App) stopInboxes() {
	for _, h := range a.handlers {
		if h.inbox != nil && h.inbox.stop != nil {
			h.inbox.stop()
			h.inbox.stop = nil
		}
	}
}

func (a *App) inboxHooks(h *Handler) inbox.Hooks {
	fields := func(e inbox.Event) []zap.Field {
		return []zap.Field{zap.String("event_id", e.ID), zap.String("event_type", e.Type), zap.Int64("number", e.Number), zap.Int("attempts", e.Attempts)}
	}
	return inbox.Hooks{
		Redelivered: func(_ inbox.Event, o inbox.Outcome) {
			switch {
			case o.Accepted:
				metrics.inboxAttempts.WithLabelValues(attemptAccepted).Inc()
			case !o.NoAttempt:
				metrics.inboxAttempts.WithLabelValues(attemptFailed).Inc()
			}
		},
		Died: func(e inbox.Event) {
			msg := "event is dead: the backend has not accepted it, and it is not delivered again unless you ask for it"
			if e.OrderKey != "" {
				msg += "; the next event with the same key of order_by passes it"
			}
			h.logger.Error(msg,
				append(fields(e), zap.Int("status", e.Last.Status), zap.String("cause", e.Last.Cause))...)
			a.notices.add(noticeDead, map[string]any{
				"event_id": e.ID, "event_type": e.Type, "number": e.Number, "attempts": e.Attempts, "status": e.Last.Status, "cause": e.Last.Cause,
			})
		},
		Removed: func(dead, delivered int) {
			metrics.inboxExpired.WithLabelValues(string(inbox.Dead)).Add(float64(dead))
			metrics.inboxExpired.WithLabelValues(string(inbox.Delivered)).Add(float64(delivered))
			if dead > 0 {
				h.sampled.log(h.logger, zapcore.WarnLevel, "dead events were removed after keep_dead; the metric inbox_expired_events_total counts them", "", func() []zap.Field { return nil })
			}
		},
		Discarded: func(events, ordered int) {
			h.logger.Warn("events were discarded from the inbox by hand; those with a key of order_by let the next ones with their keys pass",
				zap.Int("events", events), zap.Int("ordered", ordered))
		},
		Trouble: func(doing string, err error) {
			h.logger.Error("inbox: failed, will be tried again", zap.String("doing", doing), zap.Error(err))
		},
	}
}

// handlerFor returns the handler that delivers an event of an inbox, or nil: one
// with this inbox and the scope of the event, on the server that the event has
// arrived at if there is a choice.
func (a *App) handlerFor(backing string, e inbox.Event) (found *Handler) {
	for _, h := range a.handlers {
		if h.inbox == nil || h.inbox.backing != backing || h.server == nil || !h.serves(e.Scope) {
			continue
		}
		if h.server.Name() == e.Request.Server {
			return h
		}
		if found == nil {
			found = h
		}
	}
	return found
}

func (h *Handler) serves(scope string) bool {
	for k := range h.secrets.keys() {
		if k.scope == scope {
			return true
		}
	}
	return false
}

// remember records the ID of an event that the backend has accepted in the store of
// IDs, in place of the record that the event is in the inbox. That is one operation,
// without a claim: other instances see one record or the other, and neither a
// duplicate that is in flight nor a claim that has outlived its process delays it.
func (a *App) remember(ctx context.Context, backing string, e inbox.Event) error {
	h := a.handlerFor(backing, e)
	if h == nil {
		return nil // nobody asks for this scope any more
	}
	return h.store.settle(ctx, dedupe.Claim{
		Request:  dedupe.Request{Scope: e.Scope, Key: e.Key, Digest: e.Digest, Retention: h.retention},
		Replaces: e.Digest,
	}, true)
}
