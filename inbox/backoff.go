package inbox

import (
	"math/rand/v2"
	"time"
)

// backoff is a time to wait that doubles with each failure.
type backoff struct {
	first, longest time.Duration
	random         func() float64 // in [0, 1)
}

// after returns how long to wait after so many failures in a row, with a jitter
// of 20 % either way. It is at least what the other side has asked for, unless
// that is longer than the longest wait.
func (b backoff) after(failures int, asked time.Duration) time.Duration {
	wait := b.first
	for range failures - 1 {
		if wait >= b.longest/2 {
			wait = b.longest
			break
		}
		wait *= 2
	}
	wait = min(wait, b.longest)
	wait += time.Duration(float64(wait) * 0.4 * (b.random() - 0.5))
	return max(wait, min(asked, b.longest))
}

// storeBackoff is for operations of a store that fail.
var storeBackoff = backoff{first: time.Second, longest: time.Minute, random: rand.Float64}
