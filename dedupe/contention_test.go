package dedupe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const contendedIDs = 1000

// contention is the state of many goroutines that claim the same IDs.
type contention struct {
	*rig
	ctx    context.Context // done when the test takes too long: a claim was lost
	done   context.Context // done from the beginning
	tokens sync.Map
	owners [contendedIDs]atomic.Int32
	// delivered counts the deliveries of each ID.
	delivered           [contendedIDs]atomic.Int32
	failures, abandoned atomic.Int32
}

func TestConcurrentOwnersFailAtRandomAndEachIDIsDeliveredOnce(t *testing.T) {
	// a claim that was lost shows as a wait that never ends
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	done, cancelDone := context.WithCancel(ctx)
	cancelDone()
	c := &contention{rig: newRig(t), ctx: ctx, done: done}
	seed := random(t).Uint64()
	var senders sync.WaitGroup
	for n := range 32 {
		senders.Go(func() { c.send(n, rand.New(rand.NewPCG(seed, uint64(n)))) })
	}
	senders.Wait()
	for id := range contendedIDs {
		if n := c.delivered[id].Load(); n != 1 {
			t.Errorf("ID %d was delivered %d times", id, n)
		}
	}
	if c.failures.Load() == 0 || c.abandoned.Load() == 0 {
		t.Errorf("%d deliveries failed and %d waits were abandoned: too few to prove anything", c.failures.Load(), c.abandoned.Load())
	}
	if s := c.registry.scopes["scope"]; len(s.inFlight) != 0 || s.delivered.count != contendedIDs {
		t.Errorf("%d IDs in flight and %d remembered at the end", len(s.inFlight), s.delivered.count)
	}
}

// send claims every ID until it is delivered.
func (c *contention) send(sender int, rnd *rand.Rand) {
	order := rnd.Perm(contendedIDs)
	if sender%2 == 0 { // these claim the same ID at the same time
		slices.Sort(order)
	}
	for _, id := range order {
		if id%8 == 0 { // other scopes are added and removed in the meantime
			c.settle(Claim{Request: Request{Scope: fmt.Sprint(sender, id)}}, false)
		}
		for answered := false; !answered; {
			v, err := c.claim(arrival(fmt.Sprint(id), 1), rnd)
			switch {
			case c.ctx.Err() != nil:
				c.Error("a claim was lost")
				return
			case errors.Is(err, ErrInFlight):
				c.abandoned.Add(1)
				runtime.Gosched()
			case err != nil || v.State == Conflicting:
				c.Errorf("got state %d and error %v", v.State, err)
				return
			case v.State == Delivered:
				if c.delivered[id].Load() == 0 {
					c.Errorf("ID %d is called delivered, but is not", id)
				}
				answered = true
			default:
				answered = c.deliverOrFail(id, v.Claim, rnd)
			}
		}
	}
}

// claim waits until the end, not at all, until a context is done, or for a time
// that often ends when the delivery does.
func (c *contention) claim(r Request, rnd *rand.Rand) (Verdict, error) {
	switch r.Wait = time.Minute; rnd.IntN(6) {
	case 0:
		r.Wait = 0
	case 1:
		r.Wait = time.Duration(rnd.IntN(50)) * time.Microsecond
	case 2:
		return c.Claim(c.done, r, c.limits)
	}
	return c.Claim(c.ctx, r, c.limits)
}

func (c *contention) deliverOrFail(id int, claim Claim, rnd *rand.Rand) (success bool) {
	if _, again := c.tokens.LoadOrStore(claim.Token, id); again {
		c.Errorf("the token %d was used twice", claim.Token)
	}
	if n := c.owners[id].Add(1); n != 1 {
		c.Errorf("ID %d has %d owners", id, n)
	}
	for range rnd.IntN(20) {
		runtime.Gosched()
	}
	success = rnd.IntN(10) == 0
	if success {
		c.delivered[id].Add(1)
	} else {
		c.failures.Add(1)
	}
	c.owners[id].Add(-1)
	c.settle(claim, success)
	if rnd.IntN(4) == 0 { // again, with an old token
		c.settle(claim, success && rnd.IntN(2) == 0)
	}
	return success
}
