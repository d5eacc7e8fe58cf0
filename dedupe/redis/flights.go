package redis

import (
	"sync"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// id is the ID of an event in its scope.
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

// flightState is what Redis knows of a flight.
type flightState uint8

const (
	// registered means that Redis granted the claim, or was told of it later.
	registered flightState = iota
	// unregistered means that this instance granted the claim, because Redis did
	// not answer.
	unregistered
	// contested means that another instance had a claim on the ID when Redis was
	// told of this one.
	contested
)

// flights are the IDs that this instance is delivering. The zero value is ready for
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
func (fs *flights) end(event id, token uint64) (f flight, ok bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f, ok = fs.byID[event]
	if !ok || f.token != token {
		return flight{}, false
	}
	delete(fs.byID, event)
	return f, true
}

// toRegister returns the flights that Redis may not know: those that are not
// registered, and those that began before a time, which Redis may have lost.
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

// setState changes the state of a flight, and reports whether it is still there.
func (fs *flights) setState(f flight, state flightState) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	current, ok := fs.byID[f.id]
	if !ok || current.token != f.token {
		return false
	}
	current.state = state
	fs.byID[f.id] = current
	return true
}
