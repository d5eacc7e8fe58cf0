package buzzbip

import (
	"fmt"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

func TestProblemsAreGroupedByWhatWentWrongAndWho(t *testing.T) {
	var l problemLog
	now := time.Now()
	add := func(e feedEntry) {
		now = now.Add(time.Second)
		e.Time = now
		l.add(&e)
	}
	begin := now.Add(time.Second)
	add(feedEntry{Result: webhook.ResultFailed, Cause: webhook.CauseUnreachable, Error: "refused", ID: "evt_1"})
	add(feedEntry{Result: webhook.ResultFailed, Cause: webhook.CauseUnreachable, Error: "no route", ID: "evt_2"})
	add(feedEntry{Result: webhook.ResultStored, Cause: webhook.CauseUnreachable, Error: "refused", ID: "evt_3"})
	add(feedEntry{Result: webhook.ResultFailed, Cause: webhook.CauseStatus5xx, Status: 500, ID: "evt_4"})
	add(feedEntry{Result: webhook.ResultRejected, Reason: webhook.ReasonSignatureMismatch, Remote: "192.0.2.1"})
	add(feedEntry{Result: webhook.ResultRejected, Reason: webhook.ReasonSignatureMismatch, Remote: "192.0.2.2"})
	add(feedEntry{Result: webhook.ResultDelivered, WouldBe: webhook.ResultRejected, Reason: webhook.ReasonSignatureMismatch, Remote: "192.0.2.1"})
	add(feedEntry{Result: webhook.ResultConflict, ID: "evt_5"})
	for _, fine := range []webhook.Result{webhook.ResultDelivered, webhook.ResultStored, webhook.ResultDuplicate, webhook.ResultIgnored} {
		add(feedEntry{Result: fine})
	}
	list := l.latest(now)
	if len(list) != 7 {
		t.Fatalf("there are %+v", list)
	}
	if last := list[len(list)-1]; last.Count != 2 || last.Error != "no route" || last.ID != "evt_2" || !last.Since.Equal(begin) || !last.Last.Equal(begin.Add(time.Second)) {
		t.Errorf("of two alike there is %+v", last)
	}
	if list[0].Result != webhook.ResultConflict {
		t.Errorf("the latest is %+v", list[0])
	}
	if list := l.latest(now.Add(problemAge + time.Minute)); len(list) != 0 {
		t.Errorf("an hour later there are %+v", list)
	}
}

// Forgers with many addresses take no more memory, and leave the others there.
func TestProblemsOfOneKindAreBounded(t *testing.T) {
	var l problemLog
	now := time.Now()
	forged := func(i int) {
		l.add(&feedEntry{Time: now, Result: webhook.ResultRejected, Reason: webhook.ReasonSignatureMismatch, Remote: fmt.Sprint("address ", i)})
	}
	l.add(&feedEntry{Time: now, Result: webhook.ResultFailed, Cause: webhook.CauseTimeout})
	for i := range 1000 {
		forged(i)
	}
	var others uint64
	for _, g := range l.latest(now) {
		if g.Others {
			others += g.Count
		}
	}
	if len(l.groups) != problemsPerKind+2 || others != 1000-problemsPerKind {
		t.Errorf("there are %d groups, and %d requests in that of the others", len(l.groups), others)
	}
	now = now.Add(problemAge + time.Minute)
	forged(1001)
	if list := l.latest(now); len(list) != 1 || list[0].Others || list[0].Remote != "address 1001" {
		t.Errorf("there is no room for new ones: %+v", list)
	}
}
