package buzzbip

import (
	"context"
	"maps"
	"net/http"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// fork is a request beside the sender's: it shares nothing with it that either may
// still change.
type fork struct {
	request *http.Request
	state   *requestState
	vars    map[string]any
	repl    *caddy.Replacer
	ended   atomic.Bool
}

func newFork(r *http.Request, state *requestState, w http.ResponseWriter) *fork {
	ctx := r.Context()
	parent := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	server, _ := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	f := &fork{state: new(requestState), repl: caddy.NewReplacer()}
	*f.state = *state
	f.state.spare = nil
	f.request = caddyhttp.PrepareRequest(r.Clone(ctx), f.repl, w, server)
	f.vars = f.request.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	if vars, ok := ctx.Value(caddyhttp.VarsCtxKey).(map[string]any); ok {
		maps.Copy(f.vars, vars)
	}
	f.vars[stateVar] = f.state
	f.repl.Map(f.state.placeholder)
	f.repl.Map(func(name string) (any, bool) {
		if f.ended.Load() {
			return nil, false // the parent asks us
		}
		return parent.Get(name)
	})
	if original := ctx.Value(caddyhttp.OriginalRequestCtxKey); original != nil {
		*f.request = *f.request.WithContext(context.WithValue(f.request.Context(), caddyhttp.OriginalRequestCtxKey, original))
	}
	return f
}

// join makes the outcome of the fork that of the request.
func (f *fork) join(r *http.Request, state *requestState) {
	ctx := r.Context()
	f.ended.Store(true)
	*state = *f.state
	delete(f.vars, stateVar)
	if vars, ok := ctx.Value(caddyhttp.VarsCtxKey).(map[string]any); ok {
		maps.Copy(vars, f.vars)
	}
	repl := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if f.vars["uuid"] != nil {
		repl.Get("http.request.uuid") // which adds it to the access log
	}
	repl.Map(f.repl.Get)
	*r = *f.request.WithContext(ctx)
}
