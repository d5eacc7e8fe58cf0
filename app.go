package buzzbip

import (
	"sync"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

func init() {
	caddy.RegisterModule(new(App))
}

// App is what the handlers of one configuration share. It has no settings, and
// is there whenever a handler is.
type App struct {
	mu     sync.Mutex
	scopes map[string]struct{} // in use
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "buzzbip_webhook",
		New: func() caddy.Module { return &App{scopes: make(map[string]struct{})} },
	}
}

// Start does nothing.
func (*App) Start() error { return nil }

// Stop does nothing.
func (*App) Stop() error { return nil }

// registerScopes warns if another handler of the configuration has one of h's
// scopes: the two take each other's events for duplicates.
func (h *Handler) registerScopes(ctx caddy.Context) error {
	module, err := ctx.App("buzzbip_webhook")
	if err != nil {
		return err
	}
	app := module.(*App)
	app.mu.Lock()
	defer app.mu.Unlock()
	own := make(map[string]struct{})
	for _, k := range h.keys {
		if _, counted := own[k.scope]; counted {
			continue
		}
		own[k.scope] = struct{}{}
		if _, taken := app.scopes[k.scope]; taken {
			h.logger.Warn("another buzzbip_webhook has the same scope, so an event that arrives at both is delivered once: if they are different endpoints, give each a scope of its own",
				zap.String("secret", k.label),
				zap.String("scope", h.Scope)) // a default scope is derived from the secret, and not shown
		}
		app.scopes[k.scope] = struct{}{}
	}
	return nil
}

// Interface guard
var _ caddy.App = (*App)(nil)
