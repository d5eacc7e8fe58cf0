package buzzbip

import (
	"container/list"
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// allowance is what a verified event takes in addition to its body, in bytes: its
// goroutines, its connections to the sender and the backend, and its request. Over
// HTTPS with HTTP/1.1 it was 93 KiB, over HTTP/2 53 KiB.
const allowance = 96 << 10

// underWay is the memory of all verified events under way in this process. It
// survives reloads, since deliveries of an earlier configuration go on.
var underWay budget

// budget is memory that handlers share, each up to a limit of its own. Three
// quarters of a limit are for deliveries, and the rest is for events that wait:
// those take memory too, but must not keep others from being delivered. Each of the
// two parts takes one event of any size if it is empty, so that no event waits
// forever.
//
// The zero value is empty and ready for use.
type budget struct {
	mu         sync.Mutex
	delivering int64
	waiting    int64
	queues     []*budgetQueue // by limit, the highest first, which is not empty
}

// budgetQueue holds the events that wait under one limit, in order of arrival.
// Those under a higher limit go first: they may use memory that the others may not.
type budgetQueue struct {
	limit int64
	list  list.List // of *budgetWaiter
}

type budgetWaiter struct {
	queue   *budgetQueue
	place   *list.Element
	cost    int64
	granted chan struct{} // closed once the cost is that of a delivery
}

var errOverloaded = errors.New("verified events under way take the memory that max_in_flight allows: see whether the backend hangs, or raise max_in_flight")

// acquire takes memory for a delivery, which release gives back. If there is not
// enough, it waits, in order of arrival, until wait has passed or ctx is done, and
// reports that it has waited.
func (b *budget) acquire(ctx context.Context, cost, limit int64, wait time.Duration) (waited bool, err error) {
	w, err := b.acquireOrJoin(cost, limit)
	if w == nil {
		return false, err
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-w.granted:
		return true, nil
	case <-timer.C:
	case <-ctx.Done():
	}
	return true, b.leave(w)
}

// acquireOrJoin takes memory for a delivery, or returns a waiter for it.
func (b *budget) acquireOrJoin(cost, limit int64) (*budgetWaiter, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if next := len(b.queues) == 0 || b.queues[0].limit < limit; next && b.mayDeliver(cost, limit) {
		b.delivering += cost
		return nil, nil
	}
	if !b.mayWait(cost, limit) {
		return nil, errOverloaded
	}
	b.waiting += cost
	q := b.queue(limit)
	w := &budgetWaiter{queue: q, cost: cost, granted: make(chan struct{})}
	w.place = q.list.PushBack(w)
	return w, nil
}

// leave removes w, unless it got its memory in the meantime.
func (b *budget) leave(w *budgetWaiter) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-w.granted:
		return nil
	default:
	}
	b.waiting -= w.cost
	w.queue.list.Remove(w.place)
	b.grant() // it may have been in the way of others
	return errOverloaded
}

// add takes memory for a delivery that must not wait.
func (b *budget) add(cost int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.delivering += cost
}

// release gives back the memory of a delivery.
func (b *budget) release(cost int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.delivering -= cost
	b.grant()
}

// hold takes memory for an event that waits for something else than memory, unless
// there is not enough. It is given back with unhold.
func (b *budget) hold(cost, limit int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.mayWait(cost, limit) {
		return false
	}
	b.waiting += cost
	return true
}

func (b *budget) unhold(cost int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting -= cost
}

// total returns the memory that all events take.
func (b *budget) total() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.delivering + b.waiting
}

// The methods below are called with mu held.

// mayDeliver reports whether there is memory for another delivery.
func (b *budget) mayDeliver(cost, limit int64) bool {
	return b.delivering == 0 || b.delivering+cost <= limit-limit/4
}

// mayWait reports whether there is memory for another event that waits.
func (b *budget) mayWait(cost, limit int64) bool {
	return b.waiting == 0 || b.waiting+cost <= limit/4
}

// queue returns the queue of a limit.
func (b *budget) queue(limit int64) *budgetQueue {
	at := slices.IndexFunc(b.queues, func(q *budgetQueue) bool { return q.limit <= limit })
	if at < 0 {
		at = len(b.queues)
	}
	if at == len(b.queues) || b.queues[at].limit < limit {
		b.queues = slices.Insert(b.queues, at, &budgetQueue{limit: limit})
	}
	return b.queues[at]
}

// grant gives memory to those that wait for it, until one must go on waiting.
func (b *budget) grant() {
	for len(b.queues) > 0 {
		q := b.queues[0]
		for place := q.list.Front(); place != nil; place = q.list.Front() {
			w := place.Value.(*budgetWaiter)
			if !b.mayDeliver(w.cost, q.limit) {
				return
			}
			b.waiting -= w.cost
			b.delivering += w.cost
			q.list.Remove(place)
			close(w.granted)
		}
		b.queues = slices.Delete(b.queues, 0, 1)
	}
}
