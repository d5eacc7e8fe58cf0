package redis

import (
	"context"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// settle implements Settle of [dedupe.Store]. It reports whether the claim was
// the current one in this instance.
func (c *connection) settle(ctx context.Context, claim dedupe.Claim, success bool) (current bool, err error) {
	local := claim
	local.Request = withoutRetention(claim.Request)
	owned := c.instance.local.Owns(local)
	if !owned && !success {
		return false, nil
	}
	e := ended{id{claim.Scope, claim.Key}, outcome{
		token: claim.Token, delivered: success, digest: claim.Digest, replaces: claim.Replaces, expires: unixAfter(claim.Lease), late: !owned,
	}}
	if f, ok := c.instance.inFlight.end(e.id, e.token); ok {
		// this instance does not know what Redis remembered at the time of the
		// claim
		e.replacesAny = f.state == unregistered && claim.Redeliver
	}
	if success {
		e.expires = unixAfter(claim.Retention)
		if owned {
			c.instance.own.Remember(claim.Request, time.Now(), ownLimits)
		} else {
			c.instance.own.Settle(claim, true, time.Now(), ownLimits)
		}
	}
	err = c.do(ctx, c.keys(e.id), func(ctx context.Context) error { return c.record(ctx, e) })
	switch {
	case err != nil && !concernsKeys(err):
		c.queue(e)
	case err == nil && success:
		c.instance.pending.supersede(e.id, e.token)
	}
	return owned && c.instance.local.Settle(local, success, time.Now(), dedupe.Limits{}), err
}

// record records an outcome in Redis.
func (c *connection) record(ctx context.Context, e ended) error {
	digest, replaces := "", ""
	if e.delivered {
		digest = encode(e.digest)
	}
	switch {
	case e.replacesAny:
		replaces = "any"
	case e.replaces != 0:
		replaces = encode(e.replaces)
	}
	left := time.Until(time.Unix(0, e.expires))
	args := []string{c.token(e.token), digest, milliseconds(left), replaces, c.channel()}
	return c.scripts.settle.Exec(ctx, c.client(), c.keys(e.id), args).Error()
}
