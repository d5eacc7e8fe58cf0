package cli

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"html"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

func TestExplainFindsTheBodyInWhatWasCaptured(t *testing.T) {
	const escapes = `{"id":"evt_1","data":{"a":"\ud83d \u00f6 \n \"x\""}}`
	jsonString := func(text string) string {
		quoted, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		return string(quoted)
	}
	testDiagnoses(t, map[string]diagnosis{
		"captured in base64": {testSecret, base64.StdEncoding.EncodeToString([]byte(testBody)), testSignature, []string{"is in base64"}},
		"percent-encoded":    {testSecret, url.QueryEscape(testBody), testSignature, []string{"percent-encoded"}},
		"captured as a name and a percent-encoded value": {testSecret, "payload=" + url.QueryEscape(testBody), testSignature, []string{"percent-encoded"}},
		"captured in hex":               {testSecret, hex.EncodeToString([]byte(testBody)) + "\n", testSignature, []string{"is in hex"}},
		"captured from HTML":            {testSecret, html.EscapeString(testBody), testSignature, []string{"escaped for HTML"}},
		"captured as a JSON string":     {testSecret, jsonString(testBody) + "\n", testSignature, []string{escaped}},
		"without the quotes":            {testSecret, strings.Trim(jsonString(testBody), `"`), testSignature, []string{escaped}},
		"with the name":                 {testSecret, `"body":` + jsonString(testBody) + ",", testSignature, []string{escaped}},
		"escapes of the body itself":    {testSecret, strings.Trim(jsonString(escapes), `"`), caddytest.SignWith(testSecret, escapes), []string{escaped}},
		"as nginx logs it":              {testSecret, strings.NewReplacer(`"`, `\x22`, `\`, `\x5C`, "ö", `\xC3\xB6`).Replace(escapes + "ö"), caddytest.SignWith(testSecret, escapes+"ö"), []string{escaped}},
		"as Python prints it":           {testSecret, `b'` + strings.NewReplacer(`\`, `\\`, "'", `\'`, "ö", `\xc3\xb6`, "ß", `\xc3\x9f`, "😀", `\xf0\x9f\x98\x80`).Replace(testBody) + `'`, testSignature, []string{escaped}},
		"as Go prints it":               {testSecret, strconv.QuoteToASCII(testBody), testSignature, []string{escaped}},
		"as a browser copies it":        {testSecret, `$'` + strings.ReplaceAll(testBody, "'", `\u0027`) + `'`, testSignature, []string{surrounded}},
		"with quotes of a shell":        {testSecret, `'` + testBody + `'`, testSignature, []string{surrounded}},
		"with a quote in quotes":        {testSecret, `'` + strings.ReplaceAll(testBody, "x/y", `it'\''s`) + `'`, caddytest.SignWith(testSecret, strings.ReplaceAll(testBody, "x/y", "it's")), []string{surrounded}},
		"with curl":                     {testSecret, `curl -d '` + testBody + `' https://hooks.example.com` + "\n", testSignature, []string{surrounded}},
		"with its headers":              {testSecret, "POST / HTTP/1.1\r\nHost: hooks.example.com\r\n\r\n" + testBody, testSignature, []string{surrounded}},
		"in a log entry":                {testSecret, `{"level":"info","ts":1,"request":{"method":"POST"},"body":` + jsonString(testBody) + "}\n", testSignature, []string{inString}},
		"in a part of a log entry":      {testSecret, `"status":401,"body":` + jsonString(testBody) + `,"result":{"a":"b"}}` + "\n", testSignature, []string{escaped}},
		"in a log entry after a prefix": {testSecret, `2026/06/01 14:32:00 INFO http {"body":` + jsonString(testBody) + "}\n", testSignature, []string{inString}},
		"in a log entry in a log entry": {testSecret, `{"log":` + jsonString(`{"body":`+jsonString(testBody)+"}\n") + `,"stream":"stderr"}`, testSignature, []string{inString}},
		"in an HTTP archive":            {testSecret, `{"log":{"entries":[{"request":{"postData":{"mimeType":"application/json","text":` + jsonString(testBody) + `}}}]}}`, testSignature, []string{inString}},
		"in base64 in a log entry":      {testSecret, `{"isBase64Encoded":true,"body":"` + base64.StdEncoding.EncodeToString([]byte(testBody)) + `"}`, testSignature, []string{inString}},
		"in another log entry":          {testSecret, `{"body":` + jsonString(testBody) + "}", caddytest.SignWith(testSecret, testBody+" "), []string{"another webhook", "byte for byte", "not an event"}},
	})
}
