package buzzbip

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

const (
	// inboxGroups is how many groups of events a summary has at most.
	inboxGroups = 20
	// maxFilter is the size of the largest filter, in bytes.
	maxFilter = 1 << 20
)

// inboxes returns the inboxes of all handlers, each once, with a handler that has it.
func (a *App) inboxes() (all []*Handler) {
	seen := make(map[string]struct{})
	for _, h := range a.handlers {
		if h.inbox == nil {
			continue
		}
		if _, ok := seen[h.inbox.backing]; !ok {
			seen[h.inbox.backing] = struct{}{}
			all = append(all, h)
		}
	}
	return all
}

// theInbox returns the inbox of the active configuration. With several, the
// parameter inbox of the query names one, by what it is listed with.
func theInbox(r *http.Request) (*inboxUse, error) {
	app, err := current()
	if err != nil {
		return nil, err
	}
	all := app.inboxes()
	name := r.URL.Query().Get("inbox")
	var names []string
	for _, h := range all {
		if len(all) == 1 && name == "" || h.inbox.backing == name {
			return h.inbox, nil
		}
		names = append(names, strconv.Quote(h.inbox.backing))
	}
	if len(all) == 0 {
		return nil, caddy.APIError{HTTPStatus: http.StatusNotFound, Message: "the active configuration has no inbox: add the option inbox to buzzbip_webhook"}
	}
	problem := "there are several inboxes"
	if name != "" {
		problem = fmt.Sprintf("there is no inbox %q", name)
	}
	return nil, caddy.APIError{HTTPStatus: http.StatusBadRequest, Message: problem + ": say which, of " + strings.Join(names, ", ")}
}

func serveInbox(w http.ResponseWriter, r *http.Request, path string) error {
	switch path {
	case "":
		return onMethod(w, r, map[string]caddy.AdminHandlerFunc{http.MethodGet: serveInboxList})
	case "export":
		return onMethod(w, r, map[string]caddy.AdminHandlerFunc{http.MethodGet: serveInboxExport})
	case "summary":
		return onMethod(w, r, map[string]caddy.AdminHandlerFunc{http.MethodGet: serveInboxSummary})
	case "retry", "discard":
		return onMethod(w, r, map[string]caddy.AdminHandlerFunc{http.MethodPost: func(w http.ResponseWriter, r *http.Request) error {
			return serveInboxChange(w, r, path)
		}})
	case "pause", "resume":
		return onMethod(w, r, map[string]caddy.AdminHandlerFunc{http.MethodPost: func(w http.ResponseWriter, r *http.Request) error {
			return serveInboxPause(w, r, path == "pause")
		}})
	}
	number, err := strconv.ParseInt(path, 10, 64)
	if err != nil {
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Message: "there is nothing here: see " + adminapi.Path + "inbox and " + adminapi.Path + "inbox/<number>"}
	}
	return onMethod(w, r, map[string]caddy.AdminHandlerFunc{http.MethodGet: func(w http.ResponseWriter, r *http.Request) error {
		return serveInboxEvent(w, r, number)
	}})
}

// lookUpInbox completes the answer about an event if an inbox has it.
func lookUpInbox(ctx context.Context, scope string, key dedupe.Key, answer *adminapi.EventState) bool {
	app := running()
	if app == nil {
		return false
	}
	for _, h := range app.inboxes() {
		e, err := h.inbox.Find(ctx, scope, key)
		switch {
		case err == nil && e.State == inbox.Waiting:
			answer.State = adminapi.StateStored
			if h.inbox.Stats().Paused.IsZero() {
				answer.Due = known(h.inbox.dispatcher.NextAttempt(e).UTC())
			}
		case err == nil && e.State == inbox.Dead:
			answer.State = adminapi.StateDead
		default:
			continue
		}
		answer.Attempts = e.Attempts
		if e.Attempts > 0 {
			answer.LastFailure = &adminapi.Failure{Time: e.Last.Time, Cause: webhook.Cause(e.Last.Cause), Status: e.Last.Status, Duration: e.Last.Duration, Error: e.Last.Error}
		}
		return true
	}
	return false
}

func (in *inboxUse) describe() adminapi.InboxState {
	stats := in.Stats()
	state := adminapi.InboxState{
		Inbox: in.backing, Waiting: stats.Waiting, Dead: stats.Dead, Delivered: stats.Delivered, Bytes: stats.Bytes,
		Oldest: known(stats.Oldest), Paused: known(stats.Paused),
	}
	if stats.Err != nil {
		state.Error = stats.Err.Error()
	}
	return state
}

func serveInboxSummary(w http.ResponseWriter, r *http.Request) error {
	app, err := current()
	if err != nil {
		return err
	}
	summary := adminapi.InboxSummary{Inboxes: []adminapi.InboxWithGroups{}}
	for _, h := range app.inboxes() {
		of := adminapi.InboxWithGroups{InboxState: h.inbox.describe(), Groups: []adminapi.InboxGroup{}}
		groups, err := h.inbox.Groups(r.Context(), inboxGroups)
		if err != nil && of.Error == "" {
			of.Error = err.Error()
		}
		for _, g := range groups {
			of.Groups = append(of.Groups, adminapi.InboxGroup{
				State: string(g.State), Status: g.Status, Cause: g.Cause, Error: g.Error,
				Events: g.Events, Since: g.Since.UTC(), Next: known(g.Next),
			})
		}
		summary.Inboxes = append(summary.Inboxes, of)
	}
	return writeJSON(w, http.StatusOK, summary)
}

func serveInboxList(w http.ResponseWriter, r *http.Request) error {
	in, err := theInbox(r)
	if err != nil {
		return err
	}
	s, err := selectionOf(r)
	if err != nil {
		return badRequest(err)
	}
	events, next, err := in.page(r.Context(), s)
	if err != nil {
		return unavailable(err)
	}
	list := adminapi.Inbox{InboxState: in.describe(), Events: []adminapi.InboxEvent{}}
	for _, e := range events {
		list.Events = append(list.Events, in.listed(e))
	}
	list.Next = next
	return writeJSON(w, http.StatusOK, list)
}

// page returns the events of a selection that has a limit, without their bodies, and
// where the next page begins.
func (in *inboxUse) page(ctx context.Context, s adminapi.InboxSelection) (events []inbox.Event, next int64, err error) {
	events, err = in.List(ctx, s.Filter, s.After, s.Limit)
	if len(events) == s.Limit && err == nil {
		next = events[len(events)-1].Number
	}
	return events, next, err
}

// serveInboxExport streams whole events as lines of JSON, a page after another.
func serveInboxExport(w http.ResponseWriter, r *http.Request) error {
	in, err := theInbox(r)
	if err != nil {
		return err
	}
	s, err := selectionOf(r)
	if err != nil {
		return badRequest(err)
	}
	response := http.NewResponseController(w)
	// the read deadline of the admin endpoint would end the stream
	if err := response.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	events, next, err := in.page(r.Context(), s)
	if err != nil {
		return unavailable(err)
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := json.NewEncoder(w)
	for {
		for _, e := range events {
			e, err := in.Load(r.Context(), e.Number)
			if errors.Is(err, inbox.ErrNotFound) || err == nil && e.Body == nil {
				continue // it has been delivered
			}
			if err == nil {
				err = lines.Encode(in.whole(e))
			}
			if err != nil {
				panic(http.ErrAbortHandler) // so that the client notices
			}
		}
		if err := response.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) || next == 0 {
			return nil // the client has disconnected, or has it all
		}
		s.After = next
		if events, next, err = in.page(r.Context(), s); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}

func serveInboxEvent(w http.ResponseWriter, r *http.Request, number int64) error {
	in, err := theInbox(r)
	if err != nil {
		return err
	}
	e, err := in.Load(r.Context(), number)
	if errors.Is(err, inbox.ErrNotFound) {
		return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: err}
	}
	if err != nil {
		return unavailable(err)
	}
	return writeJSON(w, http.StatusOK, in.whole(e))
}

// serveInboxChange retries or discards the events that the filter in the request's
// body selects.
func serveInboxChange(w http.ResponseWriter, r *http.Request, change string) error {
	in, err := theInbox(r)
	if err != nil {
		return err
	}
	var s *adminapi.InboxSelection
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxFilter))
	dec.DisallowUnknownFields() // a misspelled one would select everything
	if err := dec.Decode(&s); err != nil || s == nil {
		return badRequest(fmt.Errorf("give a filter as a JSON object, such as {\"state\":\"dead\"}: %w", cmp.Or(err, errors.New("it is null"))))
	}
	if _, err := dec.Token(); err != io.EOF {
		return badRequest(errors.New("there is something after the filter"))
	}
	if err := checkSelection(s); err != nil {
		return badRequest(err)
	}
	var answer adminapi.InboxChange
	if s.DryRun {
		answer.Events, err = in.Count(r.Context(), s.Filter)
	} else {
		// without the cancellation: if the client disconnects, the dispatcher must
		// still learn what has changed
		answer, err = in.change(context.WithoutCancel(r.Context()), *s, change == "retry")
	}
	if err != nil {
		return unavailable(err)
	}
	answer.Paused = known(in.Stats().Paused)
	return writeJSON(w, http.StatusOK, answer)
}

// change retries or discards events.
func (in *inboxUse) change(ctx context.Context, s adminapi.InboxSelection, retry bool) (answer adminapi.InboxChange, err error) {
	if s.Limit > 0 {
		var events []inbox.Event
		if events, answer.Next, err = in.page(ctx, s); err != nil || len(events) == 0 {
			return answer, err
		}
		s.Number = nil
		for _, e := range events {
			s.Number = append(s.Number, e.Number)
		}
	}
	if retry {
		answer.Events, err = in.dispatcher.Retry(ctx, s.Filter)
	} else {
		answer.Events, err = in.dispatcher.Discard(ctx, s.Filter)
	}
	return answer, err
}

func serveInboxPause(w http.ResponseWriter, r *http.Request, pause bool) error {
	in, err := theInbox(r)
	if err != nil {
		return err
	}
	if err := in.dispatcher.SetPaused(r.Context(), pause); err != nil {
		return unavailable(err)
	}
	if app := running(); pause && app != nil {
		app.notices.add(noticeInboxPaused, map[string]any{"inbox": in.backing, "waiting": in.Stats().Waiting})
	}
	stats := in.Stats()
	return writeJSON(w, http.StatusOK, adminapi.InboxChange{Events: stats.Waiting, Paused: known(stats.Paused)})
}

// checkSelection returns an error that says what is wrong with a selection.
func checkSelection(s *adminapi.InboxSelection) error {
	for _, state := range s.State {
		switch state {
		case inbox.Waiting, inbox.Dead, inbox.Accepted, inbox.Delivered:
		default:
			return fmt.Errorf("there is no state %q: there are waiting, dead, accepted and delivered", state)
		}
	}
	if s.Limit < 0 || s.Limit > adminapi.MaxInboxPage {
		return fmt.Errorf("limit: it may be from 1 to %d", adminapi.MaxInboxPage)
	}
	return nil
}

// selectionOf returns the selection in the query of r, which always has a limit.
func selectionOf(r *http.Request) (s adminapi.InboxSelection, err error) {
	f := &s.Filter
	for name, values := range r.URL.Query() {
		for _, value := range values {
			switch name {
			case "state":
				f.State = append(f.State, inbox.State(value))
			case "type":
				f.Type = append(f.Type, value)
			case "id":
				f.ID = append(f.ID, value)
			case "key":
				f.Key = append(f.Key, value)
			case "since":
				f.Since, err = time.Parse(time.RFC3339, value)
			case "until":
				f.Until, err = time.Parse(time.RFC3339, value)
			case "status":
				var status int
				status, err = strconv.Atoi(value)
				f.Status = append(f.Status, status)
			case "number":
				var number int64
				number, err = strconv.ParseInt(value, 10, 64)
				f.Number = append(f.Number, number)
			case "limit":
				s.Limit, err = strconv.Atoi(value)
			case "after":
				s.After, err = strconv.ParseInt(value, 10, 64)
			case "inbox":
			default:
				err = errors.New("unknown parameter: there are state, type, id, key, since, until, status, number, limit, after and inbox")
			}
			if err != nil {
				return s, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if err := checkSelection(&s); err != nil {
		return s, err
	}
	if s.Limit == 0 {
		s.Limit = adminapi.MaxInboxPage
	}
	return s, nil
}

// whole is listed with the request and the body.
func (in *inboxUse) whole(e inbox.Event) adminapi.InboxEvent {
	event := in.listed(e)
	event.Request = &e.Request
	event.SetBody(e.Body)
	return event
}

func (in *inboxUse) listed(e inbox.Event) adminapi.InboxEvent {
	event := adminapi.InboxEvent{
		Number: e.Number, State: string(e.State), ID: e.ID, Type: e.Type, Key: e.OrderKey, Arrived: e.Arrived.UTC(), Attempts: e.Attempts,
	}
	if e.State == inbox.Waiting {
		event.Due = known(in.dispatcher.NextAttempt(e))
	}
	event.Settled = known(e.Settled)
	if e.Attempts > 0 {
		e.First.Time, e.Last.Time = e.First.Time.UTC(), e.Last.Time.UTC()
		event.First, event.Last = &e.First, &e.Last
	}
	return event
}

// known returns a time, or nil if there is none.
func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func badRequest(err error) error {
	return caddy.APIError{HTTPStatus: http.StatusBadRequest, Err: err}
}

func unavailable(err error) error {
	return caddy.APIError{HTTPStatus: http.StatusServiceUnavailable, Err: fmt.Errorf("the inbox does not answer: %w", err)}
}
