package storetest

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"pgregory.net/rapid"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// id is the model of one id: what every store has to agree with.
type id struct {
	delivered bool
	digest    dedupe.Digest
	owner     int // number of the claim; 0: it is not in flight
}

func (i id) claim(r dedupe.Request) any {
	switch {
	case i.delivered && i.digest == r.Digest:
		return dedupe.Delivered
	case i.delivered && !r.Redeliver:
		return dedupe.Conflicting
	case i.owner != 0:
		return dedupe.ErrInFlight
	}
	return dedupe.Claimed
}

func (i id) settle(number int, c dedupe.Claim, delivered bool) id {
	late := i.owner != number
	if !late {
		i.owner = 0
	}
	since := i.delivered && (c.Replaces == 0 || c.Replaces != i.digest)
	if delivered && !(late && since) {
		i.delivered, i.digest = true, c.Digest
	}
	return i
}

// testSequences makes random sequences of operations, one after the other, and
// compares each answer with the model.
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
		for n := range s.claims { // a store may hold something for each
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
	claims []made
	busy   map[string]map[int]int // by id and store: claims that were not settled
}

// made is a claim that was made; its number is its index and 1.
type made struct {
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
		want = dedupe.ErrInFlight // here it goes on, although its lease has ended
	}
	v, err := s.stores[store].Claim(context.Background(), r)
	if got := outcome(v, err); got != want && !(err != nil && want == dedupe.ErrInFlight && errors.Is(err, dedupe.ErrInFlight)) {
		// a process that still delivers may not have asked the others
		if !(s.busy[name][store] > 0 && errors.Is(err, dedupe.ErrInFlight)) {
			t.Fatalf("the claim gave %v, want %v", got, want)
		}
	}
	if err != nil || v.State != dedupe.Claimed {
		return false
	}
	s.claims = append(s.claims, made{Claim: v.Claim, id: name, store: store})
	model.owner = len(s.claims)
	s.busy[name][store]++
	return true
}

func (s *sequence) settle(t *rapid.T) {
	if len(s.claims) == 0 {
		t.Skip() // this step: rapid takes another
	}
	s.end(rapid.IntRange(0, len(s.claims)-1).Draw(t, "claim"), rapid.Bool().Draw(t, "delivered"))
}

// end settles a claim, for the first time or again, in time or late.
func (s *sequence) end(n int, delivered bool) {
	c := &s.claims[n]
	if c.settled && c.Retention < time.Hour {
		return // it would be delivered until an unknown moment
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

// abandon makes a claim and lets its lease end.
func (s *sequence) abandon(t *rapid.T) {
	name, model, store, r := s.draw(t)
	r.Lease = time.Millisecond
	if !s.shared || !s.makeClaim(t, name, model, store, r) {
		return
	}
	time.Sleep(5 * time.Millisecond)
	model.owner = 0
}

// outlive delivers an id and waits until it is forgotten.
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

var seed = flag.Uint64("storetest.seed", 0, "seed of the histories; 0 takes another one each time")

// input and output are those of one operation in a history.
type input struct {
	operation string
	id        string
	request   dedupe.Request // of a claim
	claim     int            // to settle
	settled   dedupe.Claim   // the same
	delivered bool
}

type output struct {
	outcome any // of a claim
	claim   int // that was granted
	status  dedupe.Status
	ok      bool // forgotten
}

// idModel is the model of one id, for concurrent operations.
var idModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		byID := make(map[string][]porcupine.Operation)
		for _, o := range history {
			name := o.Input.(input).id
			byID[name] = append(byID[name], o)
		}
		for _, part := range byID {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return id{} },
	Step: func(state, in, out any) (bool, any) {
		i, op, got := state.(id), in.(input), out.(output)
		switch op.operation {
		case "claim":
			if i.claim(op.request) != got.outcome {
				return false, i
			}
			if got.outcome == dedupe.Claimed {
				i.owner = got.claim
			}
			return true, i
		case "settle":
			return true, i.settle(op.claim, op.settled, op.delivered)
		case "forget":
			was := i.delivered
			i.delivered, i.digest = false, 0
			return got.ok == was, i
		default:
			return got.status.Delivered == i.delivered && got.status.InFlight == (i.owner != 0) && got.status.Digest == i.digest, i
		}
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v: %+v", in, out) },
}

// testHistories lets many use an id at once, and checks that what they saw can
// have happened in one order. In a shared store, a process may tell those who
// wait in it what it has just learnt from the others: that can be a moment old,
// which shows only if the id is forgotten or redelivered in that moment, or if
// a late success with another body comes before that of the owner.
func testHistories(t *testing.T, c Config) {
	from := *seed
	if from == 0 {
		from = mathrand.Uint64()
	}
	t.Logf("repeat with -storetest.seed=%d", from)
	stores := []dedupe.Store{c.Open(t), c.Open(t), c.Open(t)}
	for round := range uint64(10) {
		var mu sync.Mutex
		var history []porcupine.Operation
		claims := 0
		run := rand.Text()
		var clock atomic.Int64 // that of a system may stand still for a millisecond
		// do makes one operation and notes when it began and ended
		do := func(client int, in input, operation func() output) {
			call := clock.Add(1)
			out := operation()
			ended := clock.Add(1)
			mu.Lock()
			defer mu.Unlock()
			history = append(history, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: ended})
		}
		var clients sync.WaitGroup
		for client := range 6 {
			rnd := mathrand.New(mathrand.NewPCG(from+round, uint64(client)))
			store := stores[client%len(stores)]
			clients.Go(func() {
				for range 12 {
					name := string(rune('a' + rnd.IntN(2)))
					r := dedupe.Request{
						Scope: run, Key: dedupe.KeyOf(name), Digest: dedupe.Digest(1 + rnd.IntN(2)),
						Wait: patience, Lease: time.Hour, Retention: time.Hour, Redeliver: !c.Shared && rnd.IntN(2) == 0,
					}
					switch rnd.IntN(6) {
					case 0:
						if c.Shared {
							continue
						}
						do(client, input{operation: "forget", id: name}, func() output {
							ok, err := store.Forget(context.Background(), r.Scope, r.Key)
							if err != nil {
								t.Error(err)
							}
							return output{ok: ok}
						})
						continue
					case 1:
						do(client, input{operation: "lookup", id: name}, func() output {
							status, err := store.Lookup(context.Background(), r.Scope, r.Key)
							if err != nil {
								t.Error(err)
							}
							return output{status: status}
						})
						continue
					}
					var claim dedupe.Claim
					number := 0
					do(client, input{operation: "claim", id: name, request: r}, func() output {
						v, err := store.Claim(context.Background(), r)
						if err != nil {
							t.Error(err)
						}
						if err == nil && v.State == dedupe.Claimed {
							mu.Lock()
							claims++
							number = claims
							mu.Unlock()
							claim = v.Claim
						}
						return output{outcome: outcome(v, err), claim: number}
					})
					if number == 0 {
						continue
					}
					in := input{operation: "settle", id: name, request: r, claim: number, settled: claim, delivered: rnd.IntN(3) > 0}
					for attempt := range 1 + rnd.IntN(2) {
						if attempt > 0 && !c.Shared { // with an old token
							in.delivered = rnd.IntN(3) > 0
						}
						do(client, in, func() output {
							if err := store.Settle(context.Background(), claim, in.delivered); err != nil {
								t.Error(err)
							}
							return output{}
						})
					}
				}
			})
		}
		clients.Wait()
		result, info := porcupine.CheckOperationsVerbose(idModel, history, patience)
		if result == porcupine.Ok {
			continue
		}
		where := filepath.Join(os.TempDir(), "history-"+run+".html")
		if err := porcupine.VisualizePath(idModel, info, where); err != nil {
			t.Error(err)
		}
		t.Fatalf("no order of these operations explains what was seen (%s): see %s", result, where)
	}
}
