// Package webhook describes what BuzzBip sends and what may happen to it: the
// signature and its secret, the envelope of an event, the types of events, and
// the closed sets of results, reasons and causes. The handler and the command
// line share it.
//
// It is a leaf: it imports neither Caddy nor another package of this module.
//
// Facts about BuzzBip come from its developer documentation, "Webhooks", updated
// 2026-06-01. All functions may be called concurrently and keep no state. The
// variables must not be changed.
package webhook

import (
	"errors"
	"time"
)

const (
	// DefaultMaxBodySize is the default of max_body_size, in bytes (1 MiB).
	DefaultMaxBodySize = 1 << 20

	// ClockSkew is how far in the future createdAt may be where max_age is set,
	// because clocks differ.
	ClockSkew = 5 * time.Minute
)

// ErrBodyTooLarge is the error of a request that is rejected as
// [ReasonBodyTooLarge].
var ErrBodyTooLarge = errors.New("the body is larger than max_body_size")

// The values of the option envelope.
const (
	// EnvelopeStrict requires all four documented members. It is the default.
	EnvelopeStrict = "strict"
	// EnvelopeLenient requires only id and type.
	EnvelopeLenient = "lenient"
)
