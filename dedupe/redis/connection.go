package redis

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
	"go.uber.org/zap"
)

const (
	// minRetry and maxRetry bound how long to wait after a failure.
	minRetry, maxRetry = 50 * time.Millisecond, time.Second

	// catchUpInterval is how often Redis is told of claims that it may have
	// lost, and of outcomes that another connection could not record.
	catchUpInterval = time.Second

	// maxOperations bounds the concurrent operations. Beyond 1024, rueidis
	// blocks without regard to the context.
	maxOperations = 512

	// pollInterval is how often a waiter asks again for a claim that another
	// instance has, in case the message that it ended was lost.
	pollInterval = 250 * time.Millisecond
)

// connection runs operations in Redis, or fails them at once while Redis is
// down.
type connection struct {
	settings settings
	scripts  scripts
	instance *instance
	health   health
	waiters  waiters
	poll     time.Duration // pollInterval, except in tests

	stop      context.CancelFunc
	dialed    atomic.Pointer[rueidis.Client] // set by run, which then closes ready
	ready     chan struct{}
	check     chan struct{} // wakes run
	slots     chan struct{} // has an element for each running operation
	flushOnce sync.Once     // see flushOnExit
	inspected atomic.Bool   // whether the settings of Redis were checked

	pinMu  sync.Mutex
	pinned bool // connections has a reference for what is pending; guarded by pinMu
}

func connect(s settings) *connection {
	ctx, stop := context.WithCancel(context.Background())
	c := &connection{
		settings: s,
		scripts:  newScripts(),
		instance: instanceFor(s.backing),
		poll:     pollInterval,
		stop:     stop,
		ready:    make(chan struct{}),
		check:    make(chan struct{}, 1),
		slots:    make(chan struct{}, maxOperations),
	}
	go c.run(ctx)
	return c
}

// Destruct implements [caddy.Destructor].
func (c *connection) Destruct() error {
	c.stop()
	return nil
}

// run keeps the client connected and Redis up to date.
func (c *connection) run(ctx context.Context) {
	var listener sync.WaitGroup
	listener.Go(func() { c.listen(ctx) })
	defer func() {
		listener.Wait()
		if client := c.dialed.Load(); client != nil {
			(*client).Close()
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
		wait, check := time.Duration(catchUpInterval), c.check
		if err == nil {
			retry = minRetry
		} else {
			// do not listen to check: each event would cause another attempt
			wait, check = retry, nil
			c.learnCause(err)
			if isNoMaster(err) {
				c.redial() // after a failover the address may lead to another server
			}
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

func (c *connection) wakeRun() {
	select {
	case c.check <- struct{}{}:
	default:
	}
}

// dial creates the client, if there is none yet.
func (c *connection) dial() error {
	if c.dialed.Load() != nil {
		return nil
	}
	client, err := rueidis.NewClient(c.settings.client)
	if err != nil {
		c.setDown(err, nil)
		return err
	}
	c.dialed.Store(&client)
	close(c.ready)
	return nil
}

// redial replaces the client. Operations under way fail, and are repeated with
// the new one.
func (c *connection) redial() {
	client, err := rueidis.NewClient(c.settings.client)
	if err != nil {
		return // the old one still connects again by itself
	}
	old := c.dialed.Swap(&client)
	(*old).Close()
}

// client returns the client, once c is ready.
func (c *connection) client() rueidis.Client { return *c.dialed.Load() }

// do runs an operation until it succeeds, the timeout passes, or ctx is done.
// After the timeout Redis counts as down, and operations fail at once until it
// is back. An error that concerns only the keys is returned at once, and has no
// effect on other events.
func (c *connection) do(ctx context.Context, keys []string, operation func(ctx context.Context) error) error {
	if down := c.health.down(); down != nil {
		return errNotTried{down}
	}
	bounded, cancel := context.WithTimeout(ctx, c.settings.timeout)
	defer cancel()
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-bounded.Done():
		return errNotTried{c.timedOut(ctx, keys, bounded.Err())}
	}
	if down := c.health.down(); down != nil { // since then
		return errNotTried{down}
	}
	var last error
	for {
		var err error
		select {
		case <-c.ready:
			err = operation(bounded)
		case <-bounded.Done():
			err = errors.New("not connected yet")
		}
		if err == nil {
			return nil
		}
		if concernsKeys(err) {
			c.reportKeys(keys, err)
			return err
		}
		if last == nil || bounded.Err() == nil {
			last = err // says more than that the time has passed
		}
		select {
		case <-bounded.Done():
			return c.timedOut(ctx, keys, last)
		case <-time.After(minRetry):
		}
	}
}

// timedOut returns why an operation did not succeed in time. Redis counts as
// down, unless it was ctx, that of the caller, that ended the operation.
func (c *connection) timedOut(ctx context.Context, keys []string, err error) error {
	endedByCaller := ctx.Err() != nil
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		if endedByCaller {
			err = fmt.Errorf("no answer in time: %w", err)
		} else {
			err = fmt.Errorf("no answer within %s", c.settings.timeout)
		}
	}
	if !endedByCaller {
		c.setDown(err, keys)
	}
	return err
}

func (c *connection) setDown(err error, failed []string) {
	if !c.health.setDown(err, failed) {
		return
	}
	message := "Redis is down; deduplicating within this instance only"
	if c.settings.refuse {
		message = "Redis is down; rejecting events"
	}
	logger().Error(message, c.addresses(), zap.Error(err))
	c.wakeRun()
}

// learnCause notes why Redis is still down, if it says so itself.
func (c *connection) learnCause(err error) {
	if c.health.setCause(err) {
		logger().Error("Redis is still down, for another reason", c.addresses(), zap.Error(err))
	}
}

func (c *connection) setUp() {
	dropped := c.health.setUp()
	logger().Info("Redis is back", c.addresses(), zap.Int("pending_outcomes", c.instance.pending.len()))
	if dropped > 0 {
		logger().Error("some deliveries were not recorded in Redis for lack of room; they may be delivered again",
			c.addresses(), zap.Int("deliveries", dropped))
	}
}

// reportKeys logs an error that concerns the keys of one ID. The scope, which is
// part of the keys, may be derived from a secret, so it is not logged.
func (c *connection) reportKeys(keys []string, err error) {
	_, tag, _ := strings.Cut(keys[0], "{")
	tag, _, _ = strings.Cut(tag, "}")
	logger().Error("cannot deduplicate an event in Redis: one of its keys has an unknown value; delete the key",
		c.addresses(), zap.String("keys", c.settings.prefix+"*:{"+tag+"}*"), zap.Error(err))
}

// addresses is the field of log entries that says which Redis they are about.
func (c *connection) addresses() zap.Field {
	return zap.Strings("addresses", c.settings.client.InitAddress)
}

// keys returns the two keys of an ID: that of the delivery, and that of the
// claim.
func (c *connection) keys(event id) []string {
	tag := "{" + base64.RawURLEncoding.EncodeToString(event.key[:]) + "}" + event.scope
	return []string{c.settings.prefix + "done:" + tag, c.settings.prefix + "claim:" + tag}
}

// token returns the token of a claim in Redis: the name of this instance, and a
// number with leading zeros, so that scripts can compare it.
func (c *connection) token(number uint64) string {
	return fmt.Sprintf("%s%020d", c.instance.name, number)
}
