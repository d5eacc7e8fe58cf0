package redis

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/redis/rueidis"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

const (
	// ownCapacity is how many IDs an instance remembers by itself, in each
	// scope, for when Redis is down.
	ownCapacity = 1_000_000

	minRetry, maxRetry = 50 * time.Millisecond, time.Second

	// idle is how often Redis is told of claims that it may have lost, and of
	// outcomes that a connection with other settings could not tell.
	idle = time.Second

	// maxOperations is how many operations go on at a time.
	maxOperations = 512

	// batch is how many claims or outcomes go to Redis at a time.
	batch = 256
)

// pollInterval is how often a claim of another instance is asked after, in case
// the message of its end was lost.
var pollInterval = 250 * time.Millisecond

// instance is what this process knows of the IDs in one place, whatever the
// settings of the connections to it are.
type instance struct {
	name string // tells it from the instances of other processes
	// local lets one request at a time through for each ID. It remembers
	// nothing: its claims have no retention.
	local dedupe.Ledger
	// inFlight is what this process delivers now.
	inFlight flights
	// own is what this process delivered.
	own dedupe.Ledger
	// pending is what Redis is still to be told.
	pending pending
	// losses are the IDs of own that Redis did not know any more.
	losses losses
}

// instances are never forgotten, as the IDs in memory are not: by backend.
var instances sync.Map

func instanceFor(backend string) *instance {
	// rand.Text has 130 random bits
	in, _ := instances.LoadOrStore(backend, &instance{name: rand.Text()[:16]})
	return in.(*instance)
}

var ownLimits = dedupe.Limits{Capacity: ownCapacity}

// connection talks to Redis, or tells at once that it is down.
type connection struct {
	settings
	scripts
	*instance
	stop   context.CancelFunc
	client rueidis.Client // run sets it, and then closes ready
	ready  chan struct{}
	check  chan struct{} // wakes up run
	slots  chan struct{} // taken by operations: rueidis blocks at 1024, whatever their context
	onExit sync.Once

	inspected atomic.Bool // the settings of Redis, after it has answered for the first time

	mu      sync.Mutex
	down    error                    // nil: it works, as far as is known
	failed  []string                 // the keys of what failed when it went down
	pinned  bool                     // pending holds a reference
	waiters map[string]chan struct{} // by the key of a delivered ID
	// lostTrack tells when it went down while another instance delivered an
	// ID and this one waited for that: by the key of a delivered ID.
	lostTrack map[string]time.Time
	// dropped counts the deliveries, since it went down, that there is no
	// room for in pending.
	dropped int
}

func connect(s settings) *connection {
	ctx, stop := context.WithCancel(context.Background())
	c := &connection{
		settings: s, scripts: newScripts(), instance: instanceFor(s.backend), stop: stop,
		ready: make(chan struct{}), check: make(chan struct{}, 1), slots: make(chan struct{}, maxOperations),
		waiters: make(map[string]chan struct{}), lostTrack: make(map[string]time.Time),
	}
	go c.run(ctx)
	return c
}

// flushOnExit tells Redis what is pending, for the process is about to end, and
// reports whether it has not done so before. It takes the timeout at most.
func (c *connection) flushOnExit() (first bool) {
	c.onExit.Do(func() {
		first = true
		if c.pending.len() == 0 {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
		defer cancel()
		select {
		case <-c.ready:
			_ = c.catchUp(ctx)
		case <-ctx.Done():
		}
	})
	return first
}

// Destruct implements [caddy.Destructor].
func (c *connection) Destruct() error {
	c.stop()
	return nil
}

// run keeps the connection up, and Redis up to date.
func (c *connection) run(ctx context.Context) {
	var listener sync.WaitGroup
	listener.Go(func() { c.listen(ctx) })
	defer func() {
		listener.Wait()
		if c.client != nil {
			c.client.Close()
		}
	}()
	retry := time.Duration(minRetry)
	for {
		err := c.dial()
		if err == nil {
			err = c.catchUp(ctx)
		}
		if err == nil && !c.inspected.Load() {
			c.inspect(ctx)
			c.inspected.Store(true)
		}
		c.unpin()
		wait, check := time.Duration(idle), c.check
		if err == nil {
			retry = minRetry
		} else {
			// whatever happens until then: else each event would ask again
			wait, check = retry, nil
			retry = min(2*retry, maxRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-check:
		case <-time.After(wait):
		}
	}
}

// dial makes the client, if there is none yet.
func (c *connection) dial() error {
	if c.client != nil {
		return nil
	}
	client, err := rueidis.NewClient(c.settings.client)
	if err != nil {
		c.setDown(err, nil)
		return err
	}
	c.client = client
	close(c.ready)
	return nil
}

// listen wakes up the requests that wait for a claim of another instance.
func (c *connection) listen(ctx context.Context) {
	select {
	case <-c.ready:
	case <-ctx.Done():
	}
	warned := false
	for ctx.Err() == nil {
		err := c.client.Receive(ctx, c.client.B().Subscribe().Channel(c.channel()).Build(), func(m rueidis.PubSubMessage) {
			c.mu.Lock()
			defer c.mu.Unlock()
			select {
			case c.waiters[m.Message] <- struct{}{}:
			default: // nobody waits here, or is awake already
			}
		})
		// what else goes wrong here shows in the operations, and they poll
		if forbidden(err) && !warned {
			warned = true
			logger().Warn("the ACL of Redis does not permit the channel: duplicates that wait for another instance learn late of the end of a delivery, because they have to ask again; allow the channel",
				zap.Strings("addresses", c.settings.client.InitAddress), zap.String("channel", c.channel()), zap.Duration("asked_every", pollInterval))
		}
		select {
		case <-ctx.Done():
		case <-time.After(maxRetry):
		}
	}
}

func (c *connection) channel() string { return c.prefix + "ended" }

// catchUp finds out whether Redis is back, if it was down, and tells it what
// this instance delivers and has delivered in the meantime.
func (c *connection) catchUp(ctx context.Context) error {
	c.mu.Lock()
	down, failed := c.down, c.failed
	c.mu.Unlock()
	registerFrom := time.Now().Add(-idle)
	if down != nil {
		if err := c.probe(ctx, failed); err != nil {
			return err
		}
		c.setUp()
		registerFrom = time.Now() // it may have lost all of them
	}
	// before the outcomes: they are few, and retries of them may be under way
	if err := c.register(ctx, c.inFlight.toRegister(registerFrom)); err != nil {
		return err
	}
	for {
		outcomes := c.pending.next(batch)
		if len(outcomes) == 0 {
			return nil
		}
		if err := c.flush(ctx, outcomes); err != nil {
			return err
		}
	}
}

// probe runs the scripts, for a server that answers and does not let them write
// is of no use, and where the operation failed that found Redis down, for that
// may be one node of many. The keys are of this instance alone.
func (c *connection) probe(ctx context.Context, failed []string) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if failed == nil {
		failed = c.keys(id{})
	}
	var keys []string
	for _, key := range failed {
		keys = append(keys, c.prefix+"probe:"+c.name+":"+strings.TrimPrefix(key, c.prefix))
	}
	token := c.token(0)
	if err := c.claimScript.Exec(ctx, c.client, keys, []string{token, "", "1000", "0"}).Error(); err != nil {
		return err
	}
	return c.settleScript.Exec(ctx, c.client, keys, []string{token, "", "1", "", c.channel()}).Error()
}

// register tells Redis of claims that it may not know: those that this instance
// granted by itself, and those that Redis lost. Each keeps what remains of its
// lease.
func (c *connection) register(ctx context.Context, unknown []flight) error {
	var lost, taken atomic.Int64
	for some := range slices.Chunk(unknown, batch) {
		err := together(ctx, c, some, func(f flight) id { return f.id }, func(ctx context.Context, f flight) error {
			args := []string{c.token(f.token), milliseconds(time.Until(f.expires))}
			reply, err := c.registerScript.Exec(ctx, c.client, c.keys(f.id), args).ToString()
			state := registered
			switch {
			case err != nil:
				state = f.state
			case reply == "taken":
				state = contested
			}
			switch present := c.inFlight.setState(f, state); {
			case !present: // it has ended since, and nobody else would end the claim
				c.queue(ended{f.id, outcome{token: f.token, expires: f.expires.UnixNano()}})
			case reply == "added" && f.state == registered:
				lost.Add(1)
			case state == contested && f.state != contested:
				taken.Add(1)
			}
			if err != nil && ofKey(err) {
				return nil // the claim or its settlement says so
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if n := lost.Load(); n > 0 {
		logger().Warn("Redis had lost claims of deliveries that are under way, and was told of them again",
			zap.Strings("addresses", c.settings.client.InitAddress), zap.Int64("deliveries", n))
	}
	if n := taken.Load(); n > 0 {
		logger().Warn("another instance delivers events that this one is delivering, too: Redis did not know of the claims in time",
			zap.Strings("addresses", c.settings.client.InitAddress), zap.Int64("deliveries", n))
	}
	return nil
}

func (c *connection) flush(ctx context.Context, outcomes []ended) error {
	return together(ctx, c, outcomes, func(e ended) id { return e.id }, func(ctx context.Context, e ended) error {
		err := c.record(ctx, e)
		if err == nil || ofKey(err) { // it would not fare better later
			c.pending.remove(e)
		}
		return err
	})
}

// together runs an operation for each of some items at the same time, so that
// they go to Redis in one write. An error that is about one ID is logged.
func together[T any](ctx context.Context, c *connection, some []T, of func(T) id, operation func(context.Context, T) error) error {
	ctx, cancel := context.WithTimeout(ctx, max(c.timeout, time.Second))
	defer cancel()
	var all errgroup.Group
	for _, item := range some {
		all.Go(func() error {
			err := operation(ctx, item)
			if err == nil {
				return nil
			}
			keys := c.keys(of(item))
			if ofKey(err) {
				c.reportKey(keys, err)
				return nil
			}
			c.setDown(err, keys)
			return err
		})
	}
	return all.Wait()
}

// queue keeps an outcome that Redis could not be told, and the connection until
// it was.
func (c *connection) queue(e ended) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.pending.add(e) && e.delivered {
		if c.dropped == 0 {
			logger().Error("Redis has been down for so long that there is no room to keep what it is to be told: more events that are delivered until it is back will be delivered again if they are sent again",
				zap.Strings("addresses", c.settings.client.InitAddress), zap.Int("to_be_recorded", pendingCapacity))
		}
		c.dropped++
	}
	if !c.pinned {
		c.pinned = true
		_, _, _ = connections.LoadOrNew(c.id, func() (caddy.Destructor, error) { return nil, errors.New("not held by its user") })
	}
	c.wake()
}

// unpin gives back what queue holds, when nothing is pending: it was told, maybe
// by another connection, or has expired.
func (c *connection) unpin() {
	c.mu.Lock()
	unpinned := c.pinned && len(c.pending.next(1)) == 0
	c.pinned = c.pinned && !unpinned
	c.mu.Unlock()
	if unpinned {
		_, _ = connections.Delete(c.id)
	}
}

func (c *connection) wake() {
	select {
	case c.check <- struct{}{}:
	default:
	}
}

func (c *connection) setDown(err error, failed []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down == nil {
		policy := "events are deduplicated within this instance only"
		if c.refuse {
			policy = "events are refused"
		}
		logger().Error("Redis is down: until it answers, "+policy, zap.Strings("addresses", c.settings.client.InitAddress), zap.Error(err))
		c.down, c.failed = err, failed
		c.wake()
	}
}

func (c *connection) setUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = nil
	c.lostTrack = make(map[string]time.Time)
	logger().Info("Redis is back", zap.Strings("addresses", c.settings.client.InitAddress), zap.Int("to_be_recorded", c.pending.len()))
	if c.dropped > 0 {
		logger().Error("there was no room to keep all that Redis was to be told: some events that were delivered will be delivered again if they are sent again",
			zap.Strings("addresses", c.settings.client.InitAddress), zap.Int("deliveries", c.dropped))
		c.dropped = 0
	}
}

// logger is that of the present configuration.
func logger() *zap.Logger { return caddy.Log().Named("http.buzzbip_webhook.stores.redis") }

// reportKey logs an error that is about the keys of one ID. The scope is part of
// the keys, and may be derived from a secret, so it is not shown.
func (c *connection) reportKey(keys []string, err error) {
	_, tag, _ := strings.Cut(keys[0], "{")
	tag, _, _ = strings.Cut(tag, "}")
	logger().Error("an event cannot be deduplicated by Redis, because one of its keys is of no use: delete the key",
		zap.Strings("addresses", c.settings.client.InitAddress), zap.String("keys", c.prefix+"*:{"+tag+"}*"), zap.Error(err))
}

// do runs an operation until it succeeds, the timeout has passed or ctx is
// done. After the timeout Redis counts as down, and no operation is tried any
// more until it is back. An error that is about the keys alone is returned at
// once, and changes nothing for other events.
func (c *connection) do(ctx context.Context, keys []string, operation func(ctx context.Context) error) error {
	if down := c.isDown(); down != nil {
		return errUntried{down}
	}
	bounded, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-bounded.Done():
		return errUntried{c.timedOut(ctx, keys, bounded.Err())}
	}
	if down := c.isDown(); down != nil { // by now
		return errUntried{down}
	}
	var last error
	for {
		var err error
		select {
		case <-c.ready:
			err = operation(bounded)
		case <-bounded.Done():
			err = errors.New("there is no connection yet")
		}
		if err == nil {
			return nil
		}
		if ofKey(err) {
			c.reportKey(keys, err)
			return err
		}
		if last == nil || bounded.Err() == nil {
			last = err // rather than that the time was up
		}
		select {
		case <-bounded.Done():
			return c.timedOut(ctx, keys, last)
		case <-time.After(minRetry):
		}
	}
}

// timedOut returns why an operation did not succeed in time. If the time was
// that of Redis, and not only that of the caller, which is ctx, Redis is down.
func (c *connection) timedOut(ctx context.Context, keys []string, err error) error {
	byCaller := ctx.Err() != nil
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		if byCaller {
			err = fmt.Errorf("no answer in time: %w", err)
		} else {
			err = fmt.Errorf("no answer within %s", c.timeout)
		}
	}
	if !byCaller {
		c.setDown(err, keys)
	}
	return err
}

func (c *connection) isDown() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.down
}

func (c *connection) keys(of id) []string {
	tag := "{" + base64.RawURLEncoding.EncodeToString(of.key[:]) + "}" + of.scope
	return []string{c.prefix + "done:" + tag, c.prefix + "claim:" + tag}
}

// await returns what tells that another instance has ended its claim on an ID.
// Only the one request of this process that asks waits for it.
func (c *connection) await(key string) <-chan struct{} {
	ended := make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiters[key] = ended
	return ended
}

func (c *connection) leave(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiters, key)
}

// loseTrack records that another instance had an ID when Redis went down.
func (c *connection) loseTrack(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != nil && c.lostTrack[key].IsZero() {
		c.lostTrack[key] = time.Now()
	}
}

// lostTrackSince reports whether that was after a time: a request that has
// waited in this process since then is not to deliver it either.
func (c *connection) lostTrackSince(key string, t time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lostTrack[key].After(t)
}
