package buzzbip

import (
	"context"
	"maps"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// fork is a request beside the sender's, and its context. It shares nothing with the
// sender's request that either may still change, until share is called.
type fork struct {
	context.Context // the sender's
	senderRequest   *http.Request
	senderState     *requestState

	request *http.Request
	state   requestState
	vars    map[string]any
	groups  map[string]struct{}
	extra   caddyhttp.ExtraLogFields
	repl    *caddy.Replacer

	response http.ResponseWriter
	before   caddy.Replacer // the sender's, as it was
	// read is what placeholders of the request read, with the values that ofRequest
	// has; nil until one is used, since most configurations use none
	read      *http.Request
	ofRequest *caddy.Replacer
	shared    bool

	err      error // of the next handlers
	panicked any
}

func newFork(r *http.Request, state *requestState, w http.ResponseWriter) *fork {
	ctx := r.Context()
	f := &fork{Context: ctx, senderRequest: r, senderState: state, state: *state, response: w, before: *replacerOf(ctx), repl: caddy.NewEmptyReplacer()}
	f.state.spare = nil
	f.request = r.Clone(f)
	f.vars = maps.Clone(varsOf(ctx))
	f.vars[stateVar] = &f.state
	groups, _ := ctx.Value(routeGroupsKey).(map[string]struct{})
	f.groups = maps.Clone(groups)
	f.repl.Map(f.placeholder)
	return f
}

func varsOf(ctx context.Context) map[string]any {
	return ctx.Value(caddyhttp.VarsCtxKey).(map[string]any)
}

// Value implements [context.Context].
func (f *fork) Value(key any) any {
	switch key {
	case caddy.ReplacerCtxKey:
		return f.repl
	case caddyhttp.VarsCtxKey:
		return f.vars
	case caddyhttp.ExtraLogFieldsCtxKey:
		return &f.extra
	case routeGroupsKey:
		return f.groups
	}
	return f.Context.Value(key)
}

// placeholder is a [caddy.ReplacerFunc].
func (f *fork) placeholder(name string) (any, bool) {
	if value, known := f.state.placeholder(name); known {
		return value, true
	}
	if f.read == nil {
		f.ofRequest = caddy.NewEmptyReplacer()
		f.read = caddyhttp.PrepareRequest(f.request, f.ofRequest, f.response, nil)
	}
	*f.read = *f.request // with its context, which has the rest of what they read
	value, known := f.ofRequest.Get(name)
	if strings.HasPrefix(name, "http.request.body") {
		f.request.Body = f.read.Body // they replace it
	}
	if known {
		return value, true
	}
	return f.before.Get(name)
}

// share makes what the next handlers have changed part of the sender's request. The
// sender's goroutine waits from then on until the fork ends.
func (f *fork) share() {
	*f.senderState = f.state
	*f.senderRequest = *f.request.WithContext(f.Context)
	if f.shared {
		return
	}
	f.shared = true
	vars := varsOf(f.Context)
	maps.Copy(vars, f.vars)
	vars[stateVar] = f.senderState
	f.vars = vars
	repl := replacerOf(f.Context)
	if vars["uuid"] != nil {
		repl.Get("http.request.uuid") // which adds it to the access log
	}
	repl.Map(f.repl.Get)
}

// routeGroupsKey is where a context has the groups of routes of which one has matched.
// Caddy does not export it, but a route of a group asks for it.
var routeGroupsKey = func() any {
	asked := new(keyRecorder)
	nothing := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })
	_ = caddyhttp.RouteList{{Group: "any"}}.Compile(nothing).ServeHTTP(nil, new(http.Request).WithContext(asked))
	return asked.key
}()

// keyRecorder is a context that records which key it is asked for.
type keyRecorder struct {
	context.Context
	key any
}

// Value implements [context.Context].
func (k *keyRecorder) Value(key any) any {
	k.key = key
	return make(map[string]struct{})
}
