package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

const (
	testSecret = "whsec_MDEyMzQ1Njc4OWFiY2RlZg"
	testBody   = `{"id":"evt_1","type":"message.received","createdAt":"2026-06-01T14:32:00Z","data":{"b":1,"a":"Größe </b> 😀","url":"https://x/y"}}`
)

var testSignature = caddytest.SignWith(testSecret, testBody)

// diagnosis is what was captured, and the causes that it is explained by. Each
// contains the text that is given here.
type diagnosis struct {
	secret, body, signature string
	causes                  []string
}

func testDiagnoses(t *testing.T, tests map[string]diagnosis) {
	t.Helper()
	for name, test := range tests {
		request := &capturedRequest{body: []byte(test.body), signatures: []string{test.signature}, secrets: []namedSecret{{"here", []byte(test.secret)}}, maxBodySize: webhook.DefaultMaxBodySize, at: time.Now()}
		e := request.explain()
		reason := webhook.ReasonSignatureMismatch
		if len(test.signature) != 64 {
			reason = webhook.ReasonSignatureMalformed
		}
		if e.Reason != reason || e.Status != 401 || e.Detail == "" {
			t.Errorf("%s: rejected as %+v", name, e)
		}
		if len(e.Causes) != len(test.causes) {
			t.Errorf("%s: the causes are %q, want %q", name, e.Causes, test.causes)
			continue
		}
		for i, cause := range test.causes {
			if !strings.Contains(e.Causes[i], cause) {
				t.Errorf("%s: a cause is %q, want %q", name, e.Causes[i], cause)
			}
		}
		for _, text := range append(e.Causes, e.Detail) {
			if strings.Contains(text, test.secret) || strings.Contains(text, caddytest.SignWith(test.secret, test.body)) {
				t.Errorf("%s: it shows a secret or the right signature: %q", name, text)
			}
		}
	}
}

func TestExplainNamesAsFewMistakesAsPossibleOrTheUsualCauses(t *testing.T) {
	testDiagnoses(t, map[string]diagnosis{
		"empty secret":                {testSecret, testBody, caddytest.SignWith("", testBody), []string{"an empty secret"}},
		"two mistakes":                {testSecret, testBody + "\n", "sha256=" + caddytest.SignWith(testSecret+"\n", testBody), []string{`"sha256=" before`, "newline or a blank at its end", saved}},
		"another secret":              {testSecret, testBody, caddytest.SignWith("another secret", testBody), []string{"another webhook", "byte for byte"}},
		"another secret, half a body": {testSecret, testBody[:60], testSignature, []string{"another webhook", "byte for byte", "not an event as BuzzBip sends it"}},
		"cut off":                     {testSecret, testBody, testSignature[:62], []string{"the signature was cut off"}},
		"cut off within a byte":       {testSecret, testBody, strings.ToUpper(testSignature[:63]), []string{"the signature was cut off"}},
		"cut off, half a body":        {testSecret, testBody[:60], testSignature[:40], []string{"the signature was cut off"}},
		"empty header":                {testSecret, testBody, "", []string{"no HMAC in any usual encoding"}},
		"no HMAC at all":              {testSecret, testBody, "hello", []string{"cut off"}},
	})
}
