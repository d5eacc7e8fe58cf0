package buzzbip

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

// adminPath is where the admin endpoint has what is ours.
const adminPath = "/buzzbip_webhook/"

// adminAPI adds to Caddy's admin endpoint:
//
//	GET    /buzzbip_webhook/             a page that shows deliveries live
//	GET    /buzzbip_webhook/deliveries   the same as server-sent events
//	GET    /buzzbip_webhook/scopes       stores, scopes and secrets
//	GET    /buzzbip_webhook/events/<id>  what is known of an event, in each scope
//	DELETE /buzzbip_webhook/events/<id>  forget it, so that a redelivery passes
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "admin.api.buzzbip_webhook", New: func() caddy.Module { return new(adminAPI) }}
}

// Routes implements [caddy.AdminRouter].
func (adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{{Pattern: adminPath, Handler: caddy.AdminHandlerFunc(serveAdmin)}}
}

func serveAdmin(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Cache-Control", "no-store")
	path := strings.TrimPrefix(r.URL.EscapedPath(), adminPath)
	escaped, event := strings.CutPrefix(path, "events/")
	switch {
	case path == "":
		return onMethod(w, r, map[string]caddy.AdminHandlerFunc{http.MethodGet: servePage})
	case path == "deliveries":
		return onMethod(w, r, map[string]caddy.AdminHandlerFunc{http.MethodGet: streamDeliveries})
	case path == "scopes":
		return onMethod(w, r, map[string]caddy.AdminHandlerFunc{http.MethodGet: serveScopes})
	case !event:
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Message: "there is nothing here: see " + adminPath + ", " + adminPath + "scopes and " + adminPath + "events/<id>"}
	}
	id, err := url.PathUnescape(escaped)
	if err != nil || id == "" || len(id) > maxNameLength {
		return caddy.APIError{HTTPStatus: http.StatusBadRequest, Err: err,
			Message: fmt.Sprintf("give the id of an event, percent-encoded and of 1 to %d bytes: %sevents/<id>", maxNameLength, adminPath)}
	}
	return onMethod(w, r, map[string]caddy.AdminHandlerFunc{
		http.MethodGet:    func(w http.ResponseWriter, r *http.Request) error { return serveLookup(w, r, id) },
		http.MethodDelete: func(w http.ResponseWriter, r *http.Request) error { return serveForget(w, r, id) },
	})
}

func onMethod(w http.ResponseWriter, r *http.Request, handlers map[string]caddy.AdminHandlerFunc) error {
	handler := handlers[r.Method]
	if handler == nil {
		for _, method := range []string{http.MethodGet, http.MethodDelete} {
			if handlers[method] != nil {
				w.Header().Add("Allow", method)
			}
		}
		return caddy.APIError{HTTPStatus: http.StatusMethodNotAllowed, Message: "the method " + r.Method + " is not allowed here"}
	}
	return handler(w, r)
}

// current returns the App that is in force.
func current() (*App, error) {
	app := running()
	if app == nil {
		return nil, caddy.APIError{HTTPStatus: http.StatusNotFound, Message: "the configuration that is running has no buzzbip_webhook"}
	}
	return app, nil
}

func writeJSON(w http.ResponseWriter, status int, value any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(value)
}

// overview is the answer to `GET /buzzbip_webhook/scopes`.
type overview struct {
	// Since is when the process started to count.
	Since   time.Time     `json:"since"`
	Scopes  []scopeCounts `json:"scopes"`
	Stores  []storeState  `json:"stores"`
	Secrets []secretUse   `json:"secrets"`
}

type scopeCounts struct {
	// Scope is empty for all the scopes together that no handler has any more.
	Scope     string `json:"scope"`
	Store     string `json:"store"`
	Delivered int    `json:"delivered"`
	InFlight  int    `json:"in_flight"`
	Capacity  int    `json:"capacity,omitempty"` // 0: any number
}

type storeState struct {
	Store   string `json:"store"`
	Up      bool   `json:"up"`
	Error   string `json:"error,omitempty"`
	Evicted uint64 `json:"evicted"`
}

type secretUse struct {
	Secret    string     `json:"secret"`
	Scope     string     `json:"scope"`
	LastMatch *time.Time `json:"last_match"` // null: not since the process started
}

var started = time.Now()

func (a *App) overview() overview {
	o := overview{Since: started, Scopes: []scopeCounts{}, Stores: []storeState{}, Secrets: []secretUse{}}
	for _, b := range a.backings() {
		o.Stores = append(o.Stores, storeState{Store: b.kind, Up: b.stats.Err == nil, Evicted: b.stats.Evicted})
		if b.stats.Err != nil {
			o.Stores[len(o.Stores)-1].Error = b.stats.Err.Error()
		}
		for _, s := range b.scopes {
			o.Scopes = append(o.Scopes, scopeCounts{s.name, b.kind, s.stats.Delivered, s.stats.InFlight, s.stats.Capacity})
			delete(b.stats.Scopes, s.id)
		}
		rest := scopeCounts{Store: b.kind}
		for _, counts := range b.stats.Scopes {
			rest.Delivered += counts.Delivered
			rest.InFlight += counts.InFlight
		}
		if rest.Delivered+rest.InFlight > 0 {
			o.Scopes = append(o.Scopes, rest)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	names := a.scopeNames()
	for _, h := range a.handlers {
		for k := range h.keys.all() {
			use := secretUse{Secret: k.label, Scope: names[k.scope]}
			if last := k.last.Load(); last != 0 {
				at := time.Unix(0, last).UTC()
				use.LastMatch = &at
			}
			o.Secrets = append(o.Secrets, use)
		}
	}
	return o
}

func serveScopes(w http.ResponseWriter, r *http.Request) error {
	app, err := current()
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, app.overview())
}

// eventStates is the answer to `GET` and `DELETE /buzzbip_webhook/events/<id>`.
type eventStates struct {
	ID     string       `json:"id"`
	Scopes []eventState `json:"scopes"`
	// Error says that not all stores answered.
	Error string `json:"error,omitempty"`
}

type eventState struct {
	Scope string `json:"scope"`
	Store string `json:"store"`
	// State is unseen, not_delivered (the last attempt failed), in_flight,
	// delivered, redelivering (delivered before, and in flight again with
	// another body) or unknown.
	State     string     `json:"state,omitempty"`
	Expires   *time.Time `json:"expires,omitempty"`   // of what is remembered
	Forgotten *bool      `json:"forgotten,omitempty"` // after DELETE; absent if the store does not tell
	// LastFailure is of an event that is not delivered, as far as it is
	// remembered: by this instance, in memory.
	LastFailure *failure `json:"last_failure,omitempty"`
}

// eachScope asks all stores about an event.
func eachScope(w http.ResponseWriter, id string, ask func(b *backing, scope string, answer *eventState) error) error {
	app, err := current()
	if err != nil {
		return err
	}
	answer := eventStates{ID: id, Scopes: []eventState{}}
	var failed error
	for _, b := range app.backings() {
		for _, s := range b.scopes {
			state := eventState{Scope: s.name, Store: b.kind}
			if err := ask(b, s.id, &state); err != nil {
				failed = cmp.Or(failed, fmt.Errorf("store %s: %w", b.kind, err))
			}
			answer.Scopes = append(answer.Scopes, state)
		}
	}
	if failed != nil {
		answer.Error = failed.Error()
		return writeJSON(w, http.StatusServiceUnavailable, answer)
	}
	return writeJSON(w, http.StatusOK, answer)
}

func serveLookup(w http.ResponseWriter, r *http.Request, id string) error {
	return eachScope(w, id, func(b *backing, scope string, answer *eventState) error {
		key := dedupe.KeyOf(id)
		known, err := b.store.Lookup(r.Context(), scope, key)
		if !known.Delivered {
			answer.LastFailure = failures.find(failureKey{b.kind, scope, key})
		}
		switch {
		case err != nil:
			answer.State = "unknown"
		case known.Delivered && known.InFlight:
			answer.State = "redelivering"
		case known.Delivered:
			answer.State = "delivered"
		case known.InFlight:
			answer.State = "in_flight"
		case answer.LastFailure != nil:
			answer.State = "not_delivered"
		default:
			answer.State = "unseen"
		}
		if known.Delivered {
			expires := known.Expires.UTC()
			answer.Expires = &expires
		}
		return err
	})
}

func serveForget(w http.ResponseWriter, _ *http.Request, id string) error {
	return eachScope(w, id, func(b *backing, scope string, answer *eventState) error {
		// not with the context of the request: it is to be done everywhere
		ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
		defer cancel()
		forgotten, err := b.store.Forget(ctx, scope, dedupe.KeyOf(id))
		if forgotten || err == nil {
			answer.Forgotten = &forgotten
		}
		return err
	})
}

//go:embed page.html
var page []byte

func servePage(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Referrer-Policy", "no-referrer")
	_, err := w.Write(page)
	return err
}

const (
	streamInterval = 250 * time.Millisecond
	statusEvery    = 8 // of these
)

// streamDeliveries sends what is new, until the configuration changes: the
// admin endpoint changes with it, and browsers connect again by themselves.
func streamDeliveries(w http.ResponseWriter, r *http.Request) error {
	response := http.NewResponseController(w)
	// that of the admin endpoint is for requests, and would end the stream
	if err := response.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	w.Header().Set("Content-Type", "text/event-stream")
	app := running()
	tick := time.NewTicker(streamInterval)
	defer tick.Stop()
	var count uint64
	for n := 0; running() == app; n++ {
		var entries []feedEntry
		entries, count = latest.since(count)
		first := n == 0 // replaces what the page shows
		if first || len(entries) > 0 {
			sendEvent(w, "deliveries", map[string]any{"deliveries": entries, "first": first})
		}
		if n%statusEvery == 0 {
			status := map[string]any{"results": latest.totals(), "in_flight": inFlight.Load()}
			if app != nil {
				status["overview"] = app.overview()
			}
			sendEvent(w, "status", status)
		}
		if err := response.Flush(); err != nil {
			return nil // the browser has gone
		}
		select {
		case <-r.Context().Done():
			return nil
		case <-tick.C:
		}
	}
	return nil
}

// sendEvent sends a server-sent event; an error shows when it is flushed.
func sendEvent(w http.ResponseWriter, name string, data any) {
	text, err := json.Marshal(data)
	if err == nil {
		_, _ = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", name, text)
	}
}

// Interface guard
var _ caddy.AdminRouter = adminAPI{}
