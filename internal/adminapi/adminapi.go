// Package adminapi defines the paths and the JSON of the plugin's part of Caddy's
// admin API. The root package serves them; the command line and the page are clients.
package adminapi

import (
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// Path is the prefix of the plugin's paths at the admin endpoint.
const Path = "/buzzbip_webhook/"

// Overview is the answer to `GET /buzzbip_webhook/scopes`.
type Overview struct {
	// Since is when the process was started.
	Since   time.Time `json:"since"`
	Scopes  []Scope   `json:"scopes"`
	Stores  []Store   `json:"stores"`
	Secrets []Secret  `json:"secrets"`
	// NotEnforced says that a handler has enforce off.
	NotEnforced bool `json:"not_enforced,omitempty"`
	// Observed is nil if no handler with enforce off has had a request since the
	// process was started.
	Observed *Observed `json:"observed,omitempty"`
}

// Observed counts the requests of handlers with enforce off since the process was
// started.
type Observed struct {
	Requests uint64 `json:"requests"`
	// WouldBe counts them by what their result would have been: one of
	// [webhook.Results], or [webhook.WouldBeUnknown].
	WouldBe map[webhook.Result]uint64 `json:"would_be"`
	// Reasons counts those that would have been rejected, and those that no handler
	// answered.
	Reasons map[webhook.Reason]uint64 `json:"reasons"`
}

// Scope says how many event IDs a store holds for a scope.
type Scope struct {
	// Scope is empty for the sum of all scopes that no handler uses any more.
	Scope     string `json:"scope"`
	Store     string `json:"store"`
	Delivered int    `json:"delivered"`
	InFlight  int    `json:"in_flight"`
	Capacity  int    `json:"capacity,omitempty"` // 0: unlimited
}

// Store is the state of a store.
type Store struct {
	Store   string `json:"store"`
	Up      bool   `json:"up"`
	Error   string `json:"error,omitempty"`
	Evicted uint64 `json:"evicted"`
}

// Secret says when a secret last matched a signature.
type Secret struct {
	Secret    string     `json:"secret"` // its label
	Scope     string     `json:"scope"`
	LastMatch *time.Time `json:"last_match"` // null: not since the process started
}

// Event is the answer to `GET` and `DELETE /buzzbip_webhook/events/<id>`.
type Event struct {
	ID     string       `json:"id"`
	Scopes []EventState `json:"scopes"`
	// Error says why a store did not answer, the first one of several. It is empty
	// if all did.
	Error string `json:"error,omitempty"`
}

// The states of an event in a scope.
const (
	StateUnseen       = "unseen"
	StateInFlight     = "in_flight"
	StateDelivered    = "delivered"
	StateRedelivering = "redelivering"  // delivered earlier, and in flight again with another body
	StateNotDelivered = "not_delivered" // the last attempt failed
	StateStored       = "stored"        // in the inbox, to be delivered again
	StateDead         = "dead"          // in the inbox, not to be delivered again
	StateUnknown      = "unknown"       // the store does not answer
)

// EventState is what a store knows about an event in one scope.
type EventState struct {
	Scope     string     `json:"scope"`
	Store     string     `json:"store"`
	State     string     `json:"state,omitempty"`
	Expires   *time.Time `json:"expires,omitempty"`   // until when it is remembered
	Forgotten *bool      `json:"forgotten,omitempty"` // answer to DELETE; nil if the store does not answer
	// LastFailure is the last failure of an event that is not delivered. It is nil
	// if this instance, which keeps failures in memory, knows of none.
	LastFailure *Failure `json:"last_failure,omitempty"`
	// Attempts counts the attempts to deliver an event that is in the inbox.
	Attempts int `json:"attempts,omitempty"`
	// Due is when an event that waits in the inbox is delivered again, at the
	// earliest. It is nil while redelivery is paused.
	Due *time.Time `json:"due,omitempty"`
}

// Failure is an attempt to deliver that failed.
type Failure struct {
	Time     time.Time     `json:"time"` // when it ended
	Cause    webhook.Cause `json:"cause"`
	Status   int           `json:"status,omitempty"` // of the next handlers, if they answered
	Duration float64       `json:"duration"`         // in seconds
	Error    string        `json:"error,omitempty"`  // that a handler returned, or which upstream answered; up to 500 bytes
}

// String continues a text such as "last attempt failed".
func (f *Failure) String() string {
	what := "(" + string(f.Cause) + ")"
	if f.Status != 0 {
		what = "with " + strconv.Itoa(f.Status)
	}
	what += " at " + f.Time.Format(time.RFC3339)
	if f.Error != "" {
		what += ": " + f.Error
	}
	return what
}

// InboxState is the state of an inbox.
type InboxState struct {
	Inbox     string     `json:"inbox"` // the kind, and where the events are
	Waiting   int        `json:"waiting"`
	Dead      int        `json:"dead"`
	Delivered int        `json:"delivered"` // that are kept
	Bytes     int64      `json:"bytes"`     // of those that wait or are dead, as max_size counts it
	Oldest    *time.Time `json:"oldest"`    // since when the oldest of those that wait does; null: none waits
	Paused    *time.Time `json:"paused"`    // since when; null: not paused
	Error     string     `json:"error"`     // why it cannot keep events at present, or empty
}

// InboxSummary is the answer to `GET /buzzbip_webhook/inbox/summary`.
type InboxSummary struct {
	Inboxes []InboxWithGroups `json:"inboxes"`
}

// InboxWithGroups says what waits or is dead in an inbox, and why: the largest
// groups of at most 20, the largest first.
type InboxWithGroups struct {
	InboxState
	Groups []InboxGroup `json:"groups"`
}

// InboxGroup are the events in one state whose last attempts have ended in the same
// way.
type InboxGroup struct {
	State  string     `json:"state"`  // waiting or dead
	Status int        `json:"status"` // of the backend; 0: it did not answer, or no attempt was made
	Cause  string     `json:"cause"`  // of the failure; empty: no attempt was made
	Error  string     `json:"error"`
	Events int        `json:"events"`
	Since  time.Time  `json:"since"` // when the first of them has arrived
	Next   *time.Time `json:"next"`  // when the first of them is due; null: they are dead
}

// Inbox is the answer to `GET /buzzbip_webhook/inbox`: a page of its events, and its
// state.
type Inbox struct {
	InboxState
	Events []InboxEvent `json:"events"`
	Next   int64        `json:"next,omitempty"` // give it as the parameter after for the next page; 0: this is the last one
}

// InboxEvent is an event in an inbox.
type InboxEvent struct {
	Number   int64          `json:"number"`
	State    string         `json:"state"`
	ID       string         `json:"id"`
	Type     string         `json:"type"`
	Key      string         `json:"key,omitempty"`
	Arrived  time.Time      `json:"arrived"`
	Due      *time.Time     `json:"due,omitempty"`     // of one that waits: the next attempt, at the earliest
	Settled  *time.Time     `json:"settled,omitempty"` // when it died or was accepted
	Attempts int            `json:"attempts"`
	First    *inbox.Attempt `json:"first,omitempty"`
	Last     *inbox.Attempt `json:"last,omitempty"`
	// Request and the body are not in lists. BodyBase64 stands in place of Body if
	// the body is not valid UTF-8.
	Request    *inbox.Request `json:"request,omitempty"`
	Body       string         `json:"body,omitempty"`
	BodyBase64 []byte         `json:"body_base64,omitempty"`
}

// SetBody sets the body.
func (e *InboxEvent) SetBody(body []byte) {
	if utf8.Valid(body) {
		e.Body = string(body)
	} else {
		e.BodyBase64 = body
	}
}

// Payload returns the body, or nil if e has none.
func (e *InboxEvent) Payload() []byte {
	if e.Body != "" {
		return []byte(e.Body)
	}
	return e.BodyBase64
}

// MaxInboxPage is how many events a page has at most.
const MaxInboxPage = 500

// InboxSelection selects the events that `POST /buzzbip_webhook/inbox/retry` and
// `discard` change.
type InboxSelection struct {
	inbox.Filter
	// DryRun means that the events are only counted.
	DryRun bool `json:"dry_run,omitempty"`
	// Limit is how many events are changed at most, up to MaxInboxPage: the first
	// ones by number, after After. 0: all events.
	Limit int   `json:"limit,omitempty"`
	After int64 `json:"after,omitempty"`
}

// InboxChange is the answer to a change of the inbox.
type InboxChange struct {
	// Events counts the events that were changed, would be, or wait.
	Events int `json:"events"`
	// Next is to be given as After for the events after the limit; 0: there are
	// none.
	Next int64 `json:"next,omitempty"`
	// Paused is since when delivery is paused, or nil.
	Paused *time.Time `json:"paused,omitempty"`
}
