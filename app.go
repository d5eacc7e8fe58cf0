package buzzbip

import (
	"fmt"
	"slices"
	"sync"

	"github.com/caddyserver/caddy/v2"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

func init() {
	caddy.RegisterModule(new(App))
}

// App is what the handlers of one configuration share. It has no settings, and
// is there whenever a handler is.
type App struct {
	ctx      caddy.Context
	mu       sync.Mutex
	handlers []*Handler
}

// startedApps have started and not stopped, the newest last: two while one
// configuration follows another, which stays in force if the new one fails to
// start, with our App or with another.
var startedApps struct {
	sync.Mutex
	list []*App
}

// running returns the App of the configuration that is in force, or nil.
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

// Provision makes the metrics part of the configuration.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx = ctx
	return a.registerMetrics(ctx)
}

// Start starts the stores, and lets the metrics know of the secrets and the
// admin API of the handlers.
func (a *App) Start() error {
	for _, h := range a.handlers {
		for k := range h.secrets.keys() {
			// so that the first match is seen as a rise, and none as 0
			metrics.signatureMatches.WithLabelValues(k.label)
		}
		if h.store == nil {
			continue
		}
		if store, ok := h.store.Store.(dedupe.Starter); ok {
			if err := store.Start(); err != nil {
				return fmt.Errorf("store %s: %w", h.store.name, err)
			}
		}
	}
	a.warnOfSharedScopes()
	startedApps.Lock()
	defer startedApps.Unlock()
	startedApps.list = append(startedApps.list, a)
	return nil
}

// Stop tells the metrics and the admin API that the configuration has ended.
func (a *App) Stop() error {
	startedApps.Lock()
	defer startedApps.Unlock()
	startedApps.list = slices.DeleteFunc(startedApps.list, func(other *App) bool { return other == a })
	return nil
}

// Cleanup is for a configuration that fails after all of its apps have started:
// Caddy does not stop them.
func (a *App) Cleanup() error { return a.Stop() }

// register adds a handler.
func (a *App) register(h *Handler) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.handlers = append(a.handlers, h)
}

// backing is where ids are kept, by one store or more.
type backing struct {
	kind   string // of store
	store  dedupe.Store
	stats  dedupe.Stats
	scopes []scope // of the handlers that use it
	// others are all other scopes together: those of earlier configurations
	others dedupe.ScopeStats
}

// scope is a space of ids, and what operators know it by: one that is derived
// from a secret is not shown.
type scope struct {
	id, name string
	stats    dedupe.ScopeStats
}

// backings returns each once, however many handlers use it.
func (a *App) backings() []*backing {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []*backing
	names := a.scopeNames()
	for _, h := range a.handlers {
		if h.store == nil {
			continue
		}
		stats := h.store.Stats()
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

// scopeNames returns the names of all scopes, each of which is another.
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
