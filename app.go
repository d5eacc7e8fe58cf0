package buzzbip

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

func init() {
	caddy.RegisterModule(new(App))
}

// App is what the handlers of one configuration share. It has no settings, and
// exists whenever a handler does.
type App struct {
	ctx      caddy.Context
	mu       sync.Mutex
	handlers []*Handler
	notices  *notices
}

// startedApps are those that have started and not stopped, the newest last. There
// are two while Caddy changes to a new configuration; the older one stays active
// if the new one fails to start.
var startedApps struct {
	sync.Mutex
	list []*App
}

// running returns the App of the active configuration, or nil.
func running() *App {
	startedApps.Lock()
	defer startedApps.Unlock()
	if n := len(startedApps.list); n > 0 {
		return startedApps.list[n-1]
	}
	return nil
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "buzzbip_webhook", New: func() caddy.Module { return new(App) }}
}

// Provision registers the metrics with the configuration, and finds Caddy's event app.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx = ctx
	events, err := ctx.App("events")
	if err != nil {
		return err
	}
	a.notices = newNotices(ctx, events.(*caddyevents.App))
	// Caddy starts its apps in any order, and emits this when it has started all
	if err := a.notices.app.On("started", whenStarted(a.begin)); err != nil {
		return err
	}
	return a.registerMetrics(ctx)
}

// whenStarted is a [caddyevents.Handler].
type whenStarted func()

// Handle implements [caddyevents.Handler].
func (f whenStarted) Handle(context.Context, caddy.Event) error {
	f()
	return nil
}

// begin is called when all apps of the configuration have started.
func (a *App) begin() {
	a.notices.begin()
	go a.notices.run(a.ctx)
	go a.watchStores(a.ctx)
	a.activateInboxes()
}

// Start starts the stores, and makes the handlers known to the metrics and the
// admin API.
func (a *App) Start() error {
	for _, h := range a.handlers {
		for k := range h.secrets.keys() {
			// Prometheus sees an increase only in a series that exists before
			k.matches()
		}
		if h.store == nil {
			continue
		}
		if store, ok := h.store.store.(dedupe.Starter); ok {
			if err := store.Start(); err != nil {
				return fmt.Errorf("store %s: %w", h.store.name, err)
			}
		}
	}
	if err := a.startInboxes(); err != nil {
		return err
	}
	a.warnOfSharedScopes()
	startedApps.Lock()
	defer startedApps.Unlock()
	startedApps.list = append(startedApps.list, a)
	return nil
}

// Stop does nothing. Caddy stops its apps in any order: requests may still arrive after
// it, for as long as shutdown_delay.
func (*App) Stop() error { return nil }

// release removes the handlers from the metrics and the admin API, and releases their
// inboxes.
func (a *App) release() {
	a.stopInboxes()
	startedApps.Lock()
	defer startedApps.Unlock()
	startedApps.list = slices.DeleteFunc(startedApps.list, func(other *App) bool { return other == a })
}

// serverStopped is called when a server of the configuration takes no requests any more.
func (a *App) serverStopped(gracePeriod context.Context) error {
	a.release()
	return awaitDeliveries(gracePeriod)
}

// Cleanup releases what serverStopped has not: Caddy does not stop a configuration that
// failed to load after its apps had started.
func (a *App) Cleanup() error {
	a.release()
	return nil
}

// register adds a handler.
func (a *App) register(h *Handler) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.handlers = append(a.handlers, h)
}

// backing is a place where IDs are kept. Several stores may share it.
type backing struct {
	kind   string // of store
	store  *measured
	stats  dedupe.Stats
	scopes []scope // of the handlers that use it
	// others sums up all other scopes: those of earlier configurations
	others dedupe.ScopeStats
}

// scope is a space of IDs. Operators see its name, because its id may be derived
// from a secret.
type scope struct {
	id, name string
	stats    dedupe.ScopeStats
}

// backings returns the backings of all handlers, each once.
func (a *App) backings() []*backing {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []*backing
	names := a.scopeNames()
	for _, h := range a.handlers {
		if h.store == nil {
			continue
		}
		stats := h.store.store.Stats()
		at := slices.IndexFunc(all, func(b *backing) bool { return b.kind == h.store.name && b.stats.Backing == stats.Backing })
		if at < 0 {
			at = len(all)
			all = append(all, &backing{kind: h.store.name, store: h.store, stats: stats})
		}
		b := all[at]
		if stats.Err != nil {
			b.stats.Err = stats.Err
		}
		for k := range h.secrets.keys() {
			if slices.ContainsFunc(b.scopes, func(s scope) bool { return s.id == k.scope }) {
				continue
			}
			b.scopes = append(b.scopes, scope{k.scope, names[k.scope], stats.Scopes[k.scope]})
		}
	}
	for _, b := range all {
		for id, stats := range b.stats.Scopes {
			if !slices.ContainsFunc(b.scopes, func(s scope) bool { return s.id == id }) {
				b.others.Delivered += stats.Delivered
				b.others.InFlight += stats.InFlight
			}
		}
	}
	return all
}

// scopeNames returns the names of all scopes, which are unique.
func (a *App) scopeNames() map[string]string {
	names := make(map[string]string)
	taken := make(map[string]int)
	for _, h := range a.handlers {
		for k := range h.secrets.keys() {
			if names[k.scope] != "" {
				continue
			}
			name := h.Scope
			if name == "" {
				name = "secret:" + k.label
			}
			if taken[name]++; taken[name] > 1 { // two handlers may use a label for different secrets
				name = fmt.Sprintf("%s (%d)", name, taken[name])
			}
			names[k.scope] = name
		}
	}
	return names
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
