package inbox

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/buzzbip/caddy-webhook/internal/option"
)

const (
	onFailure = "on_failure"
	always    = "always"

	defaultFirstRetry   = 5 * time.Second
	defaultLongestRetry = 15 * time.Minute
	defaultDeadAfter    = 72 * time.Hour
	defaultConcurrency  = 8
	defaultMaxSize      = 1 << 30
	defaultKeepDead     = 30 * 24 * time.Hour
)

// Module is a [Store] that is a guest module of Caddy, with the [Options] of its
// configuration.
type Module interface {
	Store
	Policy() Policy
	AcceptsAlways() bool
	Capacity() int64
	// Effective returns the options by name as they count, in the syntax of a
	// Caddyfile.
	Effective() map[string]string
}

// Options are those that every inbox has. A module embeds them.
type Options struct {
	// When events are stored: `on_failure` stores those that the backend did not
	// take; `always` stores each event first, answers at once, and then delivers
	// it. Default: `on_failure`.
	Accept string `json:"accept,omitempty"`

	// The time until an event is delivered again, after its first failed attempt.
	// It doubles with each further attempt, with jitter. Default: 5s.
	FirstRetry *caddy.Duration `json:"first_retry,omitempty"`

	// The longest time between two attempts, also if the backend asks for a
	// longer one with `Retry-After`. Default: 15m, or `first_retry` if that is
	// longer.
	LongestRetry *caddy.Duration `json:"longest_retry,omitempty"`

	// How long after its arrival an event that the backend still does not take is
	// declared dead: then it is delivered again only if an operator asks for it.
	// Default: 72h.
	DeadAfter *caddy.Duration `json:"dead_after,omitempty"`

	// Statuses of the backend that no retry will change, such as 422: the event
	// is declared dead at once. A single digit stands for all statuses that begin
	// with it, as 4 for 400 to 499. Default: none.
	DeadOn []int `json:"dead_on,omitempty"`

	// How many events are delivered again at the same time, once the backend
	// accepts them. While it fails, it is one. Default: 8.
	Concurrency *int `json:"concurrency,omitempty"`

	// How many events are delivered again in a second at most. Default: no limit.
	Rate *int `json:"rate,omitempty"`

	// How many bytes the events may take that are not delivered yet: their bodies
	// and headers, and 1 KiB for each event. At this limit, events are treated as without an inbox. Default: 1 GiB.
	MaxSize *int64 `json:"max_size,omitempty"`

	// How long events are kept after the backend has accepted them, so that they
	// can be delivered again. Default: they are not kept.
	KeepDelivered *caddy.Duration `json:"keep_delivered,omitempty"`

	// How long dead events are kept. Default: 720h (30 days).
	KeepDead *caddy.Duration `json:"keep_dead,omitempty"`

	policy  Policy
	always  bool
	maxSize int64
}

// Resolve checks the options and applies the defaults. Modules call it when they
// are provisioned.
func (o *Options) Resolve() (err error) {
	if o.always, err = option.Choice("accept", o.Accept, onFailure, always); err != nil {
		return err
	}
	p := Policy{DeadOn: o.deadOn}
	if p.FirstRetry, err = duration("first_retry", o.FirstRetry, defaultFirstRetry); err != nil {
		return err
	}
	if p.LongestRetry, err = duration("longest_retry", o.LongestRetry, max(defaultLongestRetry, p.FirstRetry)); err != nil {
		return err
	}
	if p.LongestRetry < p.FirstRetry {
		return fmt.Errorf("retry: the longest time (%v) must not be shorter than the first (%v)", p.LongestRetry, p.FirstRetry)
	}
	if p.DeadAfter, err = duration("dead_after", o.DeadAfter, defaultDeadAfter); err != nil {
		return err
	}
	if p.DeadAfter <= p.FirstRetry {
		return fmt.Errorf("dead_after (%v) must be longer than the time until the first retry (%v): otherwise events die without one", p.DeadAfter, p.FirstRetry)
	}
	for _, status := range o.DeadOn {
		if err := checkFailure(status); err != nil {
			return err
		}
	}
	if p.Concurrency, err = option.Resolve("concurrency", o.Concurrency, defaultConcurrency); err != nil {
		return err
	}
	if o.Rate != nil {
		p.Rate = *o.Rate
		if err := option.Positive("rate", p.Rate); err != nil {
			return err
		}
	}
	if o.maxSize, err = option.Resolve("max_size", o.MaxSize, defaultMaxSize); err != nil {
		return err
	}
	if o.KeepDelivered != nil {
		if p.KeepDelivered, err = duration("keep_delivered", o.KeepDelivered, 0); err != nil {
			return err
		}
	}
	if p.KeepDead, err = duration("keep_dead", o.KeepDead, defaultKeepDead); err != nil {
		return err
	}
	o.policy = p
	return nil
}

func duration(name string, value *caddy.Duration, byDefault time.Duration) (time.Duration, error) {
	d, err := option.Resolve(name, value, caddy.Duration(byDefault))
	return time.Duration(d), err
}

// checkFailure returns an error unless status is one that a backend can fail
// with, or the first digit of such.
func checkFailure(status int) error {
	switch {
	case status >= 3 && status <= 5, status >= 300 && status <= 599:
		return nil
	case status == 2, status >= 200 && status <= 299:
		return errors.New("dead_on must not have a 2xx status: it means that the backend has accepted the event")
	}
	return fmt.Errorf("dead_on must have statuses from 300 to 599, or classes such as 4xx, not %d", status)
}

func (o *Options) deadOn(status int) bool {
	for _, dead := range o.DeadOn {
		if caddyhttp.StatusCodeMatches(status, dead) {
			return true
		}
	}
	return false
}

// Policy returns how events are delivered again, once o has been resolved.
func (o *Options) Policy() Policy { return o.policy }

// AcceptsAlways reports whether each event is stored first, once o has been
// resolved.
func (o *Options) AcceptsAlways() bool { return o.always }

// Capacity returns how many bytes of events may be kept, once o has been resolved. It is for [Store.Add].
func (o *Options) Capacity() int64 { return o.maxSize }

// Effective returns the options as they count, once o has been resolved. It is for
// [Module].
func (o *Options) Effective() map[string]string {
	p := o.policy
	accept := onFailure
	if o.always {
		accept = always
	}
	return map[string]string{
		"accept":         accept,
		"retry":          fmt.Sprint(p.FirstRetry, " ", p.LongestRetry),
		"dead_after":     p.DeadAfter.String(),
		"dead_on":        fmt.Sprint(slices.Sorted(slices.Values(o.DeadOn))),
		"concurrency":    strconv.Itoa(p.Concurrency),
		"rate":           strconv.Itoa(p.Rate),
		"max_size":       strconv.FormatInt(o.maxSize, 10),
		"keep_delivered": p.KeepDelivered.String(),
		"keep_dead":      p.KeepDead.String(),
	}
}

// UnmarshalCaddyfileOption reads the option at d, which is in the block of the
// inbox with a name. Syntax of the options:
//
//	accept         on_failure|always
//	retry          <first> [<longest>]
//	dead_after     <duration>
//	dead_on        <status>...
//	concurrency    <n>
//	rate           <n>
//	max_size       <size>
//	keep_delivered <duration>
//	keep_dead      <duration>
func (o *Options) UnmarshalCaddyfileOption(d *caddyfile.Dispenser, inbox string) (err error) {
	switch name := d.Val(); name {
	case "accept":
		if err = option.Once(d, o.Accept != ""); err == nil {
			o.Accept, err = option.Word(d)
		}
	case "retry":
		err = o.unmarshalRetry(d)
	case "dead_after":
		err = set(d, &o.DeadAfter, option.Duration)
	case "dead_on":
		err = o.unmarshalDeadOn(d)
	case "concurrency":
		err = set(d, &o.Concurrency, option.Count)
	case "rate":
		err = set(d, &o.Rate, option.Count)
	case "max_size":
		err = set(d, &o.MaxSize, option.Size)
	case "keep_delivered":
		err = set(d, &o.KeepDelivered, option.Duration)
	case "keep_dead":
		err = set(d, &o.KeepDead, option.Duration)
	default:
		err = d.Errf("unknown option %q of inbox %s: it has accept, retry, dead_after, dead_on, concurrency, rate, max_size, keep_delivered and keep_dead", name, inbox)
	}
	return err
}

// set reads an option that may be given once.
func set[T any](d *caddyfile.Dispenser, value **T, read func(*caddyfile.Dispenser) (*T, error)) (err error) {
	if err := option.Once(d, *value != nil); err != nil {
		return err
	}
	*value, err = read(d)
	return err
}

func (o *Options) unmarshalRetry(d *caddyfile.Dispenser) error {
	if err := option.Once(d, o.FirstRetry != nil); err != nil {
		return err
	}
	args := d.RemainingArgs()
	if len(args) < 1 || len(args) > 2 {
		return d.ArgErr()
	}
	for i, value := range []**caddy.Duration{&o.FirstRetry, &o.LongestRetry}[:len(args)] {
		parsed, err := option.ParseDuration("retry", args[i])
		if err != nil {
			return d.WrapErr(err)
		}
		*value = &parsed
	}
	return nil
}

func (o *Options) unmarshalDeadOn(d *caddyfile.Dispenser) error {
	if err := option.Once(d, o.DeadOn != nil); err != nil {
		return err
	}
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.ArgErr()
	}
	for _, arg := range args {
		digits := arg
		if len(arg) == 3 && arg[1:] == "xx" {
			digits = arg[:1]
		}
		status, err := strconv.Atoi(digits)
		if err != nil || len(digits) != 3 && digits == arg {
			return d.Errf("dead_on must have statuses such as 422, or classes such as 4xx, not %q", arg)
		}
		if err := checkFailure(status); err != nil {
			return d.WrapErr(err)
		}
		o.DeadOn = append(o.DeadOn, status)
	}
	return nil
}
