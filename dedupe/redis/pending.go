package redis

import (
	"sync"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// pendingCapacity bounds the number of pending outcomes. Each takes up to 170
// bytes.
var pendingCapacity = 1_000_000

// outcome is how a delivery ended, to be recorded in Redis.
type outcome struct {
	token       uint64
	digest      dedupe.Digest
	replaces    dedupe.Digest // see [dedupe.Claim]
	expires     int64         // when it no longer matters: a Unix time in nanoseconds
	delivered   bool
	replacesAny bool // it replaces any earlier delivery
	late        bool // the claim was not the current one when it ended
}

func (o outcome) valid() bool { return time.Now().UnixNano() < o.expires }

// follows reports whether o takes the place of an earlier outcome of its ID. A
// delivery still counts after a redelivery that failed, and after a late success
// of a claim that was made before it.
func (o outcome) follows(old outcome) bool {
	return !old.delivered || !old.valid() || o.delivered && (!o.late || o.replaces != 0 && o.replaces == old.digest)
}

// ended is an ID with its outcome.
type ended struct {
	id
	outcome
}

// pending holds the outcomes that are not recorded in Redis yet: one for each
// ID, because ending the last claim of an instance ends its earlier ones, too.
// The zero value is ready for use, and its methods are safe for concurrent use.
type pending struct {
	mu      sync.Mutex
	byID    map[id]outcome // nil when empty, because a map never shrinks
	evicted uint64         // deliveries that it had no room for
}

// add adds an outcome, and reports whether there was room for it.
func (p *pending) add(e ended) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	old, known := p.byID[e.id]
	token := max(old.token, e.token) // it ends the earlier claims, too
	if !e.follows(old) {
		e.outcome = old
	}
	e.token = token
	if !known && len(p.byID) >= pendingCapacity {
		p.nextLocked(1)
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

// delivery returns the outcome of an ID, and whether it was delivered.
func (p *pending) delivery(event id) (outcome, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.byID[event]
	return o, o.delivered && o.valid()
}

// forgetDelivery keeps only that the claim on an ID has ended.
func (p *pending) forgetDelivery(event id) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o, ok := p.byID[event]; ok {
		o.delivered = false
		p.byID[event] = o
	}
}

// next returns up to a number of outcomes.
func (p *pending) next(count int) []ended {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nextLocked(count)
}

// nextLocked is next for a caller that holds p.mu. It removes the expired
// outcomes that it finds.
func (p *pending) nextLocked(count int) (found []ended) {
	for event, o := range p.byID {
		if !o.valid() {
			p.deleteLocked(event)
			continue
		}
		if found = append(found, ended{event, o}); len(found) == count {
			break
		}
	}
	return found
}

// remove removes an outcome, unless there is a newer one for its ID.
func (p *pending) remove(e ended) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byID[e.id] == e.outcome {
		p.deleteLocked(e.id)
	}
}

// supersede removes the outcome of an ID, unless it is later than the token of
// an outcome that is recorded in Redis, or ends the claim with this token, which
// was then registered again in the meantime.
func (p *pending) supersede(event id, token uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o, ok := p.byID[event]; ok && (o.token < token || o.token == token && o.delivered) {
		p.deleteLocked(event)
	}
}

// deleteLocked removes the outcome of an ID, for a caller that holds p.mu.
func (p *pending) deleteLocked(event id) {
	delete(p.byID, event)
	if len(p.byID) == 0 {
		p.byID = nil
	}
}

func (p *pending) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.byID)
}

// evictions returns how many deliveries it had no room for.
func (p *pending) evictions() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.evicted
}
