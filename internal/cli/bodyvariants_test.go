package cli

import (
	"bytes"
	"compress/gzip"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

func TestExplainNamesMistakesInTheBody(t *testing.T) {
	zipped := new(bytes.Buffer)
	w := gzip.NewWriter(zipped)
	if _, err := w.Write([]byte(testBody)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	testDiagnoses(t, map[string]diagnosis{
		"captured with a newline":    {testSecret, testBody + "\n", testSignature, []string{saved}},
		"captured without a newline": {testSecret, testBody, caddytest.SignWith(testSecret, testBody+"\n"), []string{saved}},
		"byte order mark":            {testSecret, "\ufeff" + testBody, testSignature, []string{marked}},
		"CRLF":                       {testSecret, "{\r\n}", caddytest.SignWith(testSecret, "{\n}"), []string{lineEndings}},
		"LF":                         {testSecret, "{\n}", caddytest.SignWith(testSecret, "{\r\n}"), []string{lineEndings}},
		"pretty-printed":             {testSecret, strings.ReplaceAll(testBody, ",", ",\n  "), testSignature, []string{rewritten}},
		"as Python writes JSON": {testSecret, testBody, caddytest.SignWith(testSecret, strings.NewReplacer(`":`, `": `, `,"`, `, "`, "ö", `\u00f6`, "ß", `\u00df`, "😀", `\ud83d\ude00`).Replace(testBody)),
			[]string{rewritten}},
		"as PHP writes JSON": {testSecret, testBody, caddytest.SignWith(testSecret, strings.NewReplacer("/", `\/`, "ö", `\u00f6`, "ß", `\u00df`, "😀", `\ud83d\ude00`).Replace(testBody)), []string{rewritten}},
		"as Go writes JSON":  {testSecret, testBody, caddytest.SignWith(testSecret, strings.NewReplacer("<", `\u003c`, ">", `\u003e`).Replace(testBody)), []string{rewritten}},
		"escapes written out": {testSecret, testBody, caddytest.SignWith(testSecret, strings.NewReplacer("ö", `\u00F6`).Replace(testBody)),
			[]string{"another webhook", "byte for byte"}}, // only one way of escaping is usual
		"captured with other escapes": {testSecret, strings.NewReplacer("ö", `\u00F6`).Replace(testBody), testSignature, []string{rewritten}},
		"sorted":                      {testSecret, testBody, caddytest.SignWith(testSecret, `{"createdAt":"2026-06-01T14:32:00Z","data":{"a":"Größe </b> 😀","b":1,"url":"https://x/y"},"id":"evt_1","type":"message.received"}`), []string{rewritten}},
		"mojibake":                    {testSecret, "{\"a\":\"GrÃ¶Ã\u009fe\"}", caddytest.SignWith(testSecret, `{"a":"Größe"}`), []string{converted}},
		"Latin-1":                     {testSecret, "{\"a\":\"Gr\xf6\xdfe\"}", caddytest.SignWith(testSecret, `{"a":"Größe"}`), []string{converted}},
		"gzip":                        {testSecret, zipped.String(), testSignature, []string{"compressed with gzip"}},
	})
}
