package sqlite

import (
	"fmt"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/inbox"
)

// Each change of the inbox reads the counts of all reasons.
func TestReasonsAreBounded(t *testing.T) {
	s := start(t, newPath(t))
	failed := func(n, status int, text string) {
		t.Helper()
		e := numbered(n, 10)
		e.Attempts, e.Last = 1, inbox.Attempt{Time: e.Arrived, Status: status, Cause: "unreachable", Error: text}
		add(t, s, e)
	}
	groups := func() []inbox.Group {
		t.Helper()
		groups, err := s.Groups(t.Context(), 10_000)
		if err != nil {
			t.Fatal(err)
		}
		return groups
	}
	for n := range 3 * maxReasons {
		failed(n, 502, fmt.Sprint("error ", n))
	}
	got := groups()
	if len(got) != maxReasons+1 || got[0].Events != 2*maxReasons || got[0].Error != "" || got[0].Cause != "unreachable" {
		t.Errorf("there are %d groups, the largest is %+v", len(got), got[0])
	}
	failed(10_000, 503, "another error")
	failed(10_001, 502, "error 0")
	if got = groups(); len(got) != maxReasons+2 || got[1].Events != 2 || got[1].Error != "error 0" {
		t.Errorf("there are %d groups, the second is %+v", len(got), got[1])
	}
	consistent(t, s)
	// those that no event has make room
	if _, err := s.Discard(t.Context(), inbox.Filter{Status: []int{502}}, func(inbox.Event) {}); err != nil {
		t.Fatal(err)
	}
	for n := range maxReasons - 1 {
		failed(n, 502, fmt.Sprint("later error ", n))
	}
	if got = groups(); len(got) != maxReasons || got[0].Events != 1 || got[0].Error == "" {
		t.Errorf("there are %d groups, the largest is %+v", len(got), got[0])
	}
	consistent(t, s)
}

// BenchmarkGroups shows that it takes no longer the more events wait.
func BenchmarkGroups(b *testing.B) {
	for _, kept := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(kept, " waiting"), func(b *testing.B) {
			s := start(b, newPath(b))
			fill(b, s, 0, kept, 64)
			for n := range 20 {
				e := numbered(kept+n, 64)
				e.Attempts, e.Last = 1, inbox.Attempt{Time: time.Now(), Status: 500 + n}
				add(b, s, e)
			}
			for b.Loop() {
				if groups, err := s.Groups(b.Context(), 20); err != nil || len(groups) != 20 {
					b.Fatal(len(groups), err)
				}
			}
			stop(b, s)
		})
	}
}
