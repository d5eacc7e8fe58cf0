package buzzbip

import (
	"sync"
	"time"
)

// lateKeepers calls keepLate of each keeper whose deadline has passed. They share one
// timer: most are gone long before, and timers of their own were half of what an inbox
// costs while the backend accepts events. The zero value is empty and ready for use.
type lateKeepers struct {
	mu          sync.Mutex
	first, last *keeper // in the order of their deadlines
	timer       *time.Timer
	rings       time.Time // when timer does, or zero
}

// inLine is the place of a keeper among lateKeepers, which lock.
type inLine struct {
	deadline      time.Time // zero: it is not in line
	before, after *keeper
}

func (l *lateKeepers) add(k *keeper, deadline time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.last // almost always: all wait equally long
	for before != nil && before.line.deadline.After(deadline) {
		before = before.line.before
	}
	after := l.first
	if before != nil {
		after = before.line.after
	}
	k.line = inLine{deadline, before, after}
	l.link(before, k)
	l.link(k, after)
	l.await()
}

// remove does nothing if the deadline has passed.
func (l *lateKeepers) remove(k *keeper) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !k.line.deadline.IsZero() {
		l.unlink(k)
	}
}

func (l *lateKeepers) ring() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rings = time.Time{}
	for now := time.Now(); l.first != nil && !l.first.line.deadline.After(now); {
		late := l.first
		l.unlink(late)
		go late.keepLate()
	}
	l.await()
}

// The methods below are called with mu held.

// await makes the timer ring at the first deadline, or before.
func (l *lateKeepers) await() {
	switch {
	case l.first == nil || !l.rings.IsZero() && !l.rings.After(l.first.line.deadline):
		return
	case l.timer == nil:
		l.timer = time.AfterFunc(time.Until(l.first.line.deadline), l.ring)
	default:
		l.timer.Reset(time.Until(l.first.line.deadline))
	}
	l.rings = l.first.line.deadline
}

func (l *lateKeepers) unlink(k *keeper) {
	l.link(k.line.before, k.line.after)
	k.line = inLine{}
}

// link makes two keepers neighbors; nil is either end.
func (l *lateKeepers) link(before, after *keeper) {
	if before == nil {
		l.first = after
	} else {
		before.line.after = after
	}
	if after == nil {
		l.last = before
	} else {
		after.line.before = before
	}
}
