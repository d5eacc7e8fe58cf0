package buzzbip

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// feedSize is the number of requests of each kind that the feed keeps. A request
// takes at most 1.5 KB, and there are 11 kinds.
const feedSize = 100

// latest holds the latest requests of the process.
var latest feed

// feed keeps the latest requests of each kind for the page of the admin endpoint.
// A flood of one kind, such as forgeries, does not evict the others.
type feed struct {
	mu      sync.Mutex
	kinds   map[string]*feedRing
	count   uint64
	results map[webhook.Result]uint64
}

// feedRing is a ring buffer of requests of one kind.
type feedRing struct {
	entries [feedSize]feedEntry // by number of the request of this kind, modulo feedSize
	count   uint64
}

// feedEntry is a request without its payload.
type feedEntry struct {
	Number uint64    `json:"n"`    // of the request, from 1
	Time   time.Time `json:"time"` // when it ended
	// Kind is the result, unverified, redelivered or redelivery_failed: each kind has
	// its own limit.
	Kind     string         `json:"kind"`
	ID       string         `json:"id,omitempty"`
	Type     string         `json:"type,omitempty"`
	Result   webhook.Result `json:"result"`
	Reason   webhook.Reason `json:"reason,omitempty"`
	WouldBe  webhook.Result `json:"would_be,omitempty"` // with enforce off
	Cause    webhook.Cause  `json:"cause,omitempty"`    // of a failed delivery
	Status   int            `json:"status,omitempty"`   // the backend's, of a failed delivery
	Error    string         `json:"error,omitempty"`    // of a failed delivery
	Attempt  int            `json:"attempt,omitempty"`  // number of a redelivery
	Remote   string         `json:"remote,omitempty"`   // address of the sender, of a rejection or a conflict
	Secret   string         `json:"secret,omitempty"`
	Duration float64        `json:"duration"` // in seconds
}

const (
	// kindUnverified is the kind of a rejected request whose signature was not
	// right: anybody can send these.
	kindUnverified = "unverified"
	// kindRedelivered and kindRedeliveryFailed are the kinds of attempts to deliver an
	// event of the inbox.
	kindRedelivered      = "redelivered"
	kindRedeliveryFailed = "redelivery_failed"
)

func feedEntryOf(state *requestState) feedEntry {
	e := feedEntry{
		Time: state.now, ID: state.event.ID, Type: state.event.Type, Result: state.result, Reason: state.reason, WouldBe: state.wouldBe,
		Remote: state.remote, Duration: state.now.Sub(state.start).Seconds(),
	}
	if state.key != nil {
		e.Secret = state.key.label
	}
	if f := state.failure; f != nil {
		e.Cause, e.Status, e.Error = f.Cause, f.Status, f.Error
	}
	return e
}

// addRequest adds a request, and returns it as it was added.
func (f *feed) addRequest(state *requestState) feedEntry {
	e := feedEntryOf(state)
	e.Kind = kindUnverified
	if state.key != nil {
		e.Kind = string(state.result)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.results == nil {
		f.results = make(map[webhook.Result]uint64)
	}
	f.results[state.result]++
	f.add(e)
	return e
}

// addRedelivery adds an attempt to deliver an event of the inbox.
func (f *feed) addRedelivery(state *requestState) {
	e := feedEntryOf(state)
	e.Kind, e.Attempt = kindRedelivered, state.number
	if state.result != webhook.ResultDelivered {
		e.Kind = kindRedeliveryFailed
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.add(e)
}

func (f *feed) add(e feedEntry) {
	if f.kinds == nil {
		f.kinds = make(map[string]*feedRing)
	}
	f.count++
	e.Number = f.count
	ring := f.kinds[e.Kind]
	if ring == nil {
		ring = new(feedRing)
		f.kinds[e.Kind] = ring
	}
	ring.entries[ring.count%feedSize] = e
	ring.count++
}

// since returns the requests that were added after the first count ones and are
// still kept, in order, and the number of requests so far.
func (f *feed) since(count uint64) ([]feedEntry, uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	entries := []feedEntry{}
	if count == f.count {
		return entries, count
	}
	for _, ring := range f.kinds {
		for _, e := range ring.entries[:min(ring.count, feedSize)] {
			if e.Number > count {
				entries = append(entries, e)
			}
		}
	}
	slices.SortFunc(entries, func(a, b feedEntry) int { return cmp.Compare(a.Number, b.Number) })
	return entries, f.count
}

// totals returns the number of requests by result.
func (f *feed) totals() map[webhook.Result]uint64 {
	totals := make(map[webhook.Result]uint64)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, result := range webhook.Results {
		totals[result] = f.results[result]
	}
	return totals
}
