package redis

import (
	"context"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// inspect warns of settings with which Redis forgets IDs. What the ACL does not
// let us see is not looked at.
func (c *connection) inspect(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, max(c.timeout, time.Second))
	defer cancel()
	for address, node := range c.client.Nodes() {
		memory, _ := node.Do(ctx, node.B().Info().Section("memory").Build()).ToString()
		limit, policy := infoField(memory, "maxmemory"), infoField(memory, "maxmemory_policy")
		if limit != "" && limit != "0" && policy != "noeviction" {
			logger().Warn("Redis drops IDs when its memory is full, and their events are delivered again if they are sent again: set maxmemory-policy to noeviction",
				zap.String("address", address), zap.String("maxmemory", limit), zap.String("maxmemory_policy", policy))
		}
		saved, err := node.Do(ctx, node.B().ConfigGet().Parameter("appendonly", "save").Build()).AsStrMap()
		if err == nil && saved["appendonly"] == "no" && saved["save"] == "" {
			logger().Warn("Redis has no persistence: when it restarts it has forgotten all IDs, and their events are delivered again if they are sent again; set appendonly to yes",
				zap.String("address", address))
		}
	}
}

// infoField is the value of a field in an answer to INFO, or empty.
func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// losses counts the IDs that this instance had recorded in Redis, and that
// Redis did not know any more.
type losses struct {
	mu     sync.Mutex
	count  uint64
	logged time.Time
}

const (
	// lossInterval is how often losses are logged at most: there may be many.
	lossInterval = time.Minute

	// clockTolerance is how much earlier Redis may forget an ID than this
	// instance without anything being wrong.
	clockTolerance = time.Minute
)

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
	if due = time.Since(l.logged) >= lossInterval; due {
		l.logged = time.Now()
	}
	return l.count, due
}

// noticeLoss is for an ID on which Redis has just granted a claim without
// knowing of a delivery.
func (c *connection) noticeLoss(of id) {
	own := c.own.Lookup(of.scope, of.key)
	if !own.Delivered || time.Until(own.Expires) < clockTolerance {
		return
	}
	if _, untold := c.pending.delivery(of); untold {
		return
	}
	if count, due := c.losses.add(); due {
		logger().Error("Redis no longer knows an event that this instance had recorded there, so it is delivered again: data of Redis was lost, or caddy buzzbip forget was used at another instance",
			zap.Strings("addresses", c.settings.client.InitAddress), zap.Uint64("events_so_far", count))
	}
}
