package redis

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/redis/rueidis"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// attempt is a request that asks for a claim on behalf of all requests of this
// instance with its ID.
type attempt struct {
	dedupe.Request
	id
	token   uint64
	arrived time.Time
}

// answer is what an attempt learns of its ID.
type answer struct {
	state answerState
	// digest of the body that was delivered; with a claim, of the one that it
	// replaces, or 0
	digest dedupe.Digest
	lasts  time.Duration // how long the claim of another instance does
}

type answerState uint8

const (
	granted        answerState = iota // by Redis
	grantedLocally                    // by this instance, as Redis did not answer
	delivered
	taken // another instance has the claim
)

// claim lets one request of this instance through for an ID at a time, which
// then asks Redis on behalf of all.
func (c *connection) claim(ctx context.Context, r dedupe.Request) (dedupe.Verdict, error) {
	arrived := time.Now()
	v, err := c.local.Claim(ctx, unremembered(r), dedupe.Limits{})
	if err != nil || v.State != dedupe.Claimed {
		return v, err
	}
	a := attempt{r, id{r.Scope, r.Key}, v.Claim.Token, arrived}
	got, err := c.ask(ctx, a)
	if err != nil {
		c.local.Settle(v.Claim, false, time.Now(), dedupe.Limits{})
		return dedupe.Verdict{}, err
	}
	if got.state == delivered {
		v.Claim.Digest = got.digest
		c.local.Settle(v.Claim, true, time.Now(), dedupe.Limits{})
		v, _ = r.Compare(got.digest)
		return v, nil
	}
	f := flight{id: a.id, token: a.token, began: time.Now(), state: registered}
	f.expires = f.began.Add(r.Lease)
	if got.state == grantedLocally {
		f.state = unregistered
	} else if got.digest == 0 {
		c.noticeLoss(a.id)
	}
	c.inFlight.begin(f)
	return dedupe.Verdict{State: dedupe.Claimed, Claim: dedupe.Claim{Request: r, Token: a.token, Replaces: got.digest}}, nil
}

// unremembered is a request for the ledger that remembers nothing.
func unremembered(r dedupe.Request) dedupe.Request {
	r.Retention = 0
	return r
}

// ask asks Redis for a claim, and waits while another instance has it.
func (c *connection) ask(ctx context.Context, a attempt) (answer, error) {
	if o, ok := c.pending.delivery(a.id); ok {
		if _, known := a.Compare(o.digest); known {
			return answer{state: delivered, digest: o.digest}, nil
		}
	}
	giveUp := a.arrived.Add(a.Wait)
	var ended <-chan struct{}
	for {
		got, err := c.askOnce(a)
		if err != nil {
			return c.withoutRedis(a, ended != nil, err)
		}
		if got.state != taken {
			return got, nil
		}
		if ended == nil {
			key := c.keys(a.id)[0]
			ended = c.await(key)
			defer c.leave(key)
			continue // it may have ended before we listened
		}
		left := time.Until(giveUp)
		if left <= 0 {
			return answer{}, dedupe.ErrInFlight
		}
		select {
		case <-ended:
		case <-time.After(min(left, got.lasts, pollInterval)):
		case <-ctx.Done():
			return answer{}, dedupe.ErrInFlight
		}
	}
}

func (c *connection) askOnce(a attempt) (got answer, err error) {
	keys, args := c.keys(a.id), []string{c.token(a.token), encode(a.Digest), milliseconds(a.Lease), flag(a.Redeliver)}
	// not the context of the request: a claim must not be lost with its sender
	err = c.do(context.Background(), keys, func(ctx context.Context) error {
		reply, err := c.claimScript.Exec(ctx, c.client, keys, args).ToArray()
		if err != nil {
			return err
		}
		got, err = parseAnswer(reply)
		return err
	})
	return got, err
}

// parseAnswer reads what claimScript answers.
func parseAnswer(reply []rueidis.RedisMessage) (got answer, err error) {
	if len(reply) != 2 {
		return got, fmt.Errorf("the claim was answered with %d values instead of 2", len(reply))
	}
	state, err := reply[0].ToString()
	if err != nil {
		return got, err
	}
	if state == "taken" {
		ms, err := reply[1].AsInt64()
		if err == nil && ms < 0 {
			err = fmt.Errorf("%w: it does not expire", errForeign)
		}
		return answer{state: taken, lasts: time.Duration(max(ms, 1)) * time.Millisecond}, err
	}
	digest, err := reply[1].ToString()
	if err != nil {
		return got, err
	}
	if state == "granted" {
		got.state = granted
		if digest == "" {
			return got, nil
		}
	} else {
		got.state = delivered
	}
	got.digest, err = decode(digest)
	return got, err
}

// withoutRedis decides on a claim that Redis has not answered, with an error
// that says why, possibly while the attempt waited for another instance.
//
// An event whose own keys are of no use is treated as if Redis were down for
// it alone: with when_down memory this instance goes by its own memory, so that
// the event is not lost; with refuse it fails, as a second delivery cannot be
// ruled out.
func (c *connection) withoutRedis(a attempt, waited bool, err error) (answer, error) {
	key := c.keys(a.id)[0]
	tried := !errors.As(err, new(errUntried))
	own := c.own.Lookup(a.Scope, a.Key)
	_, known := a.Compare(own.Digest)
	var got answer
	switch {
	case c.refuse:
	case waited || c.lostTrackSince(key, a.arrived): // another instance has it, as far as is known
		c.loseTrack(key)
		err = dedupe.ErrInFlight
	case own.Delivered && known:
		got, err = answer{state: delivered, digest: own.Digest}, nil
	default:
		return answer{state: grantedLocally, digest: own.Digest}, nil
	}
	if tried { // Redis may have granted it all the same
		c.queue(ended{a.id, outcome{token: a.token, expires: unixAfter(a.Lease)}})
	}
	return got, err
}

// settle reports whether the claim was the present one in this instance.
func (c *connection) settle(ctx context.Context, claim dedupe.Claim, success bool) (settled bool, err error) {
	local := claim
	local.Request = unremembered(claim.Request)
	present := c.local.Owns(local)
	if !present && !success {
		return false, nil
	}
	e := ended{id{claim.Scope, claim.Key}, outcome{
		token: claim.Token, delivered: success, digest: claim.Digest, replaces: claim.Replaces, expires: unixAfter(claim.Lease),
	}}
	if f, ok := c.inFlight.end(e.id, e.token); ok {
		// what Redis knew when the claim was made is unknown here
		e.replacesAny = f.state == unregistered && claim.Redeliver
	}
	if success {
		e.expires = unixAfter(claim.Retention)
		if present {
			c.own.Remember(claim.Request, time.Now(), ownLimits)
		} else {
			c.own.Settle(claim, true, time.Now(), ownLimits)
		}
	}
	err = c.do(ctx, c.keys(e.id), func(ctx context.Context) error { return c.record(ctx, e) })
	switch {
	case err != nil && !ofKey(err):
		c.queue(e)
	case err == nil && success:
		c.pending.supersede(e.id, e.token)
	}
	return present && c.local.Settle(local, success, time.Now(), dedupe.Limits{}), err
}

// record tells Redis of an outcome.
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
	return c.settleScript.Exec(ctx, c.client, c.keys(e.id), args).Error()
}

func (c *connection) lookup(ctx context.Context, of id) (dedupe.Status, error) {
	status := c.local.Lookup(of.scope, of.key)
	if o, ok := c.pending.delivery(of); ok {
		status.Delivered, status.Digest, status.Expires = true, o.digest, time.Unix(0, o.expires)
		return status, nil
	}
	keys := c.keys(of)
	err := c.do(ctx, keys, func(ctx context.Context) error {
		reply, err := c.lookupScript.Exec(ctx, c.client, keys, nil).ToArray()
		if err != nil {
			return err
		}
		if len(reply) != 3 {
			return fmt.Errorf("the lookup was answered with %d values instead of 3", len(reply))
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
	})
	return status, err
}

func (c *connection) forget(ctx context.Context, of id) (bool, error) {
	_, remembered := c.pending.delivery(of)
	c.pending.forgetDelivery(of)
	c.own.Forget(of.scope, of.key)
	keys := c.keys(of)
	err := c.do(ctx, keys, func(ctx context.Context) error {
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
	stats.Forgotten = c.losses.total()
	for scope, s := range c.local.Stats(dedupe.Limits{}).Scopes {
		own := stats.Scopes[scope]
		own.InFlight = s.InFlight
		stats.Scopes[scope] = own
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	stats.Err = c.down
	return stats
}

// token is one that other instances have not. Its number has leading zeros, so
// that scripts can compare it.
func (c *connection) token(number uint64) string { return fmt.Sprintf("%s%020d", c.name, number) }

func flag(set bool) string {
	if set {
		return "1"
	}
	return "0"
}

// milliseconds is at least 1: Redis knows no shorter time.
func milliseconds(d time.Duration) string { return fmt.Sprint(max(d.Milliseconds(), 1)) }

// unixAfter is when a time has passed, as a Unix time in nanoseconds.
func unixAfter(d time.Duration) int64 {
	now := time.Now().UnixNano()
	return now + min(int64(d), math.MaxInt64-now)
}

func encode(d dedupe.Digest) string {
	return string(binary.BigEndian.AppendUint64(nil, uint64(d)))
}

func decode(digest string) (dedupe.Digest, error) {
	if len(digest) != 8 {
		return 0, foreignLength(len(digest))
	}
	return dedupe.Digest(binary.BigEndian.Uint64([]byte(digest))), nil
}
