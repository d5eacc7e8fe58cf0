package buzzbip

import (
	"maps"
	"sync"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

const (
	historyStep  = 10 * time.Second
	historySteps = 360 // an hour
)

// traffic is what the process has done in the last hour.
var traffic history

// history counts requests and attempts by step of time, for the charts of the page.
// It is a ring, which takes at most 200 KB.
type history struct {
	mu    sync.Mutex
	steps [historySteps]historyEntry // by number, modulo historySteps
	last  int64                      // number of the last step
	// accepted is when the backend has last accepted an event, or zero
	accepted time.Time
}

// historyEntry has the counts of one step.
type historyEntry struct {
	Number     int64                     `json:"n"` // the first one, 0, began when the process started
	Results    map[webhook.Result]uint32 `json:"results,omitempty"`
	Unverified uint32                    `json:"unverified,omitempty"` // rejected before their signature was known to be right
	Signature  uint32                    `json:"signature,omitempty"`  // rejected because of their signature
	Accepted   uint32                    `json:"accepted,omitempty"`   // attempts to deliver, also those of the inbox
	Failed     uint32                    `json:"failed,omitempty"`     // attempts as well
	Waiting    int                       `json:"waiting,omitempty"`    // in the inboxes at the end of the step
	Dead       int                       `json:"dead,omitempty"`       // in the inboxes at the end of the step
}

// request counts a request.
func (h *history) request(e *feedEntry, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.at(now)
	if c.Results == nil {
		c.Results = make(map[webhook.Result]uint32)
	}
	c.Results[e.Result]++
	if e.Kind == kindUnverified {
		c.Unverified++
	}
	if e.Reason.Signature() {
		c.Signature++
	}
}

// attempt counts an attempt to deliver.
func (h *history) attempt(accepted bool, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.at(now)
	if accepted {
		c.Accepted++
		h.accepted = now
	} else {
		c.Failed++
	}
}

// at returns the step of a time, which becomes the last one.
func (h *history) at(now time.Time) *historyEntry {
	number := max(h.last, int64(now.Sub(started)/historyStep))
	if number > h.last {
		waiting, dead := backlog()
		ended := &h.steps[h.last%historySteps]
		ended.Waiting, ended.Dead = waiting, dead
		for n := max(h.last, number-historySteps) + 1; n <= number; n++ {
			h.steps[n%historySteps] = historyEntry{Number: n, Waiting: waiting, Dead: dead}
		}
		h.last = number
	}
	return &h.steps[number%historySteps]
}

// lastAccepted returns when the backend has last accepted an event, or nil.
func (h *history) lastAccepted() *time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return known(h.accepted)
}

// since returns the steps from a number on that are kept, and the number of the
// last one.
func (h *history) since(number int64, now time.Time) (entries []historyEntry, last int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	current := h.at(now)
	current.Waiting, current.Dead = backlog()
	for n := max(number, h.last-historySteps+1, 0); n <= h.last; n++ {
		e := h.steps[n%historySteps]
		e.Results = maps.Clone(e.Results)
		entries = append(entries, e)
	}
	return entries, h.last
}

// backlog counts the events in the inboxes of the active configuration.
func backlog() (waiting, dead int) {
	app := running()
	if app == nil {
		return 0, 0
	}
	for _, h := range app.inboxes() {
		stats := h.inbox.Stats()
		waiting += stats.Waiting
		dead += stats.Dead
	}
	return waiting, dead
}
