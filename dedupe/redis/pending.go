package redis

import (
	"sync"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// pendingCapacity bounds the notes that are kept, each of which takes a few
// hundred bytes.
var pendingCapacity = 1_000_000

// id is an event's id in its scope.
type id struct {
	scope string
	key   dedupe.Key
}

// note is the end of a delivery that Redis does not know of yet.
type note struct {
	id
	token     string
	delivered bool
	digest    dedupe.Digest
	expires   time.Time // when it is of no use any more
	unclaimed bool      // perhaps: Redis was away
	// redelivered: the id was delivered before, perhaps, with another body
	redelivered bool
}

// pending holds notes until Redis has taken them. The zero value is ready for
// use, and its methods are safe for concurrent use.
type pending struct {
	mu        sync.Mutex
	notes     map[string]note // by token
	delivered map[id]string   // the token of the note
	evicted   uint64          // deliveries that there was no room for
}

// add keeps a note, and reports whether there was room for it.
func (p *pending) add(n note) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if older, ok := p.notes[p.delivered[n.id]]; ok && n.delivered {
		p.drop(older) // Redis would be told in no particular order
	}
	if len(p.notes) >= pendingCapacity {
		p.valid(1)
	}
	if len(p.notes) >= pendingCapacity {
		if n.delivered {
			p.evicted++
		}
		return false
	}
	if p.notes == nil {
		p.notes, p.delivered = make(map[string]note), make(map[id]string)
	}
	p.notes[n.token] = n
	if n.delivered {
		p.delivered[n.id] = n.token
	}
	return true
}

// find returns the note of the delivery of an id.
func (p *pending) find(of id) (note, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, ok := p.notes[p.delivered[of]]
	return n, ok && time.Now().Before(n.expires)
}

// forget drops the note of the delivery of an id.
func (p *pending) forget(of id) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if token, ok := p.delivered[of]; ok {
		p.drop(p.notes[token])
	}
}

// some returns up to a number of notes, and drops those that have expired.
func (p *pending) some(count int) []note {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.valid(count)
}

// valid is some with p.mu held.
func (p *pending) valid(count int) []note {
	var some []note
	now := time.Now()
	for _, n := range p.notes {
		if !now.Before(n.expires) {
			p.drop(n)
			continue
		}
		if some = append(some, n); len(some) == count {
			break
		}
	}
	return some
}

// remove drops a note, unless there is a newer one with its token.
func (p *pending) remove(n note) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.notes[n.token] == n {
		p.drop(n)
	}
}

// drop is called with p.mu held.
func (p *pending) drop(n note) {
	delete(p.notes, n.token)
	if p.delivered[n.id] == n.token {
		delete(p.delivered, n.id)
	}
}

func (p *pending) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.notes)
}

// evictions returns how many deliveries there was no room for.
func (p *pending) evictions() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.evicted
}
