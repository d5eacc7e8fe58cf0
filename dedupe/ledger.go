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
	return l.claim(ctx, r, limits, nil)
}

// ClaimFrom is Claim for a store that keeps the delivered IDs elsewhere. Of the
// requests for an ID that is not in flight, one calls recall, which returns the
// delivery that is remembered there, if any. The others wait for it, however
// short their Wait is: recall must return soon.
//
// The ledger itself remembers only deliveries that are being replaced.
func (l *Ledger) ClaimFrom(ctx context.Context, r Request, recall func() (Status, error)) (Verdict, error) {
	return l.claim(ctx, r, Limits{}, recall)
}

func (l *Ledger) claim(ctx context.Context, r Request, limits Limits, recall func() (Status, error)) (Verdict, error) {
	var giveUp time.Time
	var deadline *time.Timer
	for {
		v, w, recalled, err := l.claimOrJoin(r, limits, recall != nil)
		switch {
		case recalled != nil:
			known, err := recalled.wait()
			if err != nil {
				return Verdict{}, err
			}
			if v, ok := r.Compare(known.Digest); known.Delivered && ok {
				return v, nil
			}
			continue
		case w == nil && err == nil && v.State == Claimed && recall != nil:
			for {
				known, err := recall()
				if v, ok, err := l.endRecall(v, known, err); ok {
					return v, err
				}
			}
		case w == nil:
			return v, err
		}
		if deadline == nil {
			giveUp = time.Now().Add(r.Wait)
			deadline = time.NewTimer(r.Wait)
			defer deadline.Stop()
		} else {
			deadline.Reset(time.Until(giveUp)) // it may have passed in the meantime
		}
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
	}
}

// claimOrJoin answers r, or returns a waiter for the delivery in flight, or for
// another request that recalls the ID.
func (l *Ledger) claimOrJoin(r Request, limits Limits, recalls bool) (Verdict, *waiter, *recalling, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now().UnixNano()
	if f := l.registry.recalling(r); f != nil {
		return Verdict{}, nil, f, nil
	}
	v, w, err := l.registry.claimOrJoin(r, limits, now)
	if recalls && w == nil && err == nil && v.State == Claimed {
		l.registry.beginRecall(v.Claim)
	}
	return v, w, nil, err
}

// endRecall answers a request with what it has recalled, unless that is out of
// date.
func (l *Ledger) endRecall(v Verdict, known Status, err error) (_ Verdict, ok bool, _ error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.registry.endRecall(v, known, err, time.Now().UnixNano())
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
