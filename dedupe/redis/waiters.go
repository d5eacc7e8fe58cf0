package redis

import (
	"context"
	"sync"
	"time"

	"github.com/redis/rueidis"
	"go.uber.org/zap"
)

// waiters are the requests that wait until another instance ends its claim on
// an ID: one for each ID, because the instance lets one request through. The
// zero value is ready for use, and its methods are safe for concurrent use.
type waiters struct {
	mu    sync.Mutex
	byKey map[string]chan struct{} // by the key of a delivered ID
}

// join returns a channel that receives when the claim has ended.
func (ws *waiters) join(key string) <-chan struct{} {
	ended := make(chan struct{}, 1)
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.byKey == nil {
		ws.byKey = make(map[string]chan struct{})
	}
	ws.byKey[key] = ended
	return ended
}

func (ws *waiters) leave(key string) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	delete(ws.byKey, key)
}

func (ws *waiters) wake(key string) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	select {
	case ws.byKey[key] <- struct{}{}:
	default: // there is no waiter, or it was woken already
	}
}

// channel is where instances publish that they ended a claim.
func (c *connection) channel() string { return c.settings.prefix + "ended" }

// listen wakes the waiters when other instances end their claims.
func (c *connection) listen(ctx context.Context) {
	select {
	case <-c.ready:
	case <-ctx.Done():
	}
	warned := false
	for ctx.Err() == nil {
		client := c.client()
		subscribe := client.B().Subscribe().Channel(c.channel()).Build()
		err := client.Receive(ctx, subscribe, func(m rueidis.PubSubMessage) { c.waiters.wake(m.Message) })
		// other errors show in the operations, and waiters poll
		if isForbidden(err) && !warned {
			warned = true
			logger().Warn("the ACL of Redis does not permit the channel; requests that wait for another instance poll instead",
				c.addresses(), zap.String("channel", c.channel()), zap.Duration("poll_interval", c.poll))
		}
		select {
		case <-ctx.Done():
		case <-time.After(maxRetry):
		}
	}
}
