package buzzbip

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// feedSize is the number of requests of each kind that the feed keeps. A request
// takes at most 1 KB, and there are 8 kinds.
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
	number uint64    // of the request, from 1
	Time   time.Time `json:"time"`
	// Kind is the result, or unverified: each kind has its own limit.
	Kind     string         `json:"kind"`
	ID       string         `json:"id,omitempty"`
	Type     string         `json:"type,omitempty"`
	Result   webhook.Result `json:"result"`
	Reason   webhook.Reason `json:"reason,omitempty"`
	WouldBe  webhook.Result `json:"would_be,omitempty"` // with enforce off
	Cause    webhook.Cause  `json:"cause,omitempty"`    // of a failed delivery
	Status   int            `json:"status,omitempty"`   // the backend's, of a failed delivery
	Secret   string         `json:"secret,omitempty"`
	Duration float64        `json:"duration"` // in seconds
}

// kindUnverified is the kind of a rejected request whose signature was not
// right: anybody can send these.
const kindUnverified = "unverified"

func (f *feed) add(state *requestState) {
	e := feedEntry{Time: state.start, Kind: kindUnverified, Result: state.result, Reason: state.reason, WouldBe: state.wouldBe, Duration: state.now.Sub(state.start).Seconds()}
	if state.key != nil {
		e.Kind, e.Secret = string(state.result), state.key.label
	}
	e.ID, e.Type = state.event.ID, state.event.Type
	if state.failure != nil {
		e.Cause, e.Status = state.failure.Cause, state.failure.Status
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.results == nil {
		f.results = make(map[webhook.Result]uint64)
		f.kinds = make(map[string]*feedRing)
	}
	f.results[state.result]++
	f.count++
	e.number = f.count
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
			if e.number > count {
				entries = append(entries, e)
			}
		}
	}
	slices.SortFunc(entries, func(a, b feedEntry) int { return cmp.Compare(a.number, b.number) })
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
