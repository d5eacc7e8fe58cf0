package dedupe

import (
	"context"
	"errors"
	"time"
)

// Store tells first deliveries from duplicates. Its methods are safe for
// concurrent use. A store outlives the configuration that uses it, so settings
// that a reload may change are passed with each call.
type Store interface {
	// Claim asks for the right to deliver an event. While the ID is in flight,
	// Claim waits until the delivery ends, Request.Wait has passed, or ctx is
	// done. When the delivery fails, exactly one of the waiting callers gets
	// the claim.
	//
	// Claim returns [ErrInFlight] if the wait ended before the delivery did,
	// [ErrFull] if the store has no room for another ID, and any other error if
	// the store cannot tell. A claim that was granted is valid even if ctx is
	// done, and must be settled.
	Claim(ctx context.Context, r Request) (Verdict, error)

	// Settle ends a claim. If the event was delivered, its ID is remembered for
	// the retention of the claim's request, counted from now. Otherwise the ID
	// returns to its state before the claim, and the first waiting caller gets
	// the claim. Only the current owner can end its claim: Settle with a token
	// that is out of date leaves the claim of another owner as it is and
	// returns nil. A late success is still recorded, unless the ID was
	// delivered after the claim was made; see [Claim.Replaces]. An error means
	// that so far only this process knows the outcome.
	//
	// ctx bounds how long the caller waits. It must not be the context of the
	// request or of the configuration: both may be done before the delivery is.
	Settle(ctx context.Context, c Claim, delivered bool) error

	// Lookup returns what is known of an ID.
	Lookup(ctx context.Context, scope string, key Key) (Status, error)

	// Forget makes a delivered ID unseen, so that a redelivery passes, and
	// reports whether the ID was remembered. It does not end a delivery in
	// flight, which is remembered when it succeeds.
	Forget(ctx context.Context, scope string, key Key) (bool, error)

	// Stats describes the store, using only what this process knows.
	Stats() Stats
}

// Starter is implemented by stores that acquire something exclusive, such as a
// file lock, when their configuration becomes active. Validating a
// configuration does not start its stores.
type Starter interface {
	// Start makes the store ready for use. An error fails the load.
	Start() error
}

// Request describes one arrival of an event.
type Request struct {
	// Scope is the name of the set of IDs that the event's ID belongs to.
	Scope string
	// Key stands for the event's ID; see [KeyOf].
	Key Key
	// Digest stands for the event's body; see [DigestOf].
	Digest Digest
	// Wait is how long to wait while the ID is in flight.
	Wait time.Duration
	// Lease is how long a claim outlives an owner that has died, in a store
	// that processes share. It must be longer than a delivery can take.
	Lease time.Duration
	// Retention is how long the ID is remembered once it is delivered.
	Retention time.Duration
	// Redeliver grants a claim also on an ID that was delivered with another
	// body.
	Redeliver bool
}

// Compare answers a request for an ID that was delivered with a digest. If the
// event must be delivered again, there is no answer yet and known is false.
func (r Request) Compare(delivered Digest) (v Verdict, known bool) {
	switch {
	case delivered == r.Digest:
		return Verdict{State: Delivered}, true
	case r.Redeliver:
		return Verdict{}, false
	default:
		return Verdict{State: Conflicting}, true
	}
}

// State is the answer of a store to a [Request].
type State uint8

const (
	// Claimed means that the caller owns the ID now. It must deliver the event
	// and then settle the claim.
	Claimed State = iota
	// Delivered means that the ID was delivered with the same body.
	Delivered
	// Conflicting means that the ID was delivered with another body.
	Conflicting
)

// Verdict is the answer to a [Request], with the claim if there is one.
type Verdict struct {
	State State
	// Claim must be settled if State is [Claimed]. Otherwise it is zero.
	Claim Claim
}

// Claim is the right to deliver one event.
type Claim struct {
	Request
	// Token is the fencing token: no other claim on the same ID has it. It is not
	// 0: with that, Settle records a success of which there was no claim, or no
	// longer, like a late one.
	Token uint64
	// Replaces is the digest of the earlier delivery that Redeliver overrode,
	// or 0. A late success replaces only this delivery: any other was recorded
	// after the claim was made.
	Replaces Digest
}

// Status is what a store knows of an ID. The zero value means unseen.
type Status struct {
	// InFlight means that the ID is being delivered. It can be Delivered at the
	// same time, while it is delivered again with another body.
	InFlight bool
	// Delivered means that the ID is remembered.
	Delivered bool
	// Digest stands for the body that was delivered.
	Digest Digest
	// Expires is when a delivered ID will be forgotten.
	Expires time.Time
}

// Stats describes a store at one moment.
type Stats struct {
	// Backing names where the IDs are kept. Stores with the same backing share
	// what they remember.
	Backing string
	// Scopes has the scopes that hold any IDs, by name.
	Scopes map[string]ScopeStats
	// Evicted counts the IDs that were forgotten before their retention had
	// passed, for lack of room, since the process began to use the store.
	Evicted uint64
	// Forgotten counts the IDs that this process had recorded in a shared
	// store, and that the store lost before their retention had passed.
	Forgotten uint64
	// Err is why the store uses only the memory of this process, or rejects
	// requests. It is nil while the store works as configured.
	Err error
}

// ScopeStats counts the IDs of one scope that this process knows of.
type ScopeStats struct {
	Delivered, InFlight int
	// Capacity is the greatest number of IDs that can be remembered, or 0 if
	// there is no limit.
	Capacity int
}

var (
	// ErrInFlight means that the wait ended while the ID was still being
	// delivered.
	ErrInFlight = errors.New("the event is still being delivered")
	// ErrFull means that the store has no room for another ID.
	ErrFull = errors.New("the store is full")
)
