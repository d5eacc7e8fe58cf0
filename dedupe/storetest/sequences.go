package storetest

import (
	"context"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// testSequences runs random sequences of operations, one operation at a time,
// and compares each answer with the model.
func testSequences(t *testing.T, c Config) {
	stores := []dedupe.Store{c.Open(t), c.Open(t), c.Open(t)}
	rapid.Check(t, func(t *rapid.T) {
		s := &sequence{
			T: t, stores: stores, shared: c.Shared,
			run: rand.Text(), ids: make(map[string]*id), busy: make(map[string]map[int]int),
		}
		t.Repeat(map[string]func(*rapid.T){
			"claim":   s.claim,
			"settle":  s.settle,
			"forget":  s.forget,
			"lookup":  s.lookup,
			"abandon": s.abandon,
			"outlive": s.outlive,
		})
		for n := range s.claims { // a store may hold resources for each
			s.end(n, false)
		}
	})
}

type sequence struct {
	*rapid.T
	stores []dedupe.Store
	shared bool
	run    string
	ids    map[string]*id
	claims []numberedClaim
	busy   map[string]map[int]int // number of unsettled claims, by ID and store
}

// numberedClaim is a claim whose number in the model is its index plus 1.
type numberedClaim struct {
	dedupe.Claim
	id      string
	store   int
	settled bool
}

func (s *sequence) draw(t *rapid.T) (name string, model *id, store int, r dedupe.Request) {
	name = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "id")
	scope := rapid.SampledFrom([]string{"x", "y"}).Draw(t, "scope")
	store = rapid.IntRange(0, len(s.stores)-1).Draw(t, "store")
	r = dedupe.Request{
		Scope: scope + s.run, Key: dedupe.KeyOf(name),
		Digest:    dedupe.Digest(rapid.IntRange(1, 2).Draw(t, "body")),
		Redeliver: rapid.Bool().Draw(t, "redeliver"),
		Lease:     time.Hour, Retention: time.Hour,
	}
	name += scope
	if s.ids[name] == nil {
		s.ids[name], s.busy[name] = new(id), make(map[int]int)
	}
	return name, s.ids[name], store, r
}

func (s *sequence) claim(t *rapid.T) {
	name, model, store, r := s.draw(t)
	s.makeClaim(t, name, model, store, r)
}

func (s *sequence) makeClaim(t *rapid.T, name string, model *id, store int, r dedupe.Request) bool {
	want := model.claim(r)
	if s.busy[name][store] > 0 && want == dedupe.Claimed {
		want = dedupe.ErrInFlight // its owner still delivers, although the lease has ended
	}
	v, err := s.stores[store].Claim(context.Background(), r)
	if got := outcome(v, err); got != want && !(err != nil && want == dedupe.ErrInFlight && errors.Is(err, dedupe.ErrInFlight)) {
		// a process that still delivers need not ask the others
		if !(s.busy[name][store] > 0 && errors.Is(err, dedupe.ErrInFlight)) {
			t.Fatalf("the claim gave %v, want %v", got, want)
		}
	}
	if err != nil || v.State != dedupe.Claimed {
		return false
	}
	s.claims = append(s.claims, numberedClaim{Claim: v.Claim, id: name, store: store})
	model.owner = len(s.claims)
	s.busy[name][store]++
	return true
}

func (s *sequence) settle(t *rapid.T) {
	if len(s.claims) == 0 {
		t.Skip() // only this step: rapid takes another
	}
	s.end(rapid.IntRange(0, len(s.claims)-1).Draw(t, "claim"), rapid.Bool().Draw(t, "delivered"))
}

// end settles a claim, for the first time or again, late or not.
func (s *sequence) end(n int, delivered bool) {
	c := &s.claims[n]
	if c.settled && c.Retention < time.Hour {
		return // the model would not know when it expires
	}
	model := s.ids[c.id]
	if err := s.stores[c.store].Settle(context.Background(), c.Claim, delivered); err != nil {
		s.Fatalf("settling: %v", err)
	}
	if !c.settled {
		c.settled = true
		s.busy[c.id][c.store]--
	}
	*model = model.settle(n+1, c.Claim, delivered)
}

func (s *sequence) forget(t *rapid.T) {
	_, model, store, r := s.draw(t)
	got, err := s.stores[store].Forget(context.Background(), r.Scope, r.Key)
	if err != nil || got != model.delivered {
		t.Fatalf("forgotten: %v, error %v; want %v", got, err, model.delivered)
	}
	model.delivered = false
}

func (s *sequence) lookup(t *rapid.T) {
	_, model, store, r := s.draw(t)
	got, err := s.stores[store].Lookup(context.Background(), r.Scope, r.Key)
	if err != nil || got.Delivered != model.delivered || got.InFlight != (model.owner != 0) || model.delivered && got.Digest != model.digest {
		t.Fatalf("looked up as %+v, error %v; want %+v", got, err, *model)
	}
}

// abandon makes a claim and waits for the end of its lease.
func (s *sequence) abandon(t *rapid.T) {
	name, model, store, r := s.draw(t)
	r.Lease = time.Millisecond
	if !s.shared || !s.makeClaim(t, name, model, store, r) {
		return
	}
	time.Sleep(5 * time.Millisecond)
	model.owner = 0
}

// outlive delivers an ID and waits until it expires.
func (s *sequence) outlive(t *rapid.T) {
	name, model, store, r := s.draw(t)
	r.Retention = time.Millisecond
	if !s.makeClaim(t, name, model, store, r) {
		return
	}
	s.end(len(s.claims)-1, true)
	time.Sleep(5 * time.Millisecond)
	model.delivered = false
}
