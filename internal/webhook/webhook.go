// Package webhook knows what BuzzBip sends: how it signs, the envelope around
// each event, its types, and the words for what happens to a request. The
// handler and the command line share it.
package webhook

import (
	"errors"
	"time"
)

const (
	// DefaultMaxBodySize is the size of the largest body unless the
	// configuration has another, in bytes.
	DefaultMaxBodySize = 1 << 20

	// ClockSkew is how far ahead of our clock an event may be created.
	ClockSkew = 5 * time.Minute
)

// ErrBodyTooLarge is why a request is rejected as [ReasonBodyTooLarge].
var ErrBodyTooLarge = errors.New("the body is larger than max_body_size")

// How much of the envelope must be right.
const (
	EnvelopeStrict  = "strict"
	EnvelopeLenient = "lenient"
)
