package dedupe

import (
	"container/list"
	"math"
	"time"
)

// registry is the core of a [Ledger]: the states of all IDs, by scope. It takes
// no locks; the ledger does. The zero value is ready for use.
//
// Times are Unix times in nanoseconds, as in [table].
type registry struct {
	scopes    map[string]*scope
	lastToken uint64
	evicted   uint64
}

// scope holds the IDs of one scope.
type scope struct {
	delivered table
	inFlight  map[Key]flight
}

// flight is the delivery of an ID that is in flight.
type flight struct {
	token   uint64     // of the current claim
	waiters *list.List // of chan result, in order of arrival; nil as long as nobody waits
	recall  *recalling // nil unless its owner is recalling the ID
}

// recalling is the state of a flight whose owner finds out whether the ID was
// delivered. Nobody else decides anything about the ID until done is closed.
type recalling struct {
	done  chan struct{}
	known Status // set before done is closed, as is err
	err   error
	stale bool // something was recorded or forgotten since recalling began
}

func (r *recalling) wait() (Status, error) {
	<-r.done
	return r.known, r.err
}

// waiter is a caller that waits for the end of a flight.
type waiter struct {
	queue  *list.List
	place  *list.Element
	result chan result // receives one value and has room for it
}

// result tells a waiter how a flight ended.
type result struct {
	token  uint64 // if not 0, the delivery failed and the waiter has the claim
	digest Digest // what was delivered: now or, with a token, earlier
}

// maxRemovals is how many IDs one operation removes at most: expired ones, and
// those over a capacity that was lowered.
const maxRemovals = 64

// claimOrJoin answers r, or returns a waiter for the delivery in flight.
func (g *registry) claimOrJoin(r Request, limits Limits, now int64) (Verdict, *waiter, error) {
	s := g.scope(r.Scope, now)
	g.makeRoom(s, limits, 0, now)
	var replaces Digest
	remembered := s.delivered.find(r.Key)
	if remembered != nil && remembered.expires > now {
		if v, known := r.Compare(remembered.digest); known {
			return v, nil, nil
		}
		replaces = remembered.digest
	}
	if _, ok := s.inFlight[r.Key]; ok {
		return Verdict{}, s.join(r.Key), nil
	}
	if limits.RefuseWhenFull && remembered == nil && limits.exceededBy(s.delivered.count+len(s.inFlight)+1) {
		return Verdict{}, nil, ErrFull
	}
	token := g.nextToken()
	s.inFlight[r.Key] = flight{token: token}
	return r.claimed(token, replaces), nil, nil
}

// recalling returns what to wait for before r can be answered, or nil.
func (g *registry) recalling(r Request) *recalling {
	if s := g.scopes[r.Scope]; s != nil {
		return s.inFlight[r.Key].recall
	}
	return nil
}

func (g *registry) beginRecall(c Claim) {
	g.scopes[c.Scope].setRecall(c.Key, &recalling{done: make(chan struct{})})
}

func (s *scope) setRecall(key Key, r *recalling) {
	f := s.inFlight[key]
	f.recall = r
	s.inFlight[key] = f
}

// endRecall answers the request of a claim with what it has recalled, unless
// that is out of date.
func (g *registry) endRecall(v Verdict, known Status, err error, now int64) (_ Verdict, ok bool, _ error) {
	r := v.Claim.Request
	s := g.scopes[r.Scope]
	recall := s.inFlight[r.Key].recall
	if recall.stale {
		recall.stale = false
		return v, false, nil
	}
	defer close(recall.done)
	if err != nil {
		recall.err = err
		delete(s.inFlight, r.Key)
		return Verdict{}, true, err
	}
	if known.Delivered {
		recall.known = known
		if answer, ok := r.Compare(known.Digest); ok {
			delete(s.inFlight, r.Key)
			return answer, true, nil
		}
		// until the flight ends, it answers other requests
		v.Claim.Replaces = known.Digest
		earlier := Request{Key: r.Key, Digest: known.Digest, Retention: time.Duration(known.Expires.UnixNano() - now)}
		g.remember(s, earlier, Limits{}, now, now)
	}
	s.setRecall(r.Key, nil)
	return v, true, nil
}

// changed notes that something was recorded or forgotten about an ID.
func (s *scope) changed(key Key) {
	if r := s.inFlight[key].recall; r != nil {
		r.stale = true
	}
}

func (r Request) claimed(token uint64, replaces Digest) Verdict {
	return Verdict{State: Claimed, Claim: Claim{Request: r, Token: token, Replaces: replaces}}
}

// settle ends the claim c, if it is the current one, and reports whether it
// was. It records a success, even a late one if it still counts.
func (g *registry) settle(c Claim, delivered bool, at int64, limits Limits, now int64) (current bool) {
	s := g.scope(c.Scope, now)
	current = s.owns(c)
	if !delivered {
		if current {
			g.handOver(s, c.Key, now)
		}
		return current
	}
	if !current && !s.acceptsLate(c, now) {
		return false
	}
	g.remember(s, c.Request, limits, at, now)
	s.changed(c.Key)
	s.inFlight[c.Key].tellAll(result{digest: c.Digest})
	if current {
		delete(s.inFlight, c.Key)
	}
	return current
}

// handOver gives the claim of a delivery that failed to the first waiter, if
// there is one.
func (g *registry) handOver(s *scope, key Key, now int64) {
	f := s.inFlight[key]
	if f.waiters == nil || f.waiters.Len() == 0 {
		delete(s.inFlight, key)
		return
	}
	f.token = g.nextToken()
	s.inFlight[key] = f
	next := result{token: f.token}
	if earlier := s.delivered.find(key); earlier != nil && earlier.expires > now {
		next.digest = earlier.digest
	}
	f.tellFirst(next)
}

// join returns a waiter for the delivery of an ID that is in flight.
func (s *scope) join(key Key) *waiter {
	f := s.inFlight[key]
	if f.waiters == nil {
		f.waiters = list.New()
		s.inFlight[key] = f
	}
	results := make(chan result, 1)
	return &waiter{queue: f.waiters, place: f.waiters.PushBack(results), result: results}
}

// leave removes w, unless the delivery ended in the meantime. Then it returns
// the result, which may be the claim.
func (w *waiter) leave() (got result, ended bool) {
	select {
	case got = <-w.result:
		return got, true
	default:
		w.queue.Remove(w.place)
		return result{}, false
	}
}

func (f flight) tellFirst(r result) {
	f.waiters.Remove(f.waiters.Front()).(chan result) <- r
}

func (f flight) tellAll(r result) {
	for f.waiters != nil && f.waiters.Len() > 0 {
		f.tellFirst(r)
	}
}

// owns reports whether c is the current claim on its ID.
func (s *scope) owns(c Claim) bool {
	f, ok := s.inFlight[c.Key]
	return ok && f.token == c.Token
}

// acceptsLate reports whether a success of a claim that is not the current one
// is recorded: not if the ID was delivered after the claim was made.
func (s *scope) acceptsLate(c Claim, now int64) bool {
	known := s.delivered.find(c.Key)
	return known == nil || known.expires <= now || c.Replaces != 0 && known.digest == c.Replaces
}

func (g *registry) owns(c Claim) bool {
	s := g.scopes[c.Scope]
	return s != nil && s.owns(c)
}

func (g *registry) records(c Claim, now int64) bool {
	s := g.scopes[c.Scope]
	return s == nil || s.owns(c) || s.acceptsLate(c, now)
}

func (g *registry) status(name string, key Key, now int64) Status {
	s := g.scopes[name]
	if s == nil {
		return Status{}
	}
	return s.status(key, now)
}

func (s *scope) status(key Key, now int64) (known Status) {
	f, ok := s.inFlight[key]
	known.InFlight = ok && f.recall == nil
	if d := s.delivered.find(key); d != nil && d.expires > now {
		known.Delivered, known.Digest, known.Expires = true, d.digest, time.Unix(0, d.expires)
	}
	return known
}

// forget makes a delivered ID unseen and returns the status that it had.
func (g *registry) forget(name string, key Key, now int64) (before Status) {
	s := g.scopes[name]
	if s == nil {
		return Status{}
	}
	s.changed(key)
	before = s.status(key, now)
	if d := s.delivered.find(key); d != nil {
		s.delivered.remove(d)
	}
	return before
}

func (g *registry) stats(limits Limits, now int64) Stats {
	stats := Stats{Scopes: make(map[string]ScopeStats, len(g.scopes)), Evicted: g.evicted}
	for name, s := range g.scopes {
		g.makeRoom(s, Limits{}, 0, now) // no limits: those of other scopes may differ
		if s.delivered.count+len(s.inFlight) > 0 {
			stats.Scopes[name] = ScopeStats{Delivered: s.delivered.count, InFlight: len(s.inFlight), Capacity: limits.Capacity}
		}
	}
	return stats
}

// scope returns the scope of a name, which it adds if there is none. Adding one
// removes scopes that have nothing left to remember, as after the rotation of a
// secret.
func (g *registry) scope(name string, now int64) *scope {
	s := g.scopes[name]
	if s != nil {
		return s
	}
	for n, s := range g.scopes {
		if len(s.inFlight) == 0 && s.delivered.latest() <= now {
			delete(g.scopes, n)
		}
	}
	if g.scopes == nil {
		g.scopes = make(map[string]*scope)
	}
	s = &scope{inFlight: make(map[Key]flight)}
	g.scopes[name] = s
	return s
}

// remember records an ID that was delivered at a time.
func (g *registry) remember(s *scope, r Request, limits Limits, at, now int64) {
	if old := s.delivered.find(r.Key); old != nil {
		s.delivered.remove(old)
	}
	if expiry(at, r.Retention) <= now {
		return
	}
	g.makeRoom(s, limits, 1, now)
	s.delivered.insert(r.Key, r.Digest, r.Retention, at)
}

// expiry returns at plus the retention, or the latest time if that overflows.
func expiry(at int64, retention time.Duration) int64 {
	return at + min(int64(retention), math.MaxInt64-at)
}

// makeRoom removes expired IDs and, unless new IDs are refused instead, the
// oldest ones that would be over the capacity once some were added.
func (g *registry) makeRoom(s *scope, limits Limits, added int, now int64) {
	for range maxRemovals {
		oldest := s.delivered.oldest()
		if oldest == nil {
			return
		}
		if oldest.expires > now {
			if limits.RefuseWhenFull || !limits.exceededBy(s.delivered.count+added) {
				return
			}
			g.evicted++
		}
		s.delivered.remove(oldest)
	}
}

func (limits Limits) exceededBy(ids int) bool {
	return limits.Capacity > 0 && ids > limits.Capacity
}

func (g *registry) nextToken() uint64 {
	g.lastToken++
	return g.lastToken
}
