package redis

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/redis/rueidis"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

const (
	// unclaimed marks the tokens of claims that Redis may not know of.
	unclaimed = 1 << 63

	// ownCapacity is how many ids an instance remembers by itself, in each
	// scope, for when Redis is down.
	ownCapacity = 1_000_000

	minRetry, maxRetry = 50 * time.Millisecond, time.Second

	// idle is how long a note can go unnoticed, when it is a connection with
	// other settings that could not deliver it.
	idle = time.Second

	// maxOperations is how many operations go on at a time.
	maxOperations = 512

	// flushed is how many notes go to Redis at a time.
	flushed = 256
)

// pollInterval is how often a claim of another instance is asked after, in case
// the message of its end was lost.
var pollInterval = 250 * time.Millisecond

// instance is what this process knows of the ids in one place, whatever the
// settings of the connections to it are.
type instance struct {
	name string // tells it from the instances of other processes
	// flights are the deliveries of this process. It remembers nothing: its
	// claims have no retention.
	flights dedupe.Ledger
	// own is what this process delivered.
	own dedupe.Ledger
	// pending is what Redis is still to be told.
	pending pending
}

// instances are never forgotten, as the ids in memory are not: by backend.
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
	last   sync.Once

	mu      sync.Mutex
	down    error                    // nil: it works, as far as is known
	failed  []string                 // the keys of what failed when it went down
	kept    bool                     // pending holds a reference
	waiters map[string]chan struct{} // by KEYS[1]
	// elsewhere tells when it went down while another instance delivered an
	// id and this one waited for that: by KEYS[1].
	elsewhere map[string]time.Time
	// forgotten counts the deliveries, since it went down, that there is no
	// room for in pending.
	forgotten int
}

func connect(s settings) *connection {
	ctx, stop := context.WithCancel(context.Background())
	c := &connection{
		settings: s, scripts: newScripts(), instance: instanceFor(s.backend), stop: stop,
		ready: make(chan struct{}), check: make(chan struct{}, 1), slots: make(chan struct{}, maxOperations),
		waiters: make(map[string]chan struct{}), elsewhere: make(map[string]time.Time),
	}
	go c.run(ctx)
	return c
}

// lastCall tells Redis what is pending, for the process is about to end, and
// reports whether it has not done so before. It takes the timeout at most.
func (c *connection) lastCall() (first bool) {
	c.last.Do(func() {
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
		c.letGo()
		wait, check := time.Duration(idle), c.check
		if err == nil {
			retry = minRetry
		} else {
			// whatever happens meanwhile: else each event would ask again
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

// listen wakes up who waits for a claim of another instance.
func (c *connection) listen(ctx context.Context) {
	select {
	case <-c.ready:
	case <-ctx.Done():
	}
	for ctx.Err() == nil {
		// what goes wrong here shows in the operations, and they poll
		_ = c.client.Receive(ctx, c.client.B().Subscribe().Channel(c.channel()).Build(), func(m rueidis.PubSubMessage) {
			c.mu.Lock()
			defer c.mu.Unlock()
			select {
			case c.waiters[m.Message] <- struct{}{}:
			default: // nobody waits here, or is awake already
			}
		})
		select {
		case <-ctx.Done():
		case <-time.After(maxRetry):
		}
	}
}

func (c *connection) channel() string { return c.prefix + "ended" }

// catchUp finds out whether Redis is back, if it was down, and tells it what
// is pending.
func (c *connection) catchUp(ctx context.Context) error {
	c.mu.Lock()
	down, failed := c.down, c.failed
	c.mu.Unlock()
	if down != nil {
		if err := c.probe(ctx, failed); err != nil {
			return err
		}
		c.setUp()
	}
	for {
		notes := c.pending.some(flushed)
		if len(notes) == 0 {
			return nil
		}
		if err := c.flush(ctx, notes); err != nil {
			return err
		}
	}
}

// probe runs the scripts, for a server that answers and does not let them write
// is of no use, and where the operation failed that found Redis down, for that
// may be one node of many.
func (c *connection) probe(ctx context.Context, failed []string) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if failed == nil {
		failed = c.keys(id{})
	}
	var keys []string
	for _, key := range failed {
		keys = append(keys, c.prefix+"probe:"+strings.TrimPrefix(key, c.prefix))
	}
	token := c.token(0)
	if err := c.claimScript.Exec(ctx, c.client, keys, []string{token, "", "1000", "0"}).Error(); err != nil {
		return err
	}
	return c.settleScript.Exec(ctx, c.client, keys, []string{token, "", "1", c.channel(), "0", "0"}).Error()
}

func (c *connection) flush(ctx context.Context, notes []note) error {
	ctx, cancel := context.WithTimeout(ctx, max(c.timeout, time.Second))
	defer cancel()
	var all errgroup.Group
	for _, n := range notes {
		all.Go(func() error { // together, they go in one write
			err := c.tell(ctx, n)
			if err != nil {
				c.setDown(err, c.keys(n.id))
			} else {
				c.pending.remove(n)
			}
			return err
		})
	}
	return all.Wait()
}

// tell settles in Redis.
func (c *connection) tell(ctx context.Context, n note) error {
	args := []string{n.token, "", milliseconds(time.Until(n.expires)), c.channel(), flag(n.unclaimed), flag(n.unclaimed && n.redelivered)}
	if n.delivered {
		args[1] = encode(n.digest)
	}
	return c.settleScript.Exec(ctx, c.client, c.keys(n.id), args).Error()
}

// note keeps what Redis could not be told, and the connection until it was.
func (c *connection) note(n note) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.pending.add(n) && n.delivered {
		if c.forgotten == 0 {
			logger().Error("Redis has been down for so long that there is no room to keep what it is to be told: more events that are delivered until it is back will be delivered again if they are sent again",
				zap.Strings("addresses", c.settings.client.InitAddress), zap.Int("to_be_recorded", pendingCapacity))
		}
		c.forgotten++
	}
	if !c.kept {
		c.kept = true
		_, _, _ = connections.LoadOrNew(c.id, func() (caddy.Destructor, error) { return nil, errors.New("not held by its user") })
	}
	c.wake()
}

// letGo gives back what note holds, when nothing is pending: it was told, maybe
// by another connection, or has expired.
func (c *connection) letGo() {
	c.mu.Lock()
	kept := c.kept && len(c.pending.some(1)) == 0
	c.kept = c.kept && !kept
	c.mu.Unlock()
	if kept {
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
	clear(c.elsewhere)
	logger().Info("Redis is back", zap.Strings("addresses", c.settings.client.InitAddress), zap.Int("to_be_recorded", c.pending.len()))
	if c.forgotten > 0 {
		logger().Error("there was no room to keep all that Redis was to be told: some events that were delivered will be delivered again if they are sent again",
			zap.Strings("addresses", c.settings.client.InitAddress), zap.Int("deliveries", c.forgotten))
		c.forgotten = 0
	}
}

// logger is that of the present configuration.
func logger() *zap.Logger { return caddy.Log().Named("http.buzzbip_webhook.stores.redis") }

// errUntried means that an operation was not tried because Redis is down.
type errUntried struct{ error }

// do runs an operation until it succeeds or the timeout has passed; then Redis
// counts as down, and no operation is tried any more until it is back.
func (c *connection) do(keys []string, operation func(ctx context.Context) error) error {
	if down := c.isDown(); down != nil {
		return errUntried{down}
	}
	// not the context of a request: a claim must not be lost with its sender
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		err := fmt.Errorf("no answer within %s", c.timeout)
		c.setDown(err, keys)
		return errUntried{err}
	}
	if down := c.isDown(); down != nil { // by now
		return errUntried{down}
	}
	var last error
	for {
		var err error
		select {
		case <-c.ready:
			err = operation(ctx)
		case <-ctx.Done():
			err = errors.New("there is no connection yet")
		}
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err // rather than that the time was up
		}
		select {
		case <-ctx.Done():
			if errors.Is(last, context.DeadlineExceeded) {
				last = fmt.Errorf("no answer within %s", c.timeout)
			}
			c.setDown(last, keys)
			return last
		case <-time.After(minRetry):
		}
	}
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

func (c *connection) token(t uint64) string {
	return fmt.Sprintf("%s%016x", c.name, t&^unclaimed)
}

func flag(set bool) string {
	if set {
		return "1"
	}
	return "0"
}

// milliseconds is at least 1: Redis knows no shorter time.
func milliseconds(d time.Duration) string { return fmt.Sprint(max(d.Milliseconds(), 1)) }

func encode(d dedupe.Digest) string {
	return string(binary.BigEndian.AppendUint64(nil, uint64(d)))
}

func decode(digest string) (dedupe.Digest, error) {
	if len(digest) != 8 {
		return 0, fmt.Errorf("a key holds %d bytes where 8 belong: it is not of this plugin's making", len(digest))
	}
	return dedupe.Digest(binary.BigEndian.Uint64([]byte(digest))), nil
}
