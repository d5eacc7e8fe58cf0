package dedupe

import (
	"container/list"
	"context"
	"math"
	"sync"
	"time"
)

// Ledger holds the states of ids within one process: what is in flight, who
// waits for it, and what was delivered. The zero value is ready for use, and
// its methods are safe for concurrent use. No operation takes longer because
// more ids are remembered.
type Ledger struct {
	mu      sync.Mutex
	scopes  map[string]*scope
	tokens  uint64 // the last token given out
	evicted uint64
}

// Limits bounds what a [Ledger] remembers of one scope.
type Limits struct {
	// Capacity is the number of ids that are remembered at most; 0 means any
	// number. Ids in flight are not forgotten, whatever it is.
	Capacity int
	// RefuseWhenFull makes a claim on a new id fail with [ErrFull] when
	// Capacity is reached; otherwise the oldest ids are forgotten.
	RefuseWhenFull bool
}

// batch is how many ids one operation forgets at most, expired ones and those
// over a capacity that was lowered.
const batch = 64

type scope struct {
	delivered table
	flights   map[Key]*flight
}

// flight is a delivery that is under way.
type flight struct {
	token   uint64
	waiters list.List // of chan landing, each with room for its only value
}

// landing tells a waiter how a flight ended.
type landing struct {
	token  uint64 // if not zero: the flight failed, and the waiter owns the id
	digest Digest // what was delivered: just now or, with a token, before
}

// Claim is [Store.Claim] within one process.
func (l *Ledger) Claim(ctx context.Context, r Request, limits Limits) (Verdict, error) {
	v, f, err := l.claim(r, limits)
	if f == nil {
		return v, err
	}
	giveUp := time.Now().Add(r.Wait)
	deadline := time.NewTimer(r.Wait)
	defer deadline.Stop()
	for f != nil {
		end, landed := f.wait(ctx, deadline.C, &l.mu)
		if !landed {
			return Verdict{}, ErrInFlight
		}
		if end.token != 0 {
			return r.claimed(end.token, end.digest), nil
		}
		if v, known := r.Compare(end.digest); known {
			return v, nil
		}
		deadline.Reset(time.Until(giveUp)) // it may have passed while f landed
		v, f, err = l.claim(r, limits)
	}
	return v, err
}

// claim answers r at once, or returns the flight to wait for, with l.mu held.
func (l *Ledger) claim(r Request, limits Limits) (Verdict, *flight, error) {
	l.mu.Lock()
	now := time.Now().UnixNano()
	s := l.scope(r.Scope, now)
	l.forget(s, limits, 0, now)
	var replaces Digest
	remembered := s.delivered.find(r.Key)
	if remembered != nil && remembered.expires > now {
		if v, known := r.Compare(remembered.digest); known {
			l.mu.Unlock()
			return v, nil, nil
		}
		replaces = remembered.digest
	}
	if f := s.flights[r.Key]; f != nil {
		return Verdict{}, f, nil
	}
	defer l.mu.Unlock()
	if limits.RefuseWhenFull && remembered == nil && limits.excess(s.delivered.count+len(s.flights)+1) {
		return Verdict{}, nil, ErrFull
	}
	f := &flight{token: l.nextToken()}
	s.flights[r.Key] = f
	return r.claimed(f.token, replaces), nil, nil
}

// wait joins f's waiters and releases mu, which guards them, until f has
// landed, the deadline has passed or ctx is done.
func (f *flight) wait(ctx context.Context, deadline <-chan time.Time, mu *sync.Mutex) (end landing, landed bool) {
	ends := make(chan landing, 1)
	place := f.waiters.PushBack(ends)
	mu.Unlock()
	select {
	case end = <-ends:
		return end, true
	case <-deadline:
	case <-ctx.Done():
	}
	mu.Lock()
	defer mu.Unlock()
	select {
	case end = <-ends: // it landed just now, perhaps in our hands
		return end, true
	default:
		f.waiters.Remove(place)
		return landing{}, false
	}
}

// Settle is [Store.Settle] within one process, for a delivery that ended at a
// time. It reports whether the claim was the present one: a late success may
// have been recorded although it was not.
func (l *Ledger) Settle(c Claim, delivered bool, at time.Time, limits Limits) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now().UnixNano()
	s := l.scope(c.Scope, now)
	f := s.flights[c.Key]
	present := f != nil && f.token == c.Token
	if !delivered {
		if present {
			l.release(s, f, c.Key, now)
		}
		return present
	}
	if !present && !s.takesLate(c, now) {
		return false
	}
	l.remember(s, c.Request, limits, at.UnixNano(), now)
	if f != nil {
		f.answer(c.Digest)
	}
	if present {
		delete(s.flights, c.Key)
	}
	return present
}

// release ends a flight that failed: its first waiter owns the id next.
func (l *Ledger) release(s *scope, f *flight, key Key, now int64) {
	next := f.waiters.Front()
	if next == nil {
		delete(s.flights, key)
		return
	}
	f.token = l.nextToken()
	handover := landing{token: f.token}
	if before := s.delivered.find(key); before != nil && before.expires > now {
		handover.digest = before.digest
	}
	f.waiters.Remove(next).(chan landing) <- handover
}

// answer tells all waiters what was delivered.
func (f *flight) answer(delivered Digest) {
	for w := f.waiters.Front(); w != nil; w = f.waiters.Front() {
		f.waiters.Remove(w).(chan landing) <- landing{digest: delivered}
	}
}

// takesLate reports whether a success of a claim that is not the present one
// is recorded: not if the id was delivered since the claim.
func (s *scope) takesLate(c Claim, now int64) bool {
	known := s.delivered.find(c.Key)
	return known == nil || known.expires <= now || c.Replaces != 0 && known.digest == c.Replaces
}

// Owns reports whether a claim is the present one on its id.
func (l *Ledger) Owns(c Claim) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.owns(c)
}

// owns is Owns with l.mu held.
func (l *Ledger) owns(c Claim) bool {
	s := l.scopes[c.Scope]
	if s == nil {
		return false
	}
	f := s.flights[c.Key]
	return f != nil && f.token == c.Token
}

// Records reports whether Settle would record a success of a claim: the
// present one, or one that is late while the id was not delivered since.
func (l *Ledger) Records(c Claim) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.scopes[c.Scope]
	return s == nil || l.owns(c) || s.takesLate(c, time.Now().UnixNano())
}

// Remember remembers an id as delivered at a time, with the digest and for the
// retention of r. Those of one retention are to be remembered in the order of
// their times.
func (l *Ledger) Remember(r Request, at time.Time, limits Limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now().UnixNano()
	l.remember(l.scope(r.Scope, now), r, limits, at.UnixNano(), now)
}

// Lookup is [Store.Lookup] within one process.
func (l *Ledger) Lookup(scope string, key Key) Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.scopes[scope]
	if s == nil {
		return Status{}
	}
	return s.status(key)
}

// Forget is [Store.Forget] within one process. It returns the status before.
func (l *Ledger) Forget(scope string, key Key) Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.scopes[scope]
	if s == nil {
		return Status{}
	}
	was := s.status(key)
	if d := s.delivered.find(key); d != nil {
		s.delivered.remove(d)
	}
	return was
}

func (s *scope) status(key Key) (known Status) {
	_, known.InFlight = s.flights[key]
	if d := s.delivered.find(key); d != nil && d.expires > time.Now().UnixNano() {
		known.Delivered, known.Digest, known.Expires = true, d.digest, time.Unix(0, d.expires)
	}
	return known
}

// Stats is [Store.Stats] within one process.
func (l *Ledger) Stats(limits Limits) Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	stats := Stats{Scopes: make(map[string]ScopeStats, len(l.scopes)), Evicted: l.evicted}
	now := time.Now().UnixNano()
	for name, s := range l.scopes {
		l.forget(s, Limits{}, 0, now) // expired ones only: other scopes may have other limits
		if s.delivered.count+len(s.flights) > 0 {
			stats.Scopes[name] = ScopeStats{Delivered: s.delivered.count, InFlight: len(s.flights), Capacity: limits.Capacity}
		}
	}
	return stats
}

// scope returns the scope of a name. When it is a new one, as after the
// rotation of a secret, scopes that have nothing left to remember go.
func (l *Ledger) scope(name string, now int64) *scope {
	s := l.scopes[name]
	if s != nil {
		return s
	}
	for n, s := range l.scopes {
		if len(s.flights) == 0 && s.delivered.latest() <= now {
			delete(l.scopes, n)
		}
	}
	if l.scopes == nil {
		l.scopes = make(map[string]*scope)
	}
	s = &scope{flights: make(map[Key]*flight)}
	l.scopes[name] = s
	return s
}

// remember adds an id that was delivered at a time, and makes room for it.
func (l *Ledger) remember(s *scope, r Request, limits Limits, at, now int64) {
	if old := s.delivered.find(r.Key); old != nil {
		s.delivered.remove(old)
	}
	if at+min(int64(r.Retention), math.MaxInt64-at) <= now {
		return // it has expired already
	}
	l.forget(s, limits, 1, now)
	s.delivered.insert(r.Key, r.Digest, r.Retention, at)
}

// forget drops expired ids and, where the limits allow it, the oldest of those
// over the capacity when some are to be added.
func (l *Ledger) forget(s *scope, limits Limits, added int, now int64) {
	for range batch {
		oldest := s.delivered.oldest()
		if oldest == nil {
			return
		}
		if oldest.expires > now {
			if limits.RefuseWhenFull || !limits.excess(s.delivered.count+added) {
				return
			}
			l.evicted++
		}
		s.delivered.remove(oldest)
	}
}

// excess reports whether a number of ids is over the capacity.
func (limits Limits) excess(ids int) bool {
	return limits.Capacity > 0 && ids > limits.Capacity
}

func (l *Ledger) nextToken() uint64 {
	l.tokens++
	return l.tokens
}

func (r Request) claimed(token uint64, replaces Digest) Verdict {
	return Verdict{State: Claimed, Claim: Claim{Request: r, Token: token, Replaces: replaces}}
}

// Compare answers a request for an id that was delivered with a digest. What
// is to be redelivered is not known yet.
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
