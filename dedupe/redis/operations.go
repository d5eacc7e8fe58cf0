package redis

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// claim lets one request of this process through for an id at a time, which
// then asks Redis on behalf of all.
func (c *connection) claim(ctx context.Context, r dedupe.Request) (dedupe.Verdict, error) {
	giveUp := time.Now().Add(r.Wait)
	local := r
	local.Retention = 0
	v, err := c.flights.Claim(ctx, local, dedupe.Limits{})
	if err != nil || v.State != dedupe.Claimed {
		return v, err
	}
	flight := v.Claim
	token := flight.Token
	delivered, err := c.ask(ctx, r, giveUp, &token)
	if err != nil {
		c.flights.Settle(flight, false, time.Now(), dedupe.Limits{})
		return dedupe.Verdict{}, err
	}
	if delivered != nil {
		flight.Digest = *delivered
		c.flights.Settle(flight, true, time.Now(), dedupe.Limits{})
		v, _ = r.Compare(*delivered)
		return v, nil
	}
	return dedupe.Verdict{State: dedupe.Claimed, Claim: dedupe.Claim{Request: r, Token: token}}, nil
}

// ask returns the digest under which an id was delivered and that answers r,
// or nil when r has been granted the claim.
func (c *connection) ask(ctx context.Context, r dedupe.Request, giveUp time.Time, token *uint64) (*dedupe.Digest, error) {
	of := id{r.Scope, r.Key}
	if n, ok := c.pending.find(of); ok {
		if _, known := r.Compare(n.digest); known {
			return &n.digest, nil
		}
	}
	keys := c.keys(of)
	args := []string{c.token(*token), encode(r.Digest), milliseconds(r.Lease), flag(r.Redeliver)}
	var ended chan struct{}
	for {
		var delivered *dedupe.Digest
		var lasts time.Duration
		err := c.do(keys, func(ctx context.Context) error {
			answer, err := c.claimScript.Exec(ctx, c.client, keys, args).ToMessage()
			if err != nil {
				return err
			}
			if answer.IsInt64() {
				ms, err := answer.AsInt64()
				lasts = time.Duration(max(ms, 1)) * time.Millisecond
				return err
			}
			digest, err := answer.ToString()
			if err != nil || digest == "" {
				return err
			}
			d, err := decode(digest)
			delivered = &d
			return err
		})
		elsewhere := err != nil && (ended != nil || c.lostSince(keys[0], giveUp.Add(-r.Wait)))
		if err != nil && (c.refuse || elsewhere) && !errors.As(err, new(errUntried)) { // it may have been granted all the same
			c.note(note{id: of, token: args[0], expires: time.Now().Add(r.Lease)})
		}
		switch {
		case err != nil && c.refuse:
			return nil, err
		case elsewhere: // another instance has it, as far as is known
			c.loseSight(keys[0])
			return nil, dedupe.ErrInFlight
		case err != nil:
			*token |= unclaimed
			if s := c.own.Lookup(r.Scope, r.Key); s.Delivered {
				if _, known := r.Compare(s.Digest); known {
					return &s.Digest, nil
				}
			}
			return nil, nil
		case lasts == 0:
			return delivered, nil
		}

		if ended == nil {
			ended = c.await(keys[0])
			defer c.leave(keys[0])
			continue // it may have ended before we listened
		}
		left := time.Until(giveUp)
		if left <= 0 {
			return nil, dedupe.ErrInFlight
		}
		select {
		case <-ended:
		case <-time.After(min(left, lasts, pollInterval)):
		case <-ctx.Done():
			return nil, dedupe.ErrInFlight
		}
	}
}

// await returns what tells that an id is not in flight any more elsewhere. Only
// the one request of this process that asks waits for it.
func (c *connection) await(key string) chan struct{} {
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

// loseSight notes that another instance had an id when Redis went down.
func (c *connection) loseSight(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down != nil && c.elsewhere[key].IsZero() {
		c.elsewhere[key] = time.Now()
	}
}

// lostSince reports whether that was after a time: who has waited in this
// process since then is not to deliver it either.
func (c *connection) lostSince(key string, t time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.elsewhere[key].After(t)
}

// settle reports whether the claim was the present one in this process.
func (c *connection) settle(claim dedupe.Claim, delivered bool) (settled bool, err error) {
	flight := claim
	flight.Token &^= unclaimed
	flight.Retention = 0
	if !c.flights.Owns(flight) {
		return false, nil
	}
	n := note{
		id: id{claim.Scope, claim.Key}, token: c.token(claim.Token), unclaimed: claim.Token&unclaimed != 0, redelivered: claim.Redeliver,
		delivered: delivered, digest: claim.Digest, expires: time.Now().Add(claim.Lease),
	}
	if delivered {
		now := time.Now()
		n.expires = now.Add(claim.Retention)
		c.own.Remember(claim.Request, now, ownLimits)
	}
	err = c.do(c.keys(n.id), func(ctx context.Context) error { return c.tell(ctx, n) })
	if err != nil {
		c.note(n)
	} else if delivered {
		c.pending.forget(n.id) // an earlier delivery of the id
	}
	return c.flights.Settle(flight, delivered, time.Now(), dedupe.Limits{}), err
}

func (c *connection) lookup(scope string, key dedupe.Key) (dedupe.Status, error) {
	of := id{scope, key}
	status := c.flights.Lookup(scope, key)
	if n, ok := c.pending.find(of); ok {
		status.Delivered, status.Digest, status.Expires = true, n.digest, n.expires
		return status, nil
	}
	keys := c.keys(of)
	err := c.do(keys, func(ctx context.Context) error {
		answer, err := c.lookupScript.Exec(ctx, c.client, keys, nil).ToArray()
		if err != nil {
			return err
		}
		if len(answer) != 3 {
			return fmt.Errorf("%d values where 3 belong", len(answer))
		}
		claims, err := answer[2].AsInt64()
		if err != nil {
			return err
		}
		status.InFlight = claims > 0
		if answer[0].IsNil() {
			return nil
		}
		digest, err := answer[0].ToString()
		if err != nil {
			return err
		}
		ms, err := answer[1].AsInt64()
		if err != nil {
			return err
		}
		status.Delivered, status.Expires = true, time.Now().Add(time.Duration(ms)*time.Millisecond)
		status.Digest, err = decode(digest)
		return err
	})
	return status, err
}

func (c *connection) forget(scope string, key dedupe.Key) (bool, error) {
	of := id{scope, key}
	_, remembered := c.pending.find(of)
	c.pending.forget(of)
	c.own.Forget(scope, key)
	keys := c.keys(of)
	err := c.do(keys, func(ctx context.Context) error {
		deleted, err := c.client.Do(ctx, c.client.B().Del().Key(keys[0]).Build()).AsInt64()
		remembered = remembered || deleted > 0
		return err
	})
	return remembered, err
}

func (c *connection) stats() dedupe.Stats {
	stats := c.own.Stats(dedupe.Limits{}) // what own has no room for Redis still knows
	stats.Backing = c.backend
	stats.Evicted = c.pending.evictions()
	for scope, s := range c.flights.Stats(dedupe.Limits{}).Scopes {
		own := stats.Scopes[scope]
		own.InFlight = s.InFlight
		stats.Scopes[scope] = own
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	stats.Err = c.down
	return stats
}
