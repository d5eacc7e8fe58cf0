package sqlite

import (
	"sync"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// pendingCapacity bounds the number of pending changes. Each takes up to 200
// bytes.
var pendingCapacity = 1_000_000

// change is what is to be written about an ID.
type change struct {
	delivery // zero: the ID is to be forgotten
	// late means that the claim was not the current one when it was settled:
	// another delivery since the claim was made counts.
	late     bool
	replaces dedupe.Digest // see [dedupe.Claim]
	number   uint64        // counts up
}

// pending has the last change of each ID that is not in the file yet. The zero
// value is ready for use, and its methods are safe for concurrent use.
type pending struct {
	mu      sync.Mutex
	byID    map[id]change // nil when empty, because a map never shrinks
	last    uint64
	evicted uint64 // deliveries that it had no room for
}

// next returns the number of the next change.
func (p *pending) next() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last++
	return p.last
}

func (p *pending) get(event id) (change, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ch, ok := p.byID[event]
	return ch, ok
}

// add adds a change, unless there is a later one, and reports whether there was
// room for it.
func (p *pending) add(event id, ch change) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	old, known := p.byID[event]
	if known && old.number > ch.number {
		return true
	}
	if ch.late && known && old.valid() && (ch.replaces == 0 || old.digest != ch.replaces) {
		return true // it was delivered after the claim was made
	}
	if !known && len(p.byID) >= pendingCapacity {
		p.evicted++
		return false
	}
	if p.byID == nil {
		p.byID = make(map[id]change)
	}
	p.byID[event] = ch
	return true
}

// supersede removes changes of an ID that are earlier than the change of a
// number, and reports whether there is no later one.
func (p *pending) supersede(event id, number uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	old, known := p.byID[event]
	if known && old.number < number {
		p.deleteLocked(event)
	}
	return !known || old.number <= number
}

// first returns up to count changes, expired ones among them: they too show
// whether the disk works.
func (p *pending) first(count int) map[id]change {
	p.mu.Lock()
	defer p.mu.Unlock()
	changes := make(map[id]change)
	for event, ch := range p.byID {
		if len(changes) == count {
			break
		}
		changes[event] = ch
	}
	return changes
}

// written removes changes that are in the file.
func (p *pending) written(changes map[id]change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for event, ch := range changes {
		if p.byID[event].number == ch.number {
			p.deleteLocked(event)
		}
	}
}

func (p *pending) deleteLocked(event id) {
	delete(p.byID, event)
	if len(p.byID) == 0 {
		p.byID = nil
	}
}

// deliveries counts the pending deliveries of each scope.
func (p *pending) deliveries() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	scopes := make(map[string]int)
	for event, ch := range p.byID {
		if ch.valid() {
			scopes[event.scope]++
		}
	}
	return scopes
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
