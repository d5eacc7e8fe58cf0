package redis

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// batchSize is how many claims or outcomes are sent to Redis at a time.
const batchSize = 256

// catchUp checks whether Redis is back, if it was down, and tells it what it
// does not know: the claims of deliveries in flight, and pending outcomes.
func (c *connection) catchUp(ctx context.Context) error {
	failed, down := c.health.outage()
	registerFrom := time.Now().Add(-catchUpInterval)
	if down != nil {
		if err := c.probe(ctx, failed); err != nil {
			return err
		}
		c.setUp()
		registerFrom = time.Now() // Redis may have lost all claims
	}
	// claims first: there are few, and retries of their events may arrive now
	if err := c.register(ctx, c.instance.inFlight.toRegister(registerFrom)); err != nil {
		return err
	}
	for {
		outcomes := c.instance.pending.next(batchSize)
		if len(outcomes) == 0 {
			return nil
		}
		if err := c.flush(ctx, outcomes); err != nil {
			return err
		}
	}
}

// probe runs the scripts, because a server that answers but rejects writes does
// not help. It uses the slot of the keys that found Redis down, because only
// one of many nodes may be. The probe keys are used by this instance alone.
func (c *connection) probe(ctx context.Context, failed []string) error {
	ctx, cancel := context.WithTimeout(ctx, c.settings.timeout)
	defer cancel()
	if failed == nil {
		failed = c.keys(id{})
	}
	var keys []string
	for _, key := range failed {
		keys = append(keys, c.settings.prefix+"probe:"+c.instance.name+":"+strings.TrimPrefix(key, c.settings.prefix))
	}
	token := c.token(0)
	if err := c.scripts.claim.Exec(ctx, c.client(), keys, []string{token, "", "1000", "0"}).Error(); err != nil {
		return err
	}
	return c.scripts.settle.Exec(ctx, c.client(), keys, []string{token, "", "1", "", c.channel()}).Error()
}

// register tells Redis of claims that it may not know: those that this instance
// granted while Redis was down, and those that Redis lost. Each keeps the rest
// of its lease.
func (c *connection) register(ctx context.Context, unknown []flight) error {
	var lost, contested atomic.Int64
	for batch := range slices.Chunk(unknown, batchSize) {
		err := forEach(ctx, c, batch, func(f flight) id { return f.id }, func(ctx context.Context, f flight) error {
			change, err := c.registerFlight(ctx, f)
			switch change {
			case claimLost:
				lost.Add(1)
			case claimContested:
				contested.Add(1)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if n := lost.Load(); n > 0 {
		logger().Warn("Redis lost claims on events in flight; registered them again", c.addresses(), zap.Int64("deliveries", n))
	}
	if n := contested.Load(); n > 0 {
		logger().Warn("another instance is delivering the same events, because Redis did not know the claims of this one",
			c.addresses(), zap.Int64("deliveries", n))
	}
	return nil
}

// change is what registering a flight found out.
type change uint8

const (
	nothingNew     change = iota
	claimLost             // Redis had lost the claim
	claimContested        // another instance has a claim on the ID
)

func (c *connection) registerFlight(ctx context.Context, f flight) (change, error) {
	args := []string{c.token(f.token), milliseconds(time.Until(f.expires))}
	reply, err := c.scripts.register.Exec(ctx, c.client(), c.keys(f.id), args).ToString()
	state := registered
	switch {
	case err != nil:
		state = f.state
	case reply == "taken":
		state = contested
	}
	if concernsKeys(err) {
		err = nil // claiming or settling the ID reports it
	}
	switch stillThere := c.instance.inFlight.setState(f, state); {
	case !stillThere: // it was settled in the meantime: nobody else would end the claim
		c.queue(ended{f.id, outcome{token: f.token, expires: f.expires.UnixNano()}})
	case reply == "added" && f.state == registered:
		return claimLost, err
	case state == contested && f.state != contested:
		return claimContested, err
	}
	return nothingNew, err
}

// flush records outcomes in Redis.
func (c *connection) flush(ctx context.Context, outcomes []ended) error {
	return forEach(ctx, c, outcomes, func(e ended) id { return e.id }, func(ctx context.Context, e ended) error {
		err := c.record(ctx, e)
		if err == nil || concernsKeys(err) { // which a retry would not change
			c.instance.pending.remove(e)
		}
		return err
	})
}

// forEach runs an operation for all items concurrently, so that they are sent to
// Redis in one write. An error that concerns only one ID is logged.
func forEach[T any](ctx context.Context, c *connection, items []T, event func(T) id, operation func(context.Context, T) error) error {
	ctx, cancel := context.WithTimeout(ctx, max(c.settings.timeout, time.Second))
	defer cancel()
	var group errgroup.Group
	for _, item := range items {
		group.Go(func() error {
			err := operation(ctx, item)
			if err == nil {
				return nil
			}
			keys := c.keys(event(item))
			if concernsKeys(err) {
				c.reportKeys(keys, err)
				return nil
			}
			if errors.Is(ctx.Err(), context.Canceled) {
				return err // the connection ends: that says nothing about Redis
			}
			c.setDown(err, keys)
			return err
		})
	}
	return group.Wait()
}

// queue adds an outcome to what is pending, and keeps the connection until that
// is recorded.
func (c *connection) queue(e ended) {
	c.pinMu.Lock()
	defer c.pinMu.Unlock()
	if !c.instance.pending.add(e) && e.delivered && c.health.drop() {
		logger().Error("no room left for deliveries to record in Redis; those that follow may be delivered again",
			c.addresses(), zap.Int("pending_outcomes", pendingCapacity))
	}
	if !c.pinned {
		c.pinned = true
		_, _, _ = connections.LoadOrNew(c.settings.fingerprint, func() (caddy.Destructor, error) {
			return nil, errors.New("the caller has no reference to the connection")
		})
	}
	c.wakeRun()
}

// unpin removes the reference that queue added, once nothing is pending.
func (c *connection) unpin() {
	c.pinMu.Lock()
	unpinned := c.pinned && len(c.instance.pending.next(1)) == 0
	c.pinned = c.pinned && !unpinned
	c.pinMu.Unlock()
	if unpinned {
		_, _ = connections.Delete(c.settings.fingerprint)
	}
}

// flushAllOnExit flushes all connections, because the connection of an earlier
// configuration may have pending outcomes that only another one can record.
func flushAllOnExit() {
	var flushes sync.WaitGroup
	var mu sync.Mutex
	lost, flushed := 0, make(map[*instance]struct{})
	connections.Range(func(_, value any) bool {
		c := value.(*connection)
		flushes.Go(func() {
			if !c.flushOnExit() {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			flushed[c.instance] = struct{}{}
			lost += c.health.droppedCount()
		})
		return true
	})
	flushes.Wait()
	for in := range flushed {
		lost += in.pending.len()
	}
	if lost > 0 {
		logger().Error("Caddy is stopping while Redis is down; the outcomes of some deliveries are not recorded, so their events may be delivered again",
			zap.Int("deliveries", lost))
	}
}

// flushOnExit records what is pending before the process ends, within the
// timeout, and reports whether this is the first call.
func (c *connection) flushOnExit() (first bool) {
	c.flushOnce.Do(func() {
		first = true
		if c.instance.pending.len() == 0 {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), c.settings.timeout)
		defer cancel()
		select {
		case <-c.ready:
			_ = c.catchUp(ctx)
		case <-ctx.Done():
		}
	})
	return first
}
