package buzzbip

import (
	"fmt"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

func TestHistoryCountsByStepAndForgetsAfterAnHour(t *testing.T) {
	var h history
	at := func(step int64) time.Time { return started.Add(time.Duration(step) * historyStep) }
	delivered := &feedEntry{Kind: string(webhook.ResultDelivered), Result: webhook.ResultDelivered}
	forged := &feedEntry{Kind: kindUnverified, Result: webhook.ResultRejected, Reason: webhook.ReasonSignatureMismatch}
	h.request(delivered, at(1))
	h.request(forged, at(1))
	h.attempt(true, at(1))
	h.attempt(false, at(3))
	h.request(delivered, at(2)) // ended before the last one, and is counted with it

	steps, last := h.since(0, at(4))
	var got []string
	for _, s := range steps {
		got = append(got, fmt.Sprint(s.Number, s.Results, s.Unverified, s.Signature, s.Accepted, s.Failed))
	}
	want := []string{
		"0 map[] 0 0 0 0",
		"1 map[delivered:1 rejected:1] 1 1 1 0",
		"2 map[] 0 0 0 0",
		"3 map[delivered:1] 0 0 0 1",
		"4 map[] 0 0 0 0",
	}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) || last != 4 {
		t.Errorf("until %d, there are %q, want %q", last, got, want)
	}
	if got := h.lastAccepted(); got == nil || !got.Equal(at(1)) {
		t.Errorf("the last acceptance was at %v", got)
	}
	if steps, _ := h.since(last, at(4)); len(steps) != 1 || steps[0].Number != 4 {
		t.Errorf("of the last step there is %+v", steps)
	}

	steps, last = h.since(0, at(2+historySteps))
	if len(steps) != historySteps || steps[0].Number != 3 || steps[0].Failed != 1 || last != 2+historySteps {
		t.Errorf("an hour later there are %d steps until %d, the first is %+v", len(steps), last, steps[0])
	}
	steps, _ = h.since(0, at(10*historySteps))
	for _, s := range steps {
		if len(s.Results) > 0 || s.Accepted+s.Failed > 0 || s.Number <= 9*historySteps {
			t.Errorf("much later there is still %+v", s)
		}
	}
}

// A page that is opened after an incident shows how the backlog grew.
func TestHistoryHasTheBacklog(t *testing.T) {
	s := start(t, fmt.Sprintf(`
		buzzbip_webhook %s {
			inbox sqlite %s/inbox.db
		}
		reverse_proxy %s`, caddytest.Secret, t.TempDir(), down(t)))
	client := newClient(t, "HTTP/1.1")
	const events = 3
	for range events {
		expect(t, send(client, signed(s.url, caddytest.NewEvent())), 200, webhook.ResultStored)
	}
	now := time.Now()
	steps, last := traffic.since(0, now)
	if got := steps[len(steps)-1]; got.Waiting != events {
		t.Errorf("%d events wait, the last step has %+v", events, got)
	}
	steps, _ = traffic.since(last, now.Add(3*historyStep))
	for _, step := range steps {
		if step.Waiting != events {
			t.Errorf("while nothing happens, a step has %+v", step)
		}
	}
	if len(steps) != 4 {
		t.Errorf("there are %d more steps", len(steps)-1)
	}
}
