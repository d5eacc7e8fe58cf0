package buzzbip

import (
	"sync"
	"time"
)

// feedSize is how many deliveries the page of the admin endpoint can show. Each
// takes 1 KB at most.
const feedSize = 200

// latest holds the latest deliveries of the process.
var latest feed

// feed keeps the latest deliveries. It has no subscribers: who wants to know
// asks what is new.
type feed struct {
	mu      sync.Mutex
	entries [feedSize]feedEntry // by number, modulo feedSize
	count   uint64
	results map[Result]uint64
}

// feedEntry is a delivery without its payload.
type feedEntry struct {
	Time     time.Time `json:"time"`
	ID       string    `json:"id,omitempty"`
	Type     string    `json:"type,omitempty"`
	Result   Result    `json:"result"`
	Reason   Reason    `json:"reason,omitempty"`
	Secret   string    `json:"secret,omitempty"`
	Duration float64   `json:"duration"` // in seconds
}

func (f *feed) add(d *delivery, start time.Time) {
	e := feedEntry{Time: start, Result: d.result, Reason: d.reason, Duration: time.Since(start).Seconds()}
	if d.key != nil {
		e.Secret = d.key.label
	}
	e.ID, e.Type = d.event.id, d.event.typ
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.results == nil {
		f.results = make(map[Result]uint64)
	}
	f.results[d.result]++
	f.entries[f.count%feedSize] = e
	f.count++
}

// since returns what has been added after a number of entries, as far as it is
// there, and the number of entries until now.
func (f *feed) since(count uint64) ([]feedEntry, uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	count = max(count, f.count-min(f.count, feedSize))
	entries := make([]feedEntry, 0, f.count-count)
	for ; count < f.count; count++ {
		entries = append(entries, f.entries[count%feedSize])
	}
	return entries, f.count
}

// totals returns the number of deliveries by result.
func (f *feed) totals() map[Result]uint64 {
	totals := make(map[Result]uint64)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, result := range results {
		totals[result] = f.results[result]
	}
	return totals
}
