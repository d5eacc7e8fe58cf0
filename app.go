package buzzbip

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

func init() {
	caddy.RegisterModule(new(App))
}

// App is what the handlers of one configuration share. It has no settings, and
// is there whenever a handler is.
type App struct {
	mu       sync.Mutex
	handlers []*Handler
}

// running is the App of the configuration that is in force.
var running atomic.Pointer[App]

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "buzzbip_webhook", New: func() caddy.Module { return new(App) }}
}

// Provision makes the metrics part of the configuration.
func (a *App) Provision(ctx caddy.Context) error { return a.registerMetrics(ctx) }

// Start starts the stores and lets the admin API know of the handlers.
func (a *App) Start() error {
	for _, h := range a.handlers {
		if h.store == nil {
			continue
		}
		if store, ok := h.store.Store.(dedupe.Starter); ok {
			if err := store.Start(); err != nil {
				return fmt.Errorf("store %s: %w", h.store.name, err)
			}
		}
	}
	running.Store(a)
	return nil
}

// Stop takes back what Start did, unless another configuration has followed.
func (a *App) Stop() error {
	running.CompareAndSwap(a, nil)
	return nil
}

// register adds a handler, and warns if another has one of its scopes: the two
// take each other's events for duplicates.
func (a *App) register(h *Handler) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.handlers = append(a.handlers, h)
	if h.store == nil {
		return
	}
	taken := make(map[string]struct{})
	for _, other := range a.handlers {
		if other == h || other.store == nil {
			continue
		}
		for k := range other.keys.all() {
			taken[k.scope] = struct{}{}
		}
	}
	for k := range h.keys.all() {
		if _, again := taken[k.scope]; again {
			h.logger.Warn("another buzzbip_webhook has the same scope, so an event that arrives at both is delivered once: if they are different endpoints, give each a scope of its own",
				zap.String("secret", k.label),
				zap.String("scope", h.Scope)) // a default scope is derived from the secret, and not shown
			delete(taken, k.scope)
		}
	}
}

// backing is where ids are kept, by one store or more.
type backing struct {
	name  string // of the kind of store
	store dedupe.Store
	stats dedupe.Stats
}

// backings returns each once, however many handlers use it.
func (a *App) backings() []backing {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []backing
	type identity struct{ name, backing string }
	seen := make(map[identity]int)
	for _, h := range a.handlers {
		if h.store == nil {
			continue
		}
		b := backing{h.store.name, h.store, h.store.Stats()}
		id := identity{b.name, b.stats.Backing}
		if i, again := seen[id]; again {
			if b.stats.Err != nil {
				all[i].stats.Err = b.stats.Err
			}
			continue
		}
		seen[id] = len(all)
		all = append(all, b)
	}
	return all
}

// Interface guards
var (
	_ caddy.App         = (*App)(nil)
	_ caddy.Provisioner = (*App)(nil)
)
