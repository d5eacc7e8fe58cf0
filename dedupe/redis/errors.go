package redis

import (
	"errors"
	"fmt"
	"strings"

	"github.com/redis/rueidis"
)

// errUntried means that an operation did not reach Redis.
type errUntried struct{ error }

func (e errUntried) Unwrap() error { return e.error }

// errForeign means that a key holds a value that is not of this plugin's
// making.
var errForeign = errors.New("a key holds what this plugin has not written")

// ofKey reports whether an error is about the keys of one ID. Any other error
// is about the state of the server or of the way to it: it does not answer,
// loads its data, is a replica, has no room, does not let this user in, and so
// on. Then no other event would fare better, and Redis counts as down.
func ofKey(err error) bool {
	if errors.Is(err, errForeign) {
		return true
	}
	answer, ok := rueidis.IsRedisErr(err)
	return ok && strings.HasPrefix(answer.Error(), "WRONGTYPE")
}

// forbidden reports whether the ACL does not permit a command or a channel.
func forbidden(err error) bool {
	answer, ok := rueidis.IsRedisErr(err)
	return ok && strings.HasPrefix(answer.Error(), "NOPERM")
}

func foreignLength(bytes int) error {
	return fmt.Errorf("%w: %d bytes where 8 belong", errForeign, bytes)
}
