package cli

import (
	"encoding/base64"
	"encoding/hex"
	"testing"
)

func TestExplainNamesMistakesInTheHeader(t *testing.T) {
	raw, err := hex.DecodeString(testSignature)
	if err != nil {
		t.Fatal(err)
	}
	testDiagnoses(t, map[string]diagnosis{
		"base64":            {testSecret, testBody, base64.StdEncoding.EncodeToString(raw), []string{"in base64"}},
		"URL-safe base64":   {testSecret, testBody, base64.RawURLEncoding.EncodeToString(raw), []string{"in base64"}},
		"prefix":            {testSecret, testBody, "sha256=" + testSignature, []string{`"sha256=" before`}},
		"prefix and base64": {testSecret, testBody, "v1=" + base64.StdEncoding.EncodeToString(raw), []string{`"v1=" before the signature, which does not belong there, and the signature is in base64`}},
		"0x":                {testSecret, testBody, "0x" + testSignature, []string{`"0x" before`}},
		"blanks":            {testSecret, testBody, " " + testSignature + " ", []string{"has blanks or quotes"}},
	})
}
