package dedupe

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// model is a ledger in the simplest form that is correct.
type model map[string]*modelScope

type modelScope struct {
	delivered map[Key]modelEntry
	inFlight  map[Key]uint64 // tokens
}

type modelEntry struct {
	digest  Digest
	expires time.Time
}

func (m model) scope(name string) *modelScope {
	if m[name] == nil {
		m[name] = &modelScope{map[Key]modelEntry{}, map[Key]uint64{}}
	}
	return m[name]
}

// keep removes expired IDs and, unless new ones are refused, the oldest over a
// count.
func (s *modelScope) keep(limits Limits, count int) {
	for k, e := range s.delivered {
		if !e.expires.After(time.Now()) {
			delete(s.delivered, k)
		}
	}
	for !limits.RefuseWhenFull && len(s.delivered) > max(count, 0) {
		var oldest Key
		for k, e := range s.delivered {
			if o, ok := s.delivered[oldest]; !ok || e.expires.Before(o.expires) {
				oldest = k
			}
		}
		delete(s.delivered, oldest)
	}
}

// claim returns what [rig.expect] takes.
func (m model) claim(r Request, limits Limits) any {
	s := m.scope(r.Scope)
	s.keep(limits, limits.Capacity)
	e, known := s.delivered[r.Key]
	_, inFlight := s.inFlight[r.Key]
	switch {
	case known && e.digest == r.Digest:
		return Delivered
	case known && !r.Redeliver:
		return Conflicting
	case inFlight:
		return ErrInFlight
	case !known && limits.RefuseWhenFull && len(s.delivered)+len(s.inFlight) >= limits.Capacity:
		return ErrFull
	}
	return Claimed
}

func (m model) settle(c Claim, delivered bool, limits Limits) {
	s := m.scope(c.Scope)
	e, known := s.delivered[c.Key]
	known = known && e.expires.After(time.Now())
	if s.inFlight[c.Key] == c.Token {
		delete(s.inFlight, c.Key)
	} else if known && (c.Replaces == 0 || c.Replaces != e.digest) {
		return // delivered after the claim was made
	}
	if delivered {
		delete(s.delivered, c.Key)
		s.keep(limits, limits.Capacity-1)
		s.delivered[c.Key] = modelEntry{c.Digest, time.Now().Add(c.Retention)}
	}
}

// comparison makes random calls to a ledger and to a model.
type comparison struct {
	*rig
	model  model
	rnd    *rand.Rand
	keys   []Key
	recent []Claim     // whether settled or not
	seen   map[any]int // how often each outcome came up
}

func TestRandomOperationsAgreeWithModel(t *testing.T) {
	rnd, seen := random(t), make(map[any]int)
	bubble(t, func(g *rig) {
		c := comparison{rig: g, model: model{}, rnd: rnd, seen: seen}
		for i := range 24 {
			c.keys = append(c.keys, KeyOf(fmt.Sprint(i)))
		}
		for step := range 30_000 {
			// whole seconds and one nanosecond a step: no two IDs expire in the
			// same instant, so it is clear which one is the oldest
			time.Sleep(1 + time.Duration(max(0, rnd.IntN(8)-5))*time.Second)
			if step%50 == 0 {
				c.reload()
			}
			if len(c.recent) > 0 && rnd.IntN(3) == 0 {
				c.settleBoth(c.recent[rnd.IntN(len(c.recent))], rnd.IntN(3) > 0)
			} else {
				c.claimBoth(step)
			}
			c.compare(step)
			if step%100 == 0 {
				c.settleOldClaims()
			}
		}
	})
	for _, outcome := range []any{Claimed, Delivered, Conflicting, ErrInFlight, ErrFull} {
		if seen[outcome] < 100 {
			t.Errorf("outcome %v came up only %d times", outcome, seen[outcome])
		}
	}
}

func (c *comparison) reload() {
	capacities := []int{1, 2, 5, 9, 1000}
	c.limits = Limits{capacities[c.rnd.IntN(len(capacities))], c.rnd.IntN(2) == 0}
}

func (c *comparison) claimBoth(step int) {
	retentions := []time.Duration{time.Second, 7 * time.Second, 90 * time.Second}
	r := Request{
		Scope:     fmt.Sprint(c.rnd.IntN(3)),
		Key:       c.keys[c.rnd.IntN(len(c.keys))],
		Digest:    Digest(c.rnd.IntN(2)),
		Retention: retentions[c.rnd.IntN(len(retentions))],
		Redeliver: c.rnd.IntN(4) == 0,
	}
	if c.rnd.IntN(200) == 0 { // a new scope removes empty ones
		r.Scope = fmt.Sprint("new ", step)
	}
	want := c.model.claim(r, c.limits)
	c.seen[want]++
	claim := c.expect(r, want)
	if want != Claimed {
		return
	}
	if len(c.recent) > 0 && claim.Token <= c.recent[len(c.recent)-1].Token {
		c.Fatalf("step %d: the token %d does not increase", step, claim.Token)
	}
	c.model[r.Scope].inFlight[r.Key] = claim.Token
	c.recent = append(c.recent, claim)
	c.recent = c.recent[max(0, len(c.recent)-32):]
}

func (c *comparison) settleBoth(claim Claim, delivered bool) {
	c.settle(claim, delivered)
	c.model.settle(claim, delivered, c.limits)
}

// settleOldClaims ends all claims, of which those that are no longer recent
// would fill the scopes.
func (c *comparison) settleOldClaims() {
	for name, s := range c.model {
		for k, token := range s.inFlight {
			c.settleBoth(Claim{Request: Request{Scope: name, Key: k}, Token: token}, false)
		}
	}
}

func (c *comparison) compare(step int) {
	for name, s := range c.model {
		got := c.registry.scopes[name]
		if got == nil {
			got = new(scope)
		}
		if n, want := len(got.inFlight), len(s.inFlight); n != want {
			c.Fatalf("step %d: %d IDs in flight, want %d", step, n, want)
		}
		for k, e := range s.delivered {
			// an expired one stays until the next operation on its scope
			if !e.expires.After(time.Now()) {
				continue
			}
			if d := got.delivered.find(k); d == nil || d.digest != e.digest || d.expires != e.expires.UnixNano() {
				c.Fatalf("step %d: remembered %+v, want %+v", step, d, e)
			}
		}
		if n, most := got.delivered.count, len(s.delivered); n > most {
			c.Fatalf("step %d: %d IDs remembered, want at most %d", step, n, most)
		}
	}
}
