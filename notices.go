package buzzbip

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
)

// The events that Caddy's event app gets, so that other modules can tell people.
const (
	noticeDead          = "buzzbip_webhook.dead"
	noticeConflict      = "buzzbip_webhook.conflict"
	noticeStoreDown     = "buzzbip_webhook.store_down"
	noticeStoreUp       = "buzzbip_webhook.store_up"
	noticeInboxPaused   = "buzzbip_webhook.inbox_paused"
	noticeSecretRotated = "buzzbip_webhook.secret_rotated" //nolint:gosec // a name, no secret
)

const (
	// noticeInterval is the time between two notices with the same name. What
	// happens in between is one notice, with the number of it: a thousand dead
	// events must not be a thousand messages to people.
	noticeInterval = 10 * time.Second

	// storeWatchInterval is how often the stores are looked at.
	storeWatchInterval = 2 * time.Second
)

// notices emits what people may want to be told as events of Caddy. Subscribers may
// take their time: nothing waits for them.
type notices struct {
	app  *caddyevents.App
	ctx  caddy.Context
	wake chan struct{}

	mu      sync.Mutex
	started bool     // all apps have started, so the subscriptions are known
	pending []notice // one of each name, in the order in which they happened
}

type notice struct {
	name string
	data map[string]any
	// count is how often it happened; data is that of the last time.
	count int
}

func newNotices(ctx caddy.Context, app *caddyevents.App) *notices {
	return &notices{app: app, ctx: ctx, wake: make(chan struct{}, 1)}
}

// begin is called when all apps have started.
func (n *notices) begin() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.started = true
	n.pending = slices.DeleteFunc(n.pending, func(p notice) bool { return !n.app.ShouldEmit(p.name) })
}

// add makes subscribers of an event know that it has happened.
func (n *notices) add(name string, data map[string]any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.started && !n.app.ShouldEmit(name) {
		return
	}
	at := slices.IndexFunc(n.pending, func(other notice) bool { return other.name == name })
	if at < 0 {
		at = len(n.pending)
		n.pending = append(n.pending, notice{name: name})
	}
	n.pending[at].data = data
	n.pending[at].count++
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// run emits notices until ctx ends.
func (n *notices) run(ctx context.Context) {
	last := make(map[string]time.Time)
	for {
		wait := n.emitDue(last)
		var due <-chan time.Time
		if wait > 0 {
			due = time.After(wait)
		}
		select {
		case <-n.wake:
		case <-due:
		case <-ctx.Done():
			return
		}
	}
}

// emitDue emits the notices that are due, given when each name was emitted last, and
// returns how long it is until the next one is, or 0 if there is none.
func (n *notices) emitDue(last map[string]time.Time) (wait time.Duration) {
	n.mu.Lock()
	var due []notice
	n.pending = slices.DeleteFunc(n.pending, func(p notice) bool {
		left := noticeInterval - time.Since(last[p.name])
		if left > 0 {
			if wait == 0 || left < wait {
				wait = left
			}
			return false
		}
		due = append(due, p)
		return true
	})
	n.mu.Unlock()
	for _, p := range due {
		last[p.name] = time.Now()
		p.data["count"] = p.count
		n.app.Emit(n.ctx, p.name, p.data)
	}
	return wait
}

// watchStores adds a notice whenever a store goes down or comes back.
func (a *App) watchStores(ctx context.Context) {
	if !a.notices.app.ShouldEmit(noticeStoreDown) && !a.notices.app.ShouldEmit(noticeStoreUp) {
		return
	}
	down := make(map[string]bool)
	for tick := time.NewTicker(storeWatchInterval); ; {
		for _, b := range a.backings() {
			err := b.stats.Err
			if backing := b.kind + " " + b.stats.Backing; down[backing] != (err != nil) {
				down[backing] = err != nil
				if err != nil {
					a.notices.add(noticeStoreDown, map[string]any{"store": b.kind, "error": err.Error()})
				} else {
					a.notices.add(noticeStoreUp, map[string]any{"store": b.kind})
				}
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}
