package redis

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/rueidis"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// attempt is a request that asks for a claim on behalf of all requests with its
// ID in this instance.
type attempt struct {
	dedupe.Request
	id
	token   uint64
	arrived time.Time
}

// answer is what an attempt learns about its ID.
type answer struct {
	state answerState
	// digest is that of the body that was delivered or, with a claim, of the
	// delivery that it replaces, if there is one.
	digest dedupe.Digest
	// lasts is how much is left of the lease of another instance.
	lasts time.Duration
}

type answerState uint8

const (
	granted        answerState = iota // by Redis
	grantedLocally                    // by this instance, because Redis did not answer
	delivered
	taken // by another instance
)

// claim implements Claim of [dedupe.Store].
func (c *connection) claim(ctx context.Context, r dedupe.Request) (dedupe.Verdict, error) {
	arrived := time.Now()
	v, err := c.instance.local.Claim(ctx, withoutRetention(r), dedupe.Limits{})
	if err != nil || v.State != dedupe.Claimed {
		return v, err
	}
	a := attempt{r, id{r.Scope, r.Key}, v.Claim.Token, arrived}
	got, err := c.ask(ctx, a)
	if err != nil {
		c.instance.local.Settle(v.Claim, false, time.Now(), dedupe.Limits{})
		return dedupe.Verdict{}, err
	}
	if got.state == delivered {
		v.Claim.Digest = got.digest
		c.instance.local.Settle(v.Claim, true, time.Now(), dedupe.Limits{})
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
	c.instance.inFlight.begin(f)
	return dedupe.Verdict{State: dedupe.Claimed, Claim: dedupe.Claim{Request: r, Token: a.token, Replaces: got.digest}}, nil
}

// withoutRetention returns a request for the ledger that remembers nothing.
func withoutRetention(r dedupe.Request) dedupe.Request {
	r.Retention = 0
	return r
}

// ask asks Redis for a claim, and waits while another instance has it.
func (c *connection) ask(ctx context.Context, a attempt) (answer, error) {
	if o, ok := c.instance.pending.delivery(a.id); ok {
		if _, known := a.Compare(o.digest); known {
			return answer{state: delivered, digest: o.digest}, nil
		}
	}
	giveUp := a.arrived.Add(a.Wait)
	var ended <-chan struct{}
	for {
		got, err := c.askOnce(a)
		if err != nil {
			return c.decideWithoutRedis(a, ended != nil, err)
		}
		if got.state != taken {
			return got, nil
		}
		if ended == nil {
			key := c.keys(a.id)[0]
			ended = c.waiters.join(key)
			defer c.waiters.leave(key)
			continue // the claim may have ended before we joined
		}
		left := time.Until(giveUp)
		if left <= 0 {
			return answer{}, dedupe.ErrInFlight
		}
		select {
		case <-ended:
		case <-time.After(min(left, got.lasts, c.poll)):
		case <-ctx.Done():
			return answer{}, dedupe.ErrInFlight
		}
	}
}

func (c *connection) askOnce(a attempt) (got answer, err error) {
	keys, args := c.keys(a.id), []string{c.token(a.token), encode(a.Digest), milliseconds(a.Lease), flag(a.Redeliver)}
	// not the context of the request: a claim that Redis grants must be known
	// here even if the sender has disconnected
	err = c.do(context.Background(), keys, func(ctx context.Context) error {
		reply, err := c.scripts.claim.Exec(ctx, c.client(), keys, args).ToArray()
		if err != nil {
			return err
		}
		got, err = parseAnswer(reply)
		return err
	})
	return got, err
}

// parseAnswer parses the reply of claimScript.
func parseAnswer(reply []rueidis.RedisMessage) (got answer, err error) {
	if len(reply) != 2 {
		return got, fmt.Errorf("the reply to a claim has %d values instead of 2", len(reply))
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

// decideWithoutRedis answers an attempt that Redis did not, because of an error,
// possibly while the attempt waited for another instance.
//
// An error that concerns only the keys of the event is handled as if Redis were
// down for this event: with when_down memory this instance uses its own memory,
// so that the event is not lost. With refuse the attempt fails, because a second
// delivery cannot be ruled out.
func (c *connection) decideWithoutRedis(a attempt, waited bool, err error) (answer, error) {
	key := c.keys(a.id)[0]
	tried := !errors.As(err, new(errNotTried))
	own := c.instance.own.Lookup(a.Scope, a.Key)
	_, known := a.Compare(own.Digest)
	var got answer
	switch {
	case c.settings.refuse:
	case waited || c.health.lostTrackSince(key, a.arrived): // as far as is known, another instance has the claim
		c.health.loseTrack(key)
		err = dedupe.ErrInFlight
	case own.Delivered && known:
		got, err = answer{state: delivered, digest: own.Digest}, nil
	default:
		return answer{state: grantedLocally, digest: own.Digest}, nil
	}
	if tried { // Redis may have granted a claim that nobody will settle
		c.queue(ended{a.id, outcome{token: a.token, expires: unixAfter(a.Lease)}})
	}
	return got, err
}
