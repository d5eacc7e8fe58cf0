package redis

import (
	"sync"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// pendingCapacity bounds the outcomes that are kept. Each takes up to 170
// bytes.
var pendingCapacity = 1_000_000

// outcome is how a delivery ended.
type outcome struct {
	token       uint64
	digest      dedupe.Digest
	replaces    dedupe.Digest // if it was to replace an earlier delivery: see [dedupe.Claim]
	expires     int64         // when it is of no use any more: Unix time in nanoseconds
	delivered   bool
	replacesAny bool // it was to replace whatever was delivered earlier
}

func (o outcome) valid() bool { return time.Now().UnixNano() < o.expires }

// ended is an ID with its outcome.
type ended struct {
	id
	outcome
}

// pending holds outcomes until Redis has taken them: one for each ID, for what
// an instance says of its last claim counts for the earlier ones, too. The zero
// value is ready for use, and its methods are safe for concurrent use.
type pending struct {
	mu      sync.Mutex
	byID    map[id]outcome // nil when it is empty, for a map does not shrink
	evicted uint64         // deliveries that there was no room for
}

// add keeps an outcome, and reports whether there was room for it.
func (p *pending) add(e ended) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	old, known := p.byID[e.id]
	if known && old.delivered && !e.delivered && old.valid() {
		// a redelivery has failed: what was delivered before it still counts
		old.token = max(old.token, e.token)
		e.outcome = old
	}
	if !known && len(p.byID) >= pendingCapacity {
		p.some(1)
	}
	if !known && len(p.byID) >= pendingCapacity {
		if e.delivered {
			p.evicted++
		}
		return false
	}
	if p.byID == nil {
		p.byID = make(map[id]outcome)
	}
	p.byID[e.id] = e.outcome
	return true
}

// delivery returns the outcome of an ID that was delivered.
func (p *pending) delivery(of id) (outcome, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.byID[of]
	return o, o.delivered && o.valid()
}

// forgetDelivery leaves nothing to be told but that a claim has ended.
func (p *pending) forgetDelivery(of id) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o, ok := p.byID[of]; ok {
		o.delivered = false
		p.byID[of] = o
	}
}

// next returns up to a number of outcomes, and drops those that have expired.
func (p *pending) next(count int) []ended {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.some(count)
}

// some is next with p.mu held.
func (p *pending) some(count int) (some []ended) {
	for of, o := range p.byID {
		if !o.valid() {
			p.delete(of)
			continue
		}
		if some = append(some, ended{of, o}); len(some) == count {
			break
		}
	}
	return some
}

// remove drops an outcome, unless there is a newer one of its ID.
func (p *pending) remove(e ended) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byID[e.id] == e.outcome {
		p.delete(e.id)
	}
}

// supersede drops the outcome of an ID: Redis knows a later one.
func (p *pending) supersede(of id, token uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o, ok := p.byID[of]; ok && o.token <= token {
		p.delete(of)
	}
}

// delete is called with p.mu held.
func (p *pending) delete(of id) {
	delete(p.byID, of)
	if len(p.byID) == 0 {
		p.byID = nil
	}
}

func (p *pending) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.byID)
}

// evictions returns how many deliveries there was no room for.
func (p *pending) evictions() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.evicted
}
