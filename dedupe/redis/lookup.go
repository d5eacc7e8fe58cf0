package redis

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/rueidis"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

func (c *connection) lookup(ctx context.Context, event id) (dedupe.Status, error) {
	status := c.instance.local.Lookup(event.scope, event.key)
	if o, ok := c.instance.pending.delivery(event); ok {
		status.Delivered, status.Digest, status.Expires = true, o.digest, time.Unix(0, o.expires)
		return status, nil
	}
	keys := c.keys(event)
	err := c.do(ctx, keys, func(ctx context.Context) error {
		reply, err := c.scripts.lookup.Exec(ctx, c.client(), keys, nil).ToArray()
		if err != nil {
			return err
		}
		return parseStatus(reply, &status)
	})
	return status, err
}

// parseStatus parses the reply of lookupScript.
func parseStatus(reply []rueidis.RedisMessage, status *dedupe.Status) error {
	if len(reply) != 3 {
		return fmt.Errorf("the reply to a lookup has %d values instead of 3", len(reply))
	}
	claims, err := reply[2].AsInt64()
	if err != nil {
		return err
	}
	status.InFlight = claims > 0
	if reply[0].IsNil() {
		return nil
	}
	digest, err := reply[0].ToString()
	if err != nil {
		return err
	}
	ms, err := reply[1].AsInt64()
	if err != nil {
		return err
	}
	status.Delivered, status.Expires = true, time.Now().Add(time.Duration(ms)*time.Millisecond)
	status.Digest, err = decode(digest)
	return err
}

func (c *connection) forget(ctx context.Context, event id) (bool, error) {
	_, remembered := c.instance.pending.delivery(event)
	c.instance.pending.forgetDelivery(event)
	c.instance.own.Forget(event.scope, event.key)
	keys := c.keys(event)
	err := c.do(ctx, keys, func(ctx context.Context) error {
		client := c.client()
		deleted, err := client.Do(ctx, client.B().Del().Key(keys[0]).Build()).AsInt64()
		remembered = remembered || deleted > 0
		return err
	})
	return remembered, err
}

func (c *connection) stats() dedupe.Stats {
	stats := c.instance.own.Stats(dedupe.Limits{})
	stats.Backing = c.settings.backing
	// not those of own: Redis still remembers them
	stats.Evicted = c.instance.pending.evictions()
	stats.Forgotten = c.instance.losses.total()
	for scope, s := range c.instance.local.Stats(dedupe.Limits{}).Scopes {
		own := stats.Scopes[scope]
		own.InFlight = s.InFlight
		stats.Scopes[scope] = own
	}
	stats.Err = c.health.down()
	return stats
}
