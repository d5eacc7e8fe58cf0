package redis

import (
	"crypto/rand"
	"sync"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// ownCapacity is how many IDs an instance remembers in its own memory for each
// scope, to deduplicate while Redis is down.
const ownCapacity = 1_000_000

var ownLimits = dedupe.Limits{Capacity: ownCapacity}

// instance is what this process knows of the IDs of one backing, whatever the
// settings of the connections to it.
type instance struct {
	// name is random, and different in each process.
	name string
	// local lets one request at a time through for each ID. It remembers
	// nothing, because its claims have no retention.
	local dedupe.Ledger
	// inFlight has the IDs that this process is delivering.
	inFlight flights
	// own has the IDs that this process delivered.
	own dedupe.Ledger
	// pending has the outcomes that are not recorded in Redis yet.
	pending pending
	// losses counts the IDs in own that Redis has lost.
	losses losses
}

// instances has an instance for each backing. Like the IDs of the memory store,
// they stay until the process ends.
var instances sync.Map

func instanceFor(backing string) *instance {
	// rand.Text has 130 random bits in 26 characters
	in, _ := instances.LoadOrStore(backing, &instance{name: rand.Text()[:16]})
	return in.(*instance)
}
