package redis

import (
	"errors"
	"strings"

	"github.com/redis/rueidis"
)

// errNotTried means that an operation was not sent to Redis.
type errNotTried struct{ error }

func (e errNotTried) Unwrap() error { return e.error }

// errForeign means that a key has a value that this plugin never writes.
var errForeign = errors.New("a key has a value that this plugin did not write")

// concernsKeys reports whether an error is about the keys of one ID. Any other
// error is about the server or the network: there is no answer, the server is
// loading its data, is a replica, is full, rejects the user, and so on. Then
// other events would fail as well, so Redis counts as down.
func concernsKeys(err error) bool {
	return errors.Is(err, errForeign) || hasCode(err, "WRONGTYPE")
}

// isNoMaster reports whether a server rejects writes because it is a replica, or
// because its replicas have left it. It keeps its connections.
func isNoMaster(err error) bool { return hasCode(err, "READONLY") || hasCode(err, "NOREPLICAS") }

// isForbidden reports whether the ACL does not permit a command or a channel.
func isForbidden(err error) bool { return hasCode(err, "NOPERM") }

func hasCode(err error, code string) bool { return codeOf(err) == code }

// codeOf returns the code with which Redis has rejected a command, or nothing.
func codeOf(err error) string {
	reply, ok := rueidis.IsRedisErr(err)
	if !ok {
		return ""
	}
	code, _, _ := strings.Cut(reply.Error(), " ")
	return code
}
