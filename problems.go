package buzzbip

import (
	"slices"
	"sync"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

const (
	// problemAge is how long a group is kept after its last request.
	problemAge = time.Hour
	// problemsPerKind bounds the groups of a kind, which may differ in what senders
	// choose, such as their addresses. What does not fit is one more group.
	problemsPerKind = 20
	// problemsShown bounds the groups that a page gets.
	problemsShown = 60
)

// problems groups the requests of the last hour that went wrong.
var problems problemLog

// problem is a group of requests that went wrong in the same way.
type problem struct {
	problemKey
	Error string    `json:"error,omitempty"` // of the last one
	ID    string    `json:"id,omitempty"`    // of the last one that was verified
	Count uint64    `json:"count"`
	Since time.Time `json:"since"`
	Last  time.Time `json:"last"`
}

type problemKey struct {
	problemKind
	Status int    `json:"status,omitempty"` // the backend's
	Remote string `json:"remote,omitempty"` // address of the sender, of a rejection or a conflict
	// Others is true for the group of what exceeds problemsPerKind.
	Others bool `json:"others,omitempty"`
}

type problemKind struct {
	Result  webhook.Result `json:"result"`
	Reason  webhook.Reason `json:"reason,omitempty"`
	Cause   webhook.Cause  `json:"cause,omitempty"`
	WouldBe webhook.Result `json:"would_be,omitempty"` // with enforce off
}

type problemLog struct {
	mu     sync.Mutex
	groups map[problemKey]*problem
	kinds  map[problemKind]int // number of groups
}

// add counts a request if it went wrong.
func (l *problemLog) add(e *feedEntry) {
	if e.Result != webhook.ResultConflict && !e.Result.Failure() && e.Cause == "" && e.Reason == "" {
		return
	}
	k := problemKey{problemKind{e.Result, e.Reason, e.Cause, e.WouldBe}, e.Status, e.Remote, false}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.groups == nil {
		l.groups, l.kinds = make(map[problemKey]*problem), make(map[problemKind]int)
	}
	if l.groups[k] == nil && l.kinds[k.problemKind] >= problemsPerKind {
		if l.expire(e.Time); l.kinds[k.problemKind] >= problemsPerKind {
			k.Status, k.Remote, k.Others = 0, "", true
		}
	}
	g := l.groups[k]
	if g == nil {
		g = &problem{problemKey: k, Since: e.Time}
		l.groups[k] = g
		if !k.Others {
			l.kinds[k.problemKind]++
		}
	}
	g.Count++
	g.Last, g.Error = e.Time, e.Error
	if e.ID != "" {
		g.ID = e.ID
	}
}

func (l *problemLog) expire(now time.Time) {
	for k, g := range l.groups {
		if now.Sub(g.Last) > problemAge {
			delete(l.groups, k)
			if !k.Others {
				l.kinds[k.problemKind]--
			}
		}
	}
}

// latest returns the groups, the one with the latest request first.
func (l *problemLog) latest(now time.Time) []problem {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expire(now)
	list := make([]problem, 0, len(l.groups))
	for _, g := range l.groups {
		list = append(list, *g)
	}
	slices.SortFunc(list, func(a, b problem) int { return b.Last.Compare(a.Last) })
	return list[:min(len(list), problemsShown)]
}
