// Package dedupe decides which delivery of an event goes to the backend when
// the same event arrives more than once, at the same time or later.
//
// An id is, per scope, in one of three states: unseen, in flight (claimed by
// an owner that is delivering it now), or delivered (remembered together with
// a digest of its body until its retention has passed). A [Store] moves ids
// between these states. [Ledger] is the in-process implementation that stores
// build on.
package dedupe

import (
	"context"
	"crypto/sha256"
	"errors"
	"time"

	"github.com/cespare/xxhash/v2"
)

// Store tells first deliveries from later ones. Its methods are safe for
// concurrent use. A store outlives the configuration that uses it, so what an
// operator may change at a reload comes with each call.
type Store interface {
	// Claim asks for the right to deliver an event. While the same id is in
	// flight it waits, at most for Request.Wait or until ctx is done, and of
	// all that wait for a delivery that fails, exactly one gets the claim.
	//
	// Claim returns [ErrInFlight] when the wait ended before the delivery did,
	// [ErrFull] when the store has no room to remember another id, and any
	// other error when it cannot tell. A claim that was granted stands even if
	// ctx is done, and must be settled.
	Claim(ctx context.Context, r Request) (Verdict, error)

	// Settle ends a claim: a delivered ID is remembered for the retention that
	// its request named, counted from now; any other is as it was before the
	// claim, and the first request that waits for it gets the claim. Only the
	// present owner can end its claim: a late settlement, with a token that is
	// out of date, takes nothing from it and returns nil. A late success is
	// recorded all the same, unless the ID was delivered since; see
	// [Claim.Replaces]. An error means that the outcome is known only to this
	// process so far.
	//
	// ctx bounds how long the caller waits. It must not be that of the request
	// or of the configuration: both may be gone by the time a delivery ends.
	Settle(ctx context.Context, c Claim, delivered bool) error

	// Lookup tells what is known of an id.
	Lookup(ctx context.Context, scope string, key Key) (Status, error)

	// Forget makes an id that was delivered unseen, so that a redelivery
	// passes, and reports whether it was remembered. A delivery in flight goes
	// on, and is remembered when it succeeds.
	Forget(ctx context.Context, scope string, key Key) (bool, error)

	// Stats tells how the store is, without asking anything outside of this
	// process.
	Stats() Stats
}

// Starter is implemented by stores that take hold of something when their
// configuration comes into force, and not when it is merely checked.
type Starter interface {
	// Start makes the store ready for use. An error fails the load.
	Start() error
}

// Request describes one arrival of an event.
type Request struct {
	// Scope is the space of ids that the event's id belongs to.
	Scope string
	// Key stands for the event's id; see [KeyOf].
	Key Key
	// Digest stands for the event's body; see [DigestOf].
	Digest Digest
	// Wait is how long to wait for a delivery of the same id in flight.
	Wait time.Duration
	// Lease is how long a claim outlives an owner that has died, in a store
	// that is shared between processes. It must exceed the time that a
	// delivery may take.
	Lease time.Duration
	// Retention is how long the id is remembered once it is delivered.
	Retention time.Duration
	// Redeliver also grants a claim on an id that was delivered with another
	// body.
	Redeliver bool
}

// State says what a store knows of the id of a [Request].
type State uint8

const (
	// Claimed means that the caller owns the id now. It must deliver the event
	// and then settle the claim.
	Claimed State = iota
	// Delivered means that the id was delivered with the same body.
	Delivered
	// Conflicting means that the id was delivered with another body.
	Conflicting
)

// Verdict is the answer to a [Request].
type Verdict struct {
	State State
	// Claim is what to settle when State is [Claimed], else zero.
	Claim Claim
}

// Claim is the right to deliver one event.
type Claim struct {
	Request
	// Token is the fencing token: it tells this claim from every earlier and
	// later one on the same id.
	Token uint64
	// Replaces is the digest of the earlier delivery in spite of which
	// Redeliver got the claim; 0: there was none. A late success is recorded
	// only over this delivery: another one has happened since the claim.
	Replaces Digest
}

// Status is what a store knows of an id. The zero value means unseen.
type Status struct {
	// InFlight means that it is being delivered now; it can be Delivered at
	// the same time, when it is delivered again with another body.
	InFlight bool
	// Delivered means that it is remembered.
	Delivered bool
	// Digest stands for the body that was delivered.
	Digest Digest
	// Expires is when a delivered id will be forgotten.
	Expires time.Time
}

// Stats describes a store at one moment.
type Stats struct {
	// Backing names what the ids are kept in: stores that share it share what
	// they remember.
	Backing string
	// Scopes has the scopes that hold any ids, by name.
	Scopes map[string]ScopeStats
	// Evicted counts the ids that were forgotten before their retention had
	// passed, for lack of room, since the process began to use the store.
	Evicted uint64
	// Forgotten counts the ids that this process had recorded in a shared
	// store and that the store no longer knew before their retention had
	// passed.
	Forgotten uint64
	// Err says why the store runs on the memory of this process alone, or
	// refuses; nil means that it works as configured.
	Err error
}

// ScopeStats counts the ids of one scope that this process knows of.
type ScopeStats struct {
	Delivered, InFlight int
	// Capacity is the number of ids that can be remembered; 0: any number.
	Capacity int
}

// Key is the fixed-size form of an event id.
type Key [16]byte

// KeyOf returns the first 128 bits of the SHA-256 of an event id. It is the
// same in every process, so that it can be stored and shared.
func KeyOf(id string) Key {
	// a fixed buffer keeps the copy of the id off the heap
	var buf [256]byte
	sum := sha256.Sum256(append(buf[:0], id...))
	return Key(sum[:16])
}

// Digest stands for the body of an event: equal bodies have equal digests.
// It tells bodies apart by accident, not against somebody who holds the
// signing secret and could sign what they like anyway.
type Digest uint64

// DigestOf returns the 64-bit xxHash of a body. It does not depend on a
// secret, so one body has one digest under every secret of a scope.
func DigestOf(body []byte) Digest { return Digest(xxhash.Sum64(body)) }

var (
	// ErrInFlight means that the id was still being delivered when the wait
	// for it ended.
	ErrInFlight = errors.New("the event is still being delivered")
	// ErrFull means that the store has no room for another id.
	ErrFull = errors.New("the store is full")
)
