// Package option checks the options of a configuration. The handler, the stores
// and the flags of commands say what is wrong with them in the same words.
package option

import (
	"fmt"
	"math"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/dustin/go-humanize"
)

// Positive returns an error unless the value is greater than zero.
func Positive[T int | int64 | caddy.Duration](name string, value T) error {
	if value <= 0 {
		return fmt.Errorf("%s must be greater than zero", name)
	}
	return nil
}

// Resolve returns the value of an option, which must be greater than zero, or
// what it is if it was not given.
func Resolve[T int | int64 | caddy.Duration](name string, value *T, unset T) (T, error) {
	if value == nil {
		return unset, nil
	}
	return *value, Positive(name, *value)
}

// Choice reports whether an option is other rather than unset, which it also is
// if it was not given.
func Choice(name, value, unset, other string) (bool, error) {
	switch value {
	case "", unset:
		return false, nil
	case other:
		return true, nil
	}
	return false, fmt.Errorf("%s must be %s or %s, not %q", name, unset, other, value)
}

// ParseSize reads a size in bytes, as Caddy writes it, that is greater than zero.
func ParseSize(name, text string) (int64, error) {
	parsed, err := humanize.ParseBytes(text)
	if err != nil || parsed > math.MaxInt64 {
		return 0, fmt.Errorf("%s must be a size such as 512KiB or 1MB, not %q", name, text)
	}
	return int64(parsed), Positive(name, int64(parsed))
}

// Once returns an error if the option at d was given before.
func Once(d *caddyfile.Dispenser, given bool) error {
	if given {
		return d.Errf("%s is given more than once", d.Val())
	}
	return nil
}

// Word reads the only argument of the option at d.
func Word(d *caddyfile.Dispenser) (string, error) {
	name := d.Val()
	var value string
	if !d.AllArgs(&value) {
		return "", d.ArgErr()
	}
	if value == "" {
		return "", d.Errf("%s is empty", name)
	}
	return value, nil
}

// Duration reads a duration that is greater than zero.
func Duration(d *caddyfile.Dispenser) (*caddy.Duration, error) {
	name := d.Val()
	text, err := Word(d)
	if err != nil {
		return nil, err
	}
	parsed, err := caddy.ParseDuration(text)
	if err != nil {
		return nil, d.Errf("%s must be a duration such as 30s or 24h: %w", name, err)
	}
	value := caddy.Duration(parsed)
	if err := Positive(name, value); err != nil {
		return nil, d.WrapErr(err)
	}
	return &value, nil
}

// Size reads a size that is greater than zero.
func Size(d *caddyfile.Dispenser) (*int64, error) {
	name := d.Val()
	text, err := Word(d)
	if err != nil {
		return nil, err
	}
	size, err := ParseSize(name, text)
	if err != nil {
		return nil, d.WrapErr(err)
	}
	return &size, nil
}
