package buzzbip

import (
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

// adminAPI adds to Caddy's admin endpoint:
//
//	GET    /buzzbip_webhook/             a page that shows requests live, with page.css and page.js
//	GET    /buzzbip_webhook/requests     the same as server-sent events
//	GET    /buzzbip_webhook/scopes       stores, scopes and secrets
//	GET    /buzzbip_webhook/events/<id>  what is known of an event, in each scope
//	DELETE /buzzbip_webhook/events/<id>  forget it, so that a redelivery passes
//	GET    /buzzbip_webhook/inbox        the events in the inbox, a page of them
//	GET    /buzzbip_webhook/inbox/<n>    one of them, with its body
//	GET    /buzzbip_webhook/inbox/summary  what waits or is dead, and why
//	GET    /buzzbip_webhook/inbox/export   whole events, as lines of JSON
//	POST   /buzzbip_webhook/inbox/retry, /discard, /pause, /resume
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "admin.api.buzzbip_webhook", New: func() caddy.Module { return new(adminAPI) }}
}

// Routes implements [caddy.AdminRouter].
func (adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{{Pattern: adminapi.Path, Handler: caddy.AdminHandlerFunc(serveAdmin)}}
}

func serveAdmin(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Cache-Control", "no-store")
	path := strings.TrimPrefix(r.URL.EscapedPath(), adminapi.Path)
	escaped, event := strings.CutPrefix(path, "events/")
	switch {
	case path == "", path == "page.css", path == "page.js":
		return onMethod(w, r, map[string]caddy.AdminHandlerFunc{http.MethodGet: servePage})
	case path == "requests":
		return onMethod(w, r, map[string]caddy.AdminHandlerFunc{http.MethodGet: streamRequests})
	case path == "scopes":
		return onMethod(w, r, map[string]caddy.AdminHandlerFunc{http.MethodGet: serveScopes})
	case path == "inbox":
		return serveInbox(w, r, "")
	case strings.HasPrefix(path, "inbox/"):
		return serveInbox(w, r, strings.TrimPrefix(path, "inbox/"))
	case !event:
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Message: "there is nothing here: see " + adminapi.Path + ", " + adminapi.Path + "scopes and " + adminapi.Path + "events/<id>"}
	}
	id, err := url.PathUnescape(escaped)
	if err != nil || id == "" || len(id) > webhook.MaxIDLength {
		return caddy.APIError{HTTPStatus: http.StatusBadRequest, Err: err,
			Message: fmt.Sprintf("give the ID of an event, percent-encoded and of 1 to %d bytes: %sevents/<id>", webhook.MaxIDLength, adminapi.Path)}
	}
	return onMethod(w, r, map[string]caddy.AdminHandlerFunc{
		http.MethodGet:    func(w http.ResponseWriter, r *http.Request) error { return serveLookup(w, r, id) },
		http.MethodDelete: func(w http.ResponseWriter, r *http.Request) error { return serveForget(w, r, id) },
	})
}

func onMethod(w http.ResponseWriter, r *http.Request, handlers map[string]caddy.AdminHandlerFunc) error {
	handler := handlers[r.Method]
	if handler == nil {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
			if handlers[method] != nil {
				w.Header().Add("Allow", method)
			}
		}
		return caddy.APIError{HTTPStatus: http.StatusMethodNotAllowed, Message: "the method " + r.Method + " is not allowed here"}
	}
	return handler(w, r)
}

// current returns the App of the active configuration.
func current() (*App, error) {
	app := running()
	if app == nil {
		return nil, caddy.APIError{HTTPStatus: http.StatusNotFound, Message: "the active configuration has no buzzbip_webhook"}
	}
	return app, nil
}

func writeJSON(w http.ResponseWriter, status int, value any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(value)
}

var started = time.Now()

func (a *App) overview() adminapi.Overview {
	o := adminapi.Overview{Since: started, Scopes: []adminapi.Scope{}, Stores: []adminapi.Store{}, Secrets: []adminapi.Secret{}}
	for _, b := range a.backings() {
		store := adminapi.Store{Store: b.kind, Up: b.stats.Err == nil, Evicted: b.stats.Evicted}
		if !store.Up {
			store.Error = b.stats.Err.Error()
		}
		o.Stores = append(o.Stores, store)
		for _, s := range b.scopes {
			o.Scopes = append(o.Scopes, adminapi.Scope{Scope: s.name, Store: b.kind, Delivered: s.stats.Delivered, InFlight: s.stats.InFlight, Capacity: s.stats.Capacity})
		}
		if b.others.Delivered+b.others.InFlight > 0 {
			o.Scopes = append(o.Scopes, adminapi.Scope{Store: b.kind, Delivered: b.others.Delivered, InFlight: b.others.InFlight})
		}
	}
	o.NotEnforced, o.Observed = !a.enforces(), observed.report()
	a.mu.Lock()
	defer a.mu.Unlock()
	names := a.scopeNames()
	for _, h := range a.handlers {
		for k := range h.secrets.keys() {
			use := adminapi.Secret{Secret: k.label, Scope: names[k.scope]}
			if last := k.lastMatch.Load(); last != 0 {
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

// eachScope asks all stores about an event.
func eachScope(w http.ResponseWriter, id string, ask func(b *backing, scope string, answer *adminapi.EventState) error) error {
	app, err := current()
	if err != nil {
		return err
	}
	answer := adminapi.Event{ID: id, Scopes: []adminapi.EventState{}}
	var failed error
	for _, b := range app.backings() {
		for _, s := range b.scopes {
			state := adminapi.EventState{Scope: s.name, Store: b.kind}
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
	return eachScope(w, id, func(b *backing, scope string, answer *adminapi.EventState) error {
		key := dedupe.KeyOf(id)
		known, err := b.store.lookup(r.Context(), scope, key)
		if !known.Delivered {
			answer.LastFailure = failures.find(failureKey{b.kind, scope, key})
		}
		switch {
		case err != nil:
			answer.State = adminapi.StateUnknown
		case known.Delivered && known.InFlight:
			answer.State = adminapi.StateRedelivering
		case known.Delivered:
			answer.State = adminapi.StateDelivered
		case known.InFlight:
			answer.State = adminapi.StateInFlight
		case answer.LastFailure != nil:
			answer.State = adminapi.StateNotDelivered
		default:
			answer.State = adminapi.StateUnseen
		}
		if lookUpInbox(r.Context(), scope, key, answer) {
			return err
		}
		if known.Delivered {
			expires := known.Expires.UTC()
			answer.Expires = &expires
		}
		return err
	})
}

func serveForget(w http.ResponseWriter, _ *http.Request, id string) error {
	return eachScope(w, id, func(b *backing, scope string, answer *adminapi.EventState) error {
		// not with the context of the request: a client that disconnects must not
		// leave the event forgotten in some scopes only
		ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
		defer cancel()
		forgotten, err := b.store.forget(ctx, scope, dedupe.KeyOf(id))
		if forgotten || err == nil {
			answer.Forgotten = &forgotten
		}
		return err
	})
}

//go:embed page.html page.css page.js
var page embed.FS

func servePage(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Referrer-Policy", "no-referrer")
	name := cmp.Or(strings.TrimPrefix(r.URL.Path, adminapi.Path), "page.html")
	http.ServeFileFS(w, r, page, name)
	return nil
}

const (
	streamInterval = 250 * time.Millisecond
	statusEvery    = 8 // of these
)

// streamRequests sends new requests until the configuration changes. The admin
// endpoint changes with it, and the page connects again.
func streamRequests(w http.ResponseWriter, r *http.Request) error {
	response := http.NewResponseController(w)
	// the read deadline of the admin endpoint would end the stream
	if err := response.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	w.Header().Set("Content-Type", "text/event-stream")
	app := running()
	tick := time.NewTicker(streamInterval)
	defer tick.Stop()
	var count uint64
	var step int64
	for n := 0; running() == app; n++ {
		var entries []feedEntry
		entries, count = latest.since(count)
		first := n == 0 // the page replaces its list
		if first || len(entries) > 0 {
			sendEvent(w, "requests", map[string]any{"requests": entries, "first": first})
		}
		if n%statusEvery == 0 {
			var status pageStatus
			status, step = statusSince(app, step)
			sendEvent(w, "status", status)
		}
		if err := response.Flush(); err != nil {
			return nil // the client has disconnected
		}
		select {
		case <-r.Context().Done():
			return nil
		case <-tick.C:
		}
	}
	return nil
}

// pageStatus is the state of the plugin for the page.
type pageStatus struct {
	Time     time.Time                 `json:"time"`
	Results  map[webhook.Result]uint64 `json:"results"`   // since the process started
	InFlight int                       `json:"in_flight"` // deliveries
	Accepted *time.Time                `json:"accepted"`  // when the backend has last accepted an event
	Problems []problem                 `json:"problems"`
	History  struct {
		Start time.Time      `json:"start"` // of the step with the number 0
		Step  float64        `json:"step"`  // in seconds
		Kept  int            `json:"kept"`  // how many steps there are at most
		Steps []historyEntry `json:"steps"`
	} `json:"history"`
	Overview *adminapi.Overview    `json:"overview,omitempty"` // absent without a handler
	Inboxes  []adminapi.InboxState `json:"inboxes"`
}

// statusSince returns the state, with the history from a step on, and the number of
// its last step.
func statusSince(app *App, step int64) (s pageStatus, last int64) {
	now := time.Now()
	s = pageStatus{Time: now, Results: latest.totals(), InFlight: deliveries.count(), Accepted: traffic.lastAccepted(), Problems: problems.latest(now), Inboxes: []adminapi.InboxState{}}
	// by how long the process has run, also if the clock was set meanwhile
	s.History.Start, s.History.Step, s.History.Kept = now.Round(0).Add(-now.Sub(started)), historyStep.Seconds(), historySteps
	s.History.Steps, last = traffic.since(step, now)
	if app != nil {
		overview := app.overview()
		s.Overview = &overview
		for _, h := range app.inboxes() {
			s.Inboxes = append(s.Inboxes, h.inbox.describe())
		}
	}
	return s, last
}

// sendEvent writes a server-sent event. Flush returns the error, if there is one.
func sendEvent(w http.ResponseWriter, name string, data any) {
	text, err := json.Marshal(data)
	if err == nil {
		_, _ = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", name, text)
	}
}

// Interface guard
var _ caddy.AdminRouter = adminAPI{}
