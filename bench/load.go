package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Kinds of load: which events are sent, and with which signatures.
type kind int

const (
	fresh     kind = iota // new events
	duplicate             // events that were delivered before
	forged                // new events with the signature of another one
)

// load sends events to a gateway over several connections, one request at a
// time on each.
type load struct {
	address     string
	protocol    string
	connections int
	events      *events
	kind        kind
	want        answer
	next        atomic.Int64 // the next event
	senders     []sender
}

// traffic is what was sent, and how it was answered.
type traffic struct {
	requests int
	elapsed  time.Duration
	latency  []time.Duration // sorted
}

func newLoad(address, protocol string, connections int, e *events, k kind, want answer) *load {
	l := &load{address: address, protocol: protocol, connections: connections, events: e, kind: k, want: want}
	for range connections {
		l.senders = append(l.senders, newSender(protocol, address, e))
	}
	return l
}

func (l *load) close() {
	for _, s := range l.senders {
		s.close()
	}
}

// errUsedUp means that all events have been sent.
var errUsedUp = errors.New("no event is left")

// send sends the next event.
func (l *load) send(s sender) error {
	i := int(l.next.Add(1) - 1)
	signedAs := i
	switch l.kind {
	case duplicate:
		i = l.events.fresh() + i%duplicates
		signedAs = i
	case forged:
		signedAs = (i + 1) % len(l.events.signatures)
		i %= len(l.events.signatures)
	default:
		if i >= l.events.fresh() {
			return errUsedUp
		}
	}
	got, err := s.send(i, l.events.signatures[signedAs%len(l.events.signatures)])
	if err != nil {
		return err
	}
	if got != l.want {
		return fmt.Errorf("the answer was %d %s, not %d %s", got.status, got.result, l.want.status, l.want.result)
	}
	return nil
}

// run sends as fast as the answers come, for a duration or a number of requests,
// or until no event is left.
func (l *load) run(ctx context.Context, duration time.Duration, requests int) (traffic, error) {
	began := time.Now()
	var left atomic.Int64
	left.Store(int64(requests))
	return l.each(func(_ int, s sender, took func(time.Duration)) error {
		for now := time.Now(); now.Sub(began) < duration && ctx.Err() == nil; {
			if requests > 0 && left.Add(-1) < 0 {
				return nil
			}
			if err := l.send(s); err != nil {
				return err
			}
			after := time.Now()
			took(after.Sub(now))
			now = after
		}
		return ctx.Err()
	})
}

// pace sends a number of requests a second, for a duration. A request that has
// to wait for a free connection took longer by that.
func (l *load) pace(ctx context.Context, duration time.Duration, perSecond float64) (traffic, error) {
	began := time.Now()
	total := int64(duration.Seconds() * perSecond)
	var slot atomic.Int64
	return l.each(func(_ int, s sender, took func(time.Duration)) error {
		for ctx.Err() == nil {
			n := slot.Add(1) - 1
			if n >= total {
				return nil
			}
			due := began.Add(time.Duration(float64(n) / perSecond * float64(time.Second)))
			if wait := time.Until(due); wait > 0 {
				time.Sleep(wait)
				due = time.Now()
			}
			if err := l.send(s); err != nil {
				return err
			}
			took(time.Since(due))
		}
		return ctx.Err()
	})
}

// each runs f for each connection at the same time. It returns the first error
// other than that no event is left.
func (l *load) each(f func(n int, s sender, took func(time.Duration)) error) (traffic, error) {
	began := time.Now()
	latencies := make([][]time.Duration, len(l.senders))
	errs := make([]error, len(l.senders))
	var working sync.WaitGroup
	for n, s := range l.senders {
		working.Go(func() {
			mine := make([]time.Duration, 0, 4096)
			if err := f(n, s, func(d time.Duration) { mine = append(mine, d) }); !errors.Is(err, errUsedUp) {
				errs[n] = err
			}
			latencies[n] = mine
		})
	}
	working.Wait()
	t := traffic{elapsed: time.Since(began)}
	for _, mine := range latencies {
		t.latency = append(t.latency, mine...)
	}
	t.requests = len(t.latency)
	sortDurations(t.latency)
	for _, err := range errs {
		if err != nil {
			return t, err
		}
	}
	return t, nil
}

// prepare delivers the events that will be duplicates.
func (l *load) prepare() error {
	if l.kind != duplicate {
		return nil
	}
	for i := l.events.fresh(); i < len(l.events.signatures); i++ {
		if _, err := l.senders[0].send(i, l.events.signatures[i]); err != nil {
			return err
		}
	}
	return nil
}
