package dedupe

import (
	"context"
	"sync"
	"time"
)

// Ledger is a [Store] within one process: it knows which IDs are in flight, who
// waits for them, and which were delivered. The zero value is ready for use,
// and its methods are safe for concurrent use. No operation takes longer
// because more IDs are remembered.
//
// Its methods take mu and call the [registry], which holds the states and has
// no locks. No method returns with mu held.
type Ledger struct {
	mu       sync.Mutex
	registry registry // guarded by mu, with everything in it
}

// Limits bounds what a [Ledger] remembers of one scope.
type Limits struct {
	// Capacity is the greatest number of IDs that are remembered, or 0 if there
	// is no limit. IDs in flight are never forgotten.
	Capacity int
	// RefuseWhenFull makes a claim on a new ID fail with [ErrFull] when
	// Capacity is reached. Otherwise the oldest IDs are forgotten.
	RefuseWhenFull bool
}

// Claim is [Store.Claim] within one process.
func (l *Ledger) Claim(ctx context.Context, r Request, limits Limits) (Verdict, error) {
	v, w, err := l.claimOrJoin(r, limits)
	if w == nil {
		return v, err
	}
	giveUp := time.Now().Add(r.Wait)
	deadline := time.NewTimer(r.Wait)
	defer deadline.Stop()
	for w != nil {
		got, ended := l.await(ctx, w, deadline.C)
		if !ended {
			return Verdict{}, ErrInFlight
		}
		if got.token != 0 {
			return r.claimed(got.token, got.digest), nil
		}
		if v, known := r.Compare(got.digest); known {
			return v, nil
		}
		deadline.Reset(time.Until(giveUp)) // it may have passed in the meantime
		v, w, err = l.claimOrJoin(r, limits)
	}
	return v, err
}

// claimOrJoin answers r, or returns a waiter for the delivery in flight.
func (l *Ledger) claimOrJoin(r Request, limits Limits) (Verdict, *waiter, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.registry.claimOrJoin(r, limits, time.Now().UnixNano())
}

// await waits until the delivery ends, the deadline passes, or ctx is done. It
// returns how the delivery ended, if it did.
func (l *Ledger) await(ctx context.Context, w *waiter, deadline <-chan time.Time) (got result, ended bool) {
	select {
	case got = <-w.result:
		return got, true
	case <-deadline:
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return w.leave()
}

// Settle is [Store.Settle] within one process, for a delivery that ended at a
// time. It reports whether the claim was the current one. A late success may
// have been recorded even if it was not.
func (l *Ledger) Settle(c Claim, delivered bool, at time.Time, limits Limits) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.registry.settle(c, delivered, at.UnixNano(), limits, time.Now().UnixNano())
}

// Owns reports whether a claim is the current one on its ID.
func (l *Ledger) Owns(c Claim) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.registry.owns(c)
}

// Records reports whether Settle would record a success of a claim: it is the
// current one, or the ID was not delivered after the claim was made.
func (l *Ledger) Records(c Claim) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.registry.records(c, time.Now().UnixNano())
}

// Remember records an ID as delivered at a time, with the digest and the
// retention of r. IDs with the same retention should be remembered in the order
// of their times.
func (l *Ledger) Remember(r Request, at time.Time, limits Limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now().UnixNano()
	l.registry.remember(l.registry.scope(r.Scope, now), r, limits, at.UnixNano(), now)
}

// Lookup is [Store.Lookup] within one process.
func (l *Ledger) Lookup(scope string, key Key) Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.registry.status(scope, key, time.Now().UnixNano())
}

// Forget is [Store.Forget] within one process. It returns the status that the
// ID had before.
func (l *Ledger) Forget(scope string, key Key) Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.registry.forget(scope, key, time.Now().UnixNano())
}

// Stats is [Store.Stats] within one process.
func (l *Ledger) Stats(limits Limits) Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.registry.stats(limits, time.Now().UnixNano())
}
