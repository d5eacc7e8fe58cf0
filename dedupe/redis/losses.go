package redis

import (
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// lossLogInterval bounds how often losses are logged: there may be many.
	lossLogInterval = time.Minute

	// clockTolerance is how much earlier than this instance Redis may forget an
	// ID without a loss of data.
	clockTolerance = time.Minute
)

// losses counts the IDs that this instance recorded in Redis, and that Redis
// lost. The zero value is ready for use, and its methods are safe for
// concurrent use.
type losses struct {
	mu     sync.Mutex
	count  uint64
	logged time.Time
}

func (l *losses) total() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}

// add counts one, and reports whether it is time to log the number.
func (l *losses) add() (count uint64, due bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count++
	if due = time.Since(l.logged) >= lossLogInterval; due {
		l.logged = time.Now()
	}
	return l.count, due
}

// noticeLoss checks an ID that Redis has just granted a claim on, and knew no
// delivery of.
func (c *connection) noticeLoss(event id) {
	own := c.instance.own.Lookup(event.scope, event.key)
	if !own.Delivered || time.Until(own.Expires) < clockTolerance {
		return
	}
	if _, notRecordedYet := c.instance.pending.delivery(event); notRecordedYet {
		return
	}
	if count, due := c.instance.losses.add(); due {
		logger().Error("Redis no longer knows an event that this instance recorded, so it is delivered again; Redis lost data, or the event was forgotten at another instance",
			c.addresses(), zap.Uint64("events_so_far", count))
	}
}
