// Package option reads and checks the values of options, so that the errors of the
// handler, of the stores and of commands have the same words. Each error begins
// with the name of the option and contains what it must be.
package option

import (
	"fmt"
	"math"
	"strconv"

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

// Resolve returns the value of an option, which must be greater than zero, or its
// default if value is nil.
func Resolve[T int | int64 | caddy.Duration](name string, value *T, byDefault T) (T, error) {
	if value == nil {
		return byDefault, nil
	}
	return *value, Positive(name, *value)
}

// Choice reports whether the value of an option is alternative. Otherwise it must be
// byDefault or, if the option was not given, empty.
func Choice(name, value, byDefault, alternative string) (bool, error) {
	switch value {
	case "", byDefault:
		return false, nil
	case alternative:
		return true, nil
	}
	return false, fmt.Errorf("%s must be %s or %s, not %q", name, byDefault, alternative, value)
}

// ParseSize reads a size as Caddy does (1MB is 1000000, 1MiB is 1048576) and returns
// it in bytes. It must be greater than zero.
func ParseSize(name, text string) (int64, error) {
	parsed, err := humanize.ParseBytes(text)
	if err != nil || parsed > math.MaxInt64 {
		return 0, fmt.Errorf("%s must be a size such as 512KiB or 1MB, not %q", name, text)
	}
	return int64(parsed), Positive(name, int64(parsed))
}

// ParseDuration reads a duration as Caddy does (with d for days). It must be greater
// than zero.
func ParseDuration(name, text string) (caddy.Duration, error) {
	parsed, err := caddy.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%s must be a duration such as 30s or 24h: %w", name, err)
	}
	return caddy.Duration(parsed), Positive(name, caddy.Duration(parsed))
}

// Once returns an error if the option at d was given earlier.
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

// Duration reads the only argument of the option at d, a duration that is greater
// than zero.
func Duration(d *caddyfile.Dispenser) (*caddy.Duration, error) {
	name := d.Val()
	text, err := Word(d)
	if err != nil {
		return nil, err
	}
	value, err := ParseDuration(name, text)
	if err != nil {
		return nil, d.WrapErr(err)
	}
	return &value, nil
}

// Count reads the only argument of the option at d, a whole number that is greater
// than zero.
func Count(d *caddyfile.Dispenser) (*int, error) {
	name := d.Val()
	text, err := Word(d)
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(text)
	if err != nil || n <= 0 {
		return nil, d.Errf("%s must be a whole number greater than zero, not %q", name, text)
	}
	return &n, nil
}

// Size reads the only argument of the option at d, a size that is greater than zero,
// and returns it in bytes.
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
