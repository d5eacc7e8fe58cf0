package storetest

import (
	"context"
	"crypto/rand"
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

	"github.com/buzzbip/caddy-webhook/dedupe"
)

var seed = flag.Uint64("storetest.seed", 0, "seed of the histories; 0 uses a new one each time")

// testHistories makes several clients use the same IDs concurrently, and checks
// that what they saw is possible in some sequential order.
//
// In a shared store, a process may answer its waiters with what it has just
// learned from the others, which can be out of date by a moment. That shows only
// if the ID is forgotten or redelivered in that moment, or if a late success
// with another body precedes that of the owner. So histories of shared stores do
// without these.
func testHistories(t *testing.T, c Config) {
	from := *seed
	if from == 0 {
		from = mathrand.Uint64()
	}
	t.Logf("reproduce with -storetest.seed=%d", from)
	stores := []dedupe.Store{c.Open(t), c.Open(t), c.Open(t)}
	for round := range uint64(10) {
		h := &history{T: t, shared: c.Shared, scope: rand.Text()}
		var clients sync.WaitGroup
		for number := range 6 {
			cl := &client{
				history: h, number: number, store: stores[number%len(stores)],
				rnd: mathrand.New(mathrand.NewPCG(from+round, uint64(number))),
			}
			clients.Go(func() {
				for range 12 {
					cl.step()
				}
			})
		}
		clients.Wait()
		h.check()
	}
}

// history is what the clients did and saw in one round.
type history struct {
	*testing.T
	shared bool
	scope  string
	clock  atomic.Int64 // counts: the system clock may stand still for a while

	mu         sync.Mutex
	operations []porcupine.Operation
	claims     int
}

// do runs an operation and records when it began and ended.
func (h *history) do(client int, in input, operation func() output) {
	call := h.clock.Add(1)
	out := operation()
	ended := h.clock.Add(1)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.operations = append(h.operations, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: ended})
}

func (h *history) numberClaim() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.claims++
	return h.claims
}

func (h *history) check() {
	result, info := porcupine.CheckOperationsVerbose(idModel, h.operations, patience)
	if result == porcupine.Ok {
		return
	}
	page := filepath.Join(os.TempDir(), "history-"+h.scope+".html")
	if err := porcupine.VisualizePath(idModel, info, page); err != nil {
		h.Error(err)
	}
	h.Fatalf("no order of these operations explains what was seen (%s): see %s", result, page)
}

// client makes random operations in a store.
type client struct {
	*history
	number int
	store  dedupe.Store
	rnd    *mathrand.Rand
}

func (c *client) step() {
	name := string(rune('a' + c.rnd.IntN(2)))
	r := dedupe.Request{
		Scope: c.scope, Key: dedupe.KeyOf(name), Digest: dedupe.Digest(1 + c.rnd.IntN(2)),
		Wait: patience, Lease: time.Hour, Retention: time.Hour, Redeliver: !c.shared && c.rnd.IntN(2) == 0,
	}
	switch c.rnd.IntN(6) {
	case 0:
		if !c.shared {
			c.forget(name, r)
		}
	case 1:
		c.lookup(name, r)
	default:
		if claim, number := c.claim(name, r); number != 0 {
			c.settle(name, claim, number)
		}
	}
}

func (c *client) forget(name string, r dedupe.Request) {
	c.do(c.number, input{operation: "forget", id: name}, func() output {
		ok, err := c.store.Forget(context.Background(), r.Scope, r.Key)
		if err != nil {
			c.Error(err)
		}
		return output{ok: ok}
	})
}

func (c *client) lookup(name string, r dedupe.Request) {
	c.do(c.number, input{operation: "lookup", id: name}, func() output {
		status, err := c.store.Lookup(context.Background(), r.Scope, r.Key)
		if err != nil {
			c.Error(err)
		}
		return output{status: status}
	})
}

// claim returns the number of the claim, or 0 if none was granted.
func (c *client) claim(name string, r dedupe.Request) (claim dedupe.Claim, number int) {
	c.do(c.number, input{operation: "claim", id: name, request: r}, func() output {
		v, err := c.store.Claim(context.Background(), r)
		if err != nil {
			c.Error(err)
		}
		if err == nil && v.State == dedupe.Claimed {
			claim, number = v.Claim, c.numberClaim()
		}
		return output{outcome: outcome(v, err), claim: number}
	})
	return claim, number
}

// settle settles a claim once or twice, the second time with an old token.
func (c *client) settle(name string, claim dedupe.Claim, number int) {
	in := input{operation: "settle", id: name, request: claim.Request, claim: number, settled: claim, delivered: c.rnd.IntN(3) > 0}
	for attempt := range 1 + c.rnd.IntN(2) {
		if attempt > 0 && !c.shared {
			in.delivered = c.rnd.IntN(3) > 0
		}
		c.do(c.number, in, func() output {
			if err := c.store.Settle(context.Background(), claim, in.delivered); err != nil {
				c.Error(err)
			}
			return output{}
		})
	}
}

// input and output describe one operation of a history.
type input struct {
	operation string
	id        string
	request   dedupe.Request // for a claim
	claim     int            // the number of the claim to settle
	settled   dedupe.Claim   // the claim to settle
	delivered bool           // how it is settled
}

type output struct {
	outcome any           // of a claim
	claim   int           // the number of the claim, if it was granted
	status  dedupe.Status // of a lookup
	ok      bool          // of forgetting
}

// idModel is the model of an ID for concurrent operations.
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
