package inbox

import (
	"slices"
	"time"
)

// failuresThatClose is how many different events must fail in a row, whatever the
// cause, before the backend itself is taken to fail. Those of a lane count as one.
const failuresThatClose = 3

// gate decides how many events a backend gets at once, by how it answers. While
// it fails, the gate is closed: the backend gets one event after another, as
// probes, with a backoff. A success opens it for two at once, and each further one
// for one more: 1, 2, 4, 8 at once, if all succeed. Times are on the monotonic
// clock. The caller locks.
//
// Successes of first attempts count only while it is not calm.
type gate struct {
	closed bool
	// down means that the backend is known to be unreachable. It implies closed.
	// Otherwise the backend answers, so that first attempts need not wait.
	down     bool
	failures int       // of probes in a row
	until    time.Time // of the next probe, if closed
	probing  bool      // a probe is under way
	// epoch is that of the dispatcher, and closedIn the one that began when the gate
	// was closed last: attempts that began before say nothing new.
	epoch    *int64
	closedIn int64

	underway int       // redeliveries
	window   int       // how many there may be, if open
	suspects []suspect // those that have failed since the last success
}

// suspect is an event that may fail because of what it is, or all events of a lane:
// when one fails, the next of its lane may fail for the same reason.
type suspect struct {
	lane  Lane
	event int64 // 0 if it has a lane
}

func suspectOf(e *Event) suspect {
	if lane := e.Lane(); lane != 0 {
		return suspect{lane: lane}
	}
	return suspect{event: e.Number}
}

// pass is what an attempt gets from a gate, and gives back to it.
type pass struct {
	gate       *gate
	suspect    suspect
	began      int64 // in this epoch
	probe      bool
	redelivery bool // and still under way
}

func newGate(epoch *int64) *gate { return &gate{window: 1, epoch: epoch} }

// renewed returns a gate for the same backend, perhaps at another address: what
// is under way with the old gate says nothing about it. If the old one is closed,
// the new one lets a probe pass at once.
func (g *gate) renewed() *gate {
	return &gate{window: 1, closed: g.closed, down: g.down, epoch: g.epoch}
}

// calm reports whether a success of a first attempt need not be told to g: it would
// only widen the window, which redeliveries do by themselves, unless it is as narrow that
// one which hangs holds up the others.
func (g *gate) calm() bool {
	return !g.closed && len(g.suspects) == 0 && (g.window > 1 || g.underway == 0)
}

// wait returns how long it is until a redelivery may pass: 0 means that it may,
// never that it may not before the end of an attempt. If urgent, a closed gate is
// passed before its time.
func (g *gate) wait(urgent bool, now time.Time, concurrency int) time.Duration {
	switch {
	case !g.closed && g.underway < min(g.window, concurrency):
		return 0
	case !g.closed || g.probing || g.underway > 0:
		return never
	case urgent:
		return 0
	}
	return max(0, g.until.Sub(now))
}

// redeliver lets a redelivery pass.
func (g *gate) redeliver(s suspect) pass {
	g.underway++
	g.probing = g.closed
	return pass{gate: g, suspect: s, began: *g.epoch, probe: g.closed, redelivery: true}
}

// first lets a first attempt pass, unless the backend is known to be unreachable
// and is not to be probed now.
func (g *gate) first(s suspect) (p pass, ok bool) {
	if g.down && (g.probing || g.underway > 0 || time.Now().Before(g.until)) {
		return pass{}, false
	}
	if g.down {
		g.probing = true
	}
	return pass{gate: g, suspect: s, began: *g.epoch, probe: g.down}, true
}

// learn takes the outcome of an attempt into account. It reports whether the next
// redelivery may pass at another time than before.
func (p *pass) learn(o Outcome, concurrency int, b backoff) (changed bool) {
	g := p.gate
	changed = g.closed
	if p.probe {
		g.probing = false
	}
	stale := p.began < g.closedIn
	switch {
	case o.NoAttempt:
	case stale && o.Down && g.closed:
		// The backoff goes on, but what the backend asks for counts.
		if until := time.Now().Add(min(o.RetryAfter, b.longest)); until.After(g.until) {
			g.until = until
		}
	case stale:
	case o.Accepted:
		window := max(1, min(g.window+1, concurrency))
		changed = changed || window > g.window
		g.closed, g.down, g.failures, g.suspects, g.window = false, false, 0, nil, window
	case o.Down:
		g.down = true
		g.close(b, o.RetryAfter)
	case p.probe:
		if g.down {
			// It answers again: the failure may be that of this event alone, so
			// another one is not to wait as long as for a backend that is away.
			g.down, g.failures = false, 0
		}
		g.close(b, 0)
	case !g.closed && !slices.Contains(g.suspects, p.suspect):
		g.suspects = append(g.suspects, p.suspect)
		if len(g.suspects) == failuresThatClose {
			g.close(b, 0)
		}
	}
	return changed
}

// leave ends a redelivery, which makes room for another one.
func (p *pass) leave() {
	p.gate.underway--
	p.redelivery = false
}

func (g *gate) close(b backoff, asked time.Duration) {
	g.failures++
	*g.epoch++
	g.closedIn = *g.epoch
	g.closed, g.window, g.suspects = true, 1, nil
	g.until = time.Now().Add(b.after(g.failures, asked))
}
