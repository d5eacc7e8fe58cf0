package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

func TestExplainGoesThroughTheSteps(t *testing.T) {
	const limit = 100
	created := time.Date(2026, 6, 1, 14, 32, 0, 0, time.UTC)
	event := `{"id":"evt_1","type":"message.received","createdAt":"2026-06-01T14:32:00Z","data":{}}`
	strict := webhook.Requirements{CreatedAt: true, Data: true}
	for name, c := range map[string]struct {
		body     string
		unsigned bool
		required webhook.Requirements
		maxAge   time.Duration
		at       time.Time
		reason   webhook.Reason
	}{
		"accepted":           {event, false, strict, 0, created.Add(1000 * time.Hour), ""},
		"no signature":       {event, true, strict, 0, created, webhook.ReasonSignatureMissing},
		"envelope":           {`{"id":"evt_1","type":"a.b"}`, false, strict, 0, created, webhook.ReasonEnvelopeInvalid},
		"lenient envelope":   {`{"id":"evt_1","type":"a.b"}`, false, webhook.Requirements{}, 0, created, ""},
		"within max_age":     {event, false, strict, time.Hour, created.Add(time.Hour), ""},
		"older than max_age": {event, false, strict, time.Hour, created.Add(time.Hour + 1), webhook.ReasonEventStale},
		"within the skew":    {event, false, strict, time.Hour, created.Add(-5 * time.Minute), ""},
		"from the future":    {event, false, strict, time.Hour, created.Add(-5*time.Minute - 1), webhook.ReasonEventFromFuture},
		"within the size":    {event + strings.Repeat(" ", limit-len(event)), false, strict, 0, created, ""},
		"too large":          {event + strings.Repeat(" ", limit-len(event)+1), false, strict, 0, created, webhook.ReasonBodyTooLarge},
		"large and unsigned": {strings.Repeat(" ", limit+1), true, strict, 0, created, webhook.ReasonSignatureMissing},
		"large and invalid":  {strings.Repeat(" ", limit+1), false, strict, 0, created, webhook.ReasonBodyTooLarge},
	} {
		request := capturedRequest{body: []byte(c.body), required: c.required, maxBodySize: limit, maxAge: c.maxAge, at: c.at,
			secrets: []namedSecret{{"first", []byte("another secret")}, {"second", []byte(caddytest.Secret)}}}
		if right := caddytest.SignWith(caddytest.Secret, c.body); !c.unsigned {
			request.signatures = []string{right}
		}
		e := request.explain()
		if e.Reason != c.reason || (e.Reason != "" && (e.Status != c.reason.Status() || len(e.Causes) != 1)) {
			t.Errorf("%s: %+v", name, e)
		}
		if e.Reason == "" && (e.Secret != "second" || e.ID != "evt_1" || e.Type == "") {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func TestExplainSaysThatTheHeaderIsRepeated(t *testing.T) {
	request := capturedRequest{body: []byte("{}"), signatures: []string{"700d", "700d"}, maxBodySize: webhook.DefaultMaxBodySize}
	if e := request.explain(); e.Reason != webhook.ReasonSignatureMalformed || len(e.Causes) != 1 || !strings.Contains(e.Causes[0], "a second time") {
		t.Errorf("two lines: %+v", e)
	}
}
