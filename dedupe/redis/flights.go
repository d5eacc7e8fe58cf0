package redis

import (
	"sync"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// id is an event's ID in its scope.
type id struct {
	scope string
	key   dedupe.Key
}

// flight is an ID that this instance is delivering.
type flight struct {
	id
	token   uint64
	began   time.Time
	expires time.Time // the end of its lease
	state   flightState
}

// flightState says what Redis knows of a flight.
type flightState uint8

const (
	// registered: Redis has granted the claim, or was told of it since.
	registered flightState = iota
	// unregistered: this instance has granted the claim because Redis did not
	// answer.
	unregistered
	// contested: when Redis was told of the claim, another instance had the ID.
	contested
)

// flights are what this instance is delivering. The zero value is ready for
// use, and its methods are safe for concurrent use.
type flights struct {
	mu   sync.Mutex
	byID map[id]flight
}

func (fs *flights) begin(f flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.byID == nil {
		fs.byID = make(map[id]flight)
	}
	fs.byID[f.id] = f
}

// end removes a flight and returns it, if it is still there.
func (fs *flights) end(of id, token uint64) (f flight, ok bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f, ok = fs.byID[of]
	if !ok || f.token != token {
		return flight{}, false
	}
	delete(fs.byID, of)
	return f, true
}

// toRegister returns the flights that Redis is to be told of, in case it does
// not know them: those that began before a time, and those that it was not told
// of yet.
func (fs *flights) toRegister(before time.Time) (due []flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	now := time.Now()
	for _, f := range fs.byID {
		if now.Before(f.expires) && (f.state != registered || f.began.Before(before)) {
			due = append(due, f)
		}
	}
	return due
}

// setState changes the state of a flight, and reports whether it is still
// there.
func (fs *flights) setState(f flight, state flightState) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	present, ok := fs.byID[f.id]
	if !ok || present.token != f.token {
		return false
	}
	present.state = state
	fs.byID[f.id] = present
	return true
}
