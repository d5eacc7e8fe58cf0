package buzzbip

import (
	"context"
	"maps"
	"net/http"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// fork is a request beside the sender's, and its context. It shares nothing with the
// sender's request that either may still change. As those of Caddy, its variables and
// placeholders are also read by the goroutines of transports.
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

	keeper *keeper        // the response
	header http.Header    // what the next handlers have in place of the sender's until the response passes
	before caddy.Replacer // the sender's, as it was
	shared bool

	mu sync.Mutex // for the next two
	// read is what placeholders of the request read, with the values that ofRequest
	// has; nil until one is used, since most configurations use none
	read      *http.Request
	ofRequest *caddy.Replacer

	// returns is what lets the handler return: whether the next handlers have ended,
	// or the event is in the inbox before
	returns  chan bool
	err      error // of the next handlers
	panicked any
}

func newFork(r *http.Request, k *keeper) *fork {
	ctx := r.Context()
	f := &fork{Context: ctx, senderRequest: r, senderState: k.state, state: *k.state, keeper: k, header: k.w.Header().Clone(),
		before: *replacerOf(ctx), repl: caddy.NewReplacer(), returns: make(chan bool, 2)}
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

// filePlaceholders is what begins the names of placeholders that each replacer has
// itself, unless its user wants them not to be known.
const filePlaceholders = "file."

// placeholder is what f.repl asks for the rest.
func (f *fork) placeholder(name string) (any, bool) {
	if strings.HasPrefix(name, filePlaceholders) {
		return nil, false
	}
	if value, known := f.state.placeholder(name); known {
		return value, true
	}
	if value, known := f.placeholderOfRequest(name); known {
		return value, true
	}
	return f.before.Get(name)
}

// placeholderForSender is what the sender's replacer asks for the rest.
func (f *fork) placeholderForSender(name string) (any, bool) {
	if strings.HasPrefix(name, filePlaceholders) {
		return nil, false
	}
	return f.repl.Get(name)
}

func (f *fork) placeholderOfRequest(name string) (any, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.read == nil {
		f.ofRequest = caddy.NewEmptyReplacer()
		f.read = caddyhttp.PrepareRequest(f.request, f.ofRequest, f.keeper, nil)
	}
	*f.read = *f.request // with its context, which has the rest of what they read
	value, known := f.ofRequest.Get(name)
	if strings.HasPrefix(name, "http.request.body") {
		f.request.Body = f.read.Body // they replace it
	}
	return value, known
}

// share copies what the next handlers have changed to the sender's request, whose
// goroutine waits from then on until the fork ends.
func (f *fork) share() {
	*f.senderState = f.state
	*f.senderRequest = *f.request.WithContext(f.Context)
	vars := varsOf(f.Context)
	maps.Copy(vars, f.vars)
	vars[stateVar] = f.senderState
	if f.shared {
		return
	}
	f.shared = true
	repl := replacerOf(f.Context)
	if vars["uuid"] != nil {
		repl.Get("http.request.uuid") // which adds it to the access log
	}
	repl.Map(f.placeholderForSender)
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
