// Package adminapi is what the plugin's part of Caddy's admin API and its
// clients, the command line and the page, have in common: paths and JSON.
package adminapi

import (
	"strconv"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// Path is where the admin endpoint has what is ours.
const Path = "/buzzbip_webhook/"

// Overview is the answer to `GET /buzzbip_webhook/scopes`.
type Overview struct {
	// Since is when the process started to count.
	Since   time.Time `json:"since"`
	Scopes  []Scope   `json:"scopes"`
	Stores  []Store   `json:"stores"`
	Secrets []Secret  `json:"secrets"`
}

// Scope counts the event IDs of a scope.
type Scope struct {
	// Scope is empty for all the scopes together that no handler has any more.
	Scope     string `json:"scope"`
	Store     string `json:"store"`
	Delivered int    `json:"delivered"`
	InFlight  int    `json:"in_flight"`
	Capacity  int    `json:"capacity,omitempty"` // 0: any number
}

// Store is the state of a store.
type Store struct {
	Store   string `json:"store"`
	Up      bool   `json:"up"`
	Error   string `json:"error,omitempty"`
	Evicted uint64 `json:"evicted"`
}

// Secret tells when a secret matched.
type Secret struct {
	Secret    string     `json:"secret"` // its label
	Scope     string     `json:"scope"`
	LastMatch *time.Time `json:"last_match"` // null: not since the process started
}

// Event is the answer to `GET` and `DELETE /buzzbip_webhook/events/<id>`.
type Event struct {
	ID     string       `json:"id"`
	Scopes []EventState `json:"scopes"`
	// Error says that not all stores answered.
	Error string `json:"error,omitempty"`
}

// The states of an event.
const (
	StateUnseen       = "unseen"
	StateInFlight     = "in_flight"
	StateDelivered    = "delivered"
	StateRedelivering = "redelivering"  // delivered before, and in flight again with another body
	StateNotDelivered = "not_delivered" // the last attempt failed
	StateUnknown      = "unknown"       // the store does not answer
)

// EventState is what is known of an event in one scope.
type EventState struct {
	Scope     string     `json:"scope"`
	Store     string     `json:"store"`
	State     string     `json:"state,omitempty"`
	Expires   *time.Time `json:"expires,omitempty"`   // of what is remembered
	Forgotten *bool      `json:"forgotten,omitempty"` // after DELETE; absent if the store does not tell
	// LastFailure is of an event that is not delivered, as far as it is
	// remembered: by this instance, in memory.
	LastFailure *Failure `json:"last_failure,omitempty"`
}

// Failure is a delivery that failed.
type Failure struct {
	Time     time.Time     `json:"time"` // when it ended
	Cause    webhook.Cause `json:"cause"`
	Status   int           `json:"status,omitempty"` // of the next handlers, if they answered
	Duration float64       `json:"duration"`         // in seconds
}

// String completes "last attempt failed".
func (f *Failure) String() string {
	what := "(" + string(f.Cause) + ")"
	if f.Status != 0 {
		what = "with " + strconv.Itoa(f.Status)
	}
	return what + " at " + f.Time.Format(time.RFC3339)
}
