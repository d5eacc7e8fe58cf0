package redis

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

func flag(set bool) string {
	if set {
		return "1"
	}
	return "0"
}

// milliseconds returns at least 1, the shortest time that Redis accepts.
func milliseconds(d time.Duration) string { return fmt.Sprint(max(d.Milliseconds(), 1)) }

// unixAfter returns when a duration will have passed, as a Unix time in
// nanoseconds.
func unixAfter(d time.Duration) int64 {
	now := time.Now().UnixNano()
	return now + min(int64(d), math.MaxInt64-now)
}

func encode(d dedupe.Digest) string {
	return string(binary.BigEndian.AppendUint64(nil, uint64(d)))
}

func decode(digest string) (dedupe.Digest, error) {
	if len(digest) != 8 {
		return 0, fmt.Errorf("%w: %d bytes instead of 8", errForeign, len(digest))
	}
	return dedupe.Digest(binary.BigEndian.Uint64([]byte(digest))), nil
}
