package redis

import (
	"sync"
	"time"
)

// health is whether Redis works, as far as a connection knows. The zero value
// means that it works, and its methods are safe for concurrent use.
type health struct {
	mu  sync.Mutex
	err error // why Redis is down, or nil
	// failed has the keys of the operation that found Redis down.
	failed []string
	// lostTrack has the time when a request, while it waited for another
	// instance, found Redis down: by the key of a delivered ID.
	lostTrack map[string]time.Time
	// dropped counts the deliveries in this outage that pending had no room
	// for.
	dropped int
}

// down returns why Redis is down, or nil.
func (h *health) down() error {
	_, err := h.outage()
	return err
}

// outage returns why Redis is down, or nil, and the keys of the operation that
// found it down.
func (h *health) outage() (failed []string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failed, h.err
}

// setDown begins an outage, and reports whether there was none before.
func (h *health) setDown(err error, failed []string) (began bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		return false
	}
	h.err, h.failed = err, failed
	return true
}

// setCause changes why Redis is down, and reports whether that is something new:
// a reply with another code, not only about another script. Errors of the network
// differ each time, so they never are.
func (h *health) setCause(err error) (changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if code := codeOf(err); h.err == nil || code == "" || code == codeOf(h.err) {
		return false
	}
	h.err = err
	return true
}

// setUp ends an outage, and returns how many deliveries were dropped in it.
func (h *health) setUp() (dropped int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	dropped = h.dropped
	h.err, h.failed, h.lostTrack, h.dropped = nil, nil, nil, 0
	return dropped
}

// drop counts a delivery that pending had no room for, and reports whether it
// is the first in this outage.
func (h *health) drop() (first bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dropped++
	return h.dropped == 1
}

func (h *health) droppedCount() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dropped
}

// loseTrack records that another instance was delivering an ID when Redis went
// down.
func (h *health) loseTrack(key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil || !h.lostTrack[key].IsZero() {
		return
	}
	if h.lostTrack == nil {
		h.lostTrack = make(map[string]time.Time)
	}
	h.lostTrack[key] = time.Now()
}

// lostTrackSince reports whether track of an ID was lost after a time. A
// request that has waited in this process since then must not deliver it.
func (h *health) lostTrackSince(key string, t time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lostTrack[key].After(t)
}
