package cli

import (
	"bytes"
	"compress/gzip"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"html"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

func TestExplainNamesTheMistake(t *testing.T) {
	const secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZg"
	const hexSecret = "30313233343536373839616263646566"
	const sent = `{"id":"evt_1","type":"message.received","createdAt":"2026-06-01T14:32:00Z","data":{"b":1,"a":"Größe </b> 😀","url":"https://x/y"}}`
	const escapes = `{"id":"evt_1","data":{"a":"\ud83d \u00f6 \n \"x\""}}`
	jsonString := func(text string) string {
		quoted, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		return string(quoted)
	}
	utf16Of := func(order binary.AppendByteOrder, text string) (encoded string) {
		for _, unit := range utf16.Encode([]rune(text)) {
			encoded += string(order.AppendUint16(nil, unit))
		}
		return encoded
	}
	hexOf := func(b []byte) string { return hex.EncodeToString(b) }
	sum := func(algorithm string, key, body string) []byte {
		for _, a := range algorithms {
			if strings.Contains(a.description, algorithm) {
				return a.sum([]byte(key), []byte(body))
			}
		}
		t.Fatal(algorithm)
		return nil
	}
	zipped := new(bytes.Buffer)
	w := gzip.NewWriter(zipped)
	if _, err := w.Write([]byte(sent)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	right := caddytest.SignWith(secret, sent)
	raw, err := hex.DecodeString(right)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		secret, body, signature string
		causes                  []string // each is in one of those named, in order
	}{
		"newline at the end of the sender's secret": {secret, sent, caddytest.SignWith(secret+"\n", sent), []string{"from here: the sender's has a newline"}},
		"blank at the end of ours":                  {secret + " ", sent, right, []string{"it has a blank or a newline"}},
		"quotes around ours":                        {`"` + secret + `"`, sent, right, []string{"in quotes"}},
		"byte order mark before ours":               {"\ufeff" + secret, sent, right, []string{"it begins with a byte order mark: save it as UTF-8"}},
		"ours in UTF-16":                            {utf16Of(binary.LittleEndian, "\ufeff"+secret+"\r\n"), sent, right, []string{"it is in UTF-16: save it as UTF-8"}},
		"ours in big-endian UTF-16":                 {strings.TrimSuffix(utf16Of(binary.BigEndian, "\ufeff"+secret+"\n"), "\n"), sent, right, []string{"it is in UTF-16"}},
		"ours in UTF-16 without a mark":             {utf16Of(binary.LittleEndian, secret), sent, right, []string{"it is in UTF-16"}},
		"ours with its name":                        {"BUZZBIP_SECRET=" + secret, sent, right, []string{"it begins with a name, as in NAME=value: keep only the value"}},
		"ours with its name in a script":            {`export BUZZBIP_SECRET="` + secret + `"`, sent, right, []string{"NAME=value: keep only the value; it is in quotes"}},
		"ours with its name in YAML":                {"secret: " + secret, sent, right, []string{"it begins with a name"}},
		"ours with its name in UTF-16":              {utf16Of(binary.LittleEndian, "\ufeffBUZZBIP_SECRET="+secret), sent, right, []string{"it is in UTF-16: save it as UTF-8, without a byte order mark; it begins with a name"}},
		"ours in an environment file":               {"# BuzzBip\nSITE=hooks.example.com\nBUZZBIP_SECRET=" + secret, sent, right, []string{"it has other lines"}},
		"zero-width space in ours":                  {secret[:9] + "\u200b" + secret[9:], sent, right, []string{"invisible characters, such as a zero-width space"}},
		"zero-width space at ours's end":            {secret + "\u200b", sent, right, []string{"invisible characters"}},
		"ours as a terminal pastes it":              {"\x1b[200~" + secret + "\x1b[201~", sent, right, []string{"invisible characters"}},
		"no-break space after ours":                 {secret + "\u00a0", sent, right, []string{"it has a blank or a newline"}},
		"typographic quotes around ours":            {"“" + secret + "”", sent, right, []string{"it is in typographic quotes"}},
		"other typographic quotes":                  {"„" + secret + "’", sent, right, []string{"it is in typographic quotes"}},
		"ours was wrapped":                          {secret[:9] + "\n" + secret[9:], sent, right, []string{"blanks or line breaks within it"}},
		"ours is none of it":                        {strings.Repeat("A=\u200b“x\n", 1000), sent, right, []string{"another webhook", "byte for byte"}},
		"prefix of the secret":                      {secret, sent, caddytest.SignWith(strings.TrimPrefix(secret, "whsec_"), sent), []string{"lacks the prefix"}},
		"secret decoded from base64":                {secret, sent, caddytest.SignWith("0123456789abcdef", sent), []string{"decoded it from base64"}},
		"secret decoded from hex":                   {hexSecret, sent, caddytest.SignWith("0123456789abcdef", sent), []string{"decoded it from hex"}},
		"empty secret":                              {secret, sent, caddytest.SignWith("", sent), []string{"an empty secret"}},
		"base64":                                    {secret, sent, base64.StdEncoding.EncodeToString(raw), []string{"in base64"}},
		"URL-safe base64":                           {secret, sent, base64.RawURLEncoding.EncodeToString(raw), []string{"in base64"}},
		"prefix":                                    {secret, sent, "sha256=" + right, []string{`"sha256=" before`}},
		"prefix and base64":                         {secret, sent, "v1=" + base64.StdEncoding.EncodeToString(raw), []string{`"v1=" before the signature, which does not belong there, and the signature is in base64`}},
		"0x":                                        {secret, sent, "0x" + right, []string{`"0x" before`}},
		"blanks":                                    {secret, sent, " " + right + " ", []string{"has blanks or quotes"}},
		"HMAC-SHA1":                                 {secret, sent, hexOf(sum("SHA1", secret, sent)), []string{"HMAC-SHA1"}},
		"HMAC-SHA512":                               {secret, sent, hexOf(sum("SHA512", secret, sent)), []string{"HMAC-SHA512"}},
		"HMAC-MD5":                                  {secret, sent, hexOf(sum("MD5", secret, sent)), []string{"HMAC-MD5"}},
		"hash of the body":                          {secret, sent, hexOf(sum("without a secret", secret, sent)), []string{"proves nothing"}},
		"hash of secret and body":                   {secret, sent, hexOf(sum("of the secret and the body", secret, sent)), []string{"not an HMAC"}},
		"captured with a newline":                   {secret, sent + "\n", right, []string{saved}},
		"captured without a newline":                {secret, sent, caddytest.SignWith(secret, sent+"\n"), []string{saved}},
		"byte order mark":                           {secret, "\ufeff" + sent, right, []string{marked}},
		"CRLF":                                      {secret, "{\r\n}", caddytest.SignWith(secret, "{\n}"), []string{lineEnds}},
		"LF":                                        {secret, "{\n}", caddytest.SignWith(secret, "{\r\n}"), []string{lineEnds}},
		"pretty-printed":                            {secret, strings.ReplaceAll(sent, ",", ",\n  "), right, []string{rewritten}},
		"as Python writes JSON": {secret, sent, caddytest.SignWith(secret, strings.NewReplacer(`":`, `": `, `,"`, `, "`, "ö", `\u00f6`, "ß", `\u00df`, "😀", `\ud83d\ude00`).Replace(sent)),
			[]string{rewritten}},
		"as PHP writes JSON": {secret, sent, caddytest.SignWith(secret, strings.NewReplacer("/", `\/`, "ö", `\u00f6`, "ß", `\u00df`, "😀", `\ud83d\ude00`).Replace(sent)), []string{rewritten}},
		"as Go writes JSON":  {secret, sent, caddytest.SignWith(secret, strings.NewReplacer("<", `\u003c`, ">", `\u003e`).Replace(sent)), []string{rewritten}},
		"escapes written out": {secret, sent, caddytest.SignWith(secret, strings.NewReplacer("ö", `\u00F6`).Replace(sent)),
			[]string{"another webhook", "byte for byte"}}, // only one way of escaping is usual
		"captured with other escapes": {secret, strings.NewReplacer("ö", `\u00F6`).Replace(sent), right, []string{rewritten}},
		"sorted":                      {secret, sent, caddytest.SignWith(secret, `{"createdAt":"2026-06-01T14:32:00Z","data":{"a":"Größe </b> 😀","b":1,"url":"https://x/y"},"id":"evt_1","type":"message.received"}`), []string{rewritten}},
		"mojibake":                    {secret, "{\"a\":\"GrÃ¶Ã\u009fe\"}", caddytest.SignWith(secret, `{"a":"Größe"}`), []string{converted}},
		"Latin-1":                     {secret, "{\"a\":\"Gr\xf6\xdfe\"}", caddytest.SignWith(secret, `{"a":"Größe"}`), []string{converted}},
		"gzip":                        {secret, zipped.String(), right, []string{"compressed with gzip"}},
		"captured in base64":          {secret, base64.StdEncoding.EncodeToString([]byte(sent)), right, []string{"is in base64"}},
		"percent-encoded":             {secret, url.QueryEscape(sent), right, []string{"percent-encoded"}},
		"captured as a name and a percent-encoded value": {secret, "payload=" + url.QueryEscape(sent), right, []string{"percent-encoded"}},
		"captured in hex":               {secret, hexOf([]byte(sent)) + "\n", right, []string{"is in hex"}},
		"captured from HTML":            {secret, html.EscapeString(sent), right, []string{"escaped for HTML"}},
		"captured as a JSON string":     {secret, jsonString(sent) + "\n", right, []string{unescaped}},
		"without the quotes":            {secret, strings.Trim(jsonString(sent), `"`), right, []string{unescaped}},
		"with the name":                 {secret, `"body":` + jsonString(sent) + ",", right, []string{unescaped}},
		"escapes of the body itself":    {secret, strings.Trim(jsonString(escapes), `"`), caddytest.SignWith(secret, escapes), []string{unescaped}},
		"as nginx logs it":              {secret, strings.NewReplacer(`"`, `\x22`, `\`, `\x5C`, "ö", `\xC3\xB6`).Replace(escapes + "ö"), caddytest.SignWith(secret, escapes+"ö"), []string{unescaped}},
		"as Python prints it":           {secret, `b'` + strings.NewReplacer(`\`, `\\`, "'", `\'`, "ö", `\xc3\xb6`, "ß", `\xc3\x9f`, "😀", `\xf0\x9f\x98\x80`).Replace(sent) + `'`, right, []string{unescaped}},
		"as Go prints it":               {secret, strconv.QuoteToASCII(sent), right, []string{unescaped}},
		"as a browser copies it":        {secret, `$'` + strings.ReplaceAll(sent, "'", `\u0027`) + `'`, right, []string{surrounded}},
		"with quotes of a shell":        {secret, `'` + sent + `'`, right, []string{surrounded}},
		"with a quote in quotes":        {secret, `'` + strings.ReplaceAll(sent, "x/y", `it'\''s`) + `'`, caddytest.SignWith(secret, strings.ReplaceAll(sent, "x/y", "it's")), []string{surrounded}},
		"with curl":                     {secret, `curl -d '` + sent + `' https://hooks.example.com` + "\n", right, []string{surrounded}},
		"with its headers":              {secret, "POST / HTTP/1.1\r\nHost: hooks.example.com\r\n\r\n" + sent, right, []string{surrounded}},
		"in a log entry":                {secret, `{"level":"info","ts":1,"request":{"method":"POST"},"body":` + jsonString(sent) + "}\n", right, []string{inString}},
		"in a part of a log entry":      {secret, `"status":401,"body":` + jsonString(sent) + `,"result":{"a":"b"}}` + "\n", right, []string{unescaped}},
		"in a log entry after a prefix": {secret, `2026/06/01 14:32:00 INFO http {"body":` + jsonString(sent) + "}\n", right, []string{inString}},
		"in a log entry in a log entry": {secret, `{"log":` + jsonString(`{"body":`+jsonString(sent)+"}\n") + `,"stream":"stderr"}`, right, []string{inString}},
		"in an HTTP archive":            {secret, `{"log":{"entries":[{"request":{"postData":{"mimeType":"application/json","text":` + jsonString(sent) + `}}}]}}`, right, []string{inString}},
		"in base64 in a log entry":      {secret, `{"isBase64Encoded":true,"body":"` + base64.StdEncoding.EncodeToString([]byte(sent)) + `"}`, right, []string{inString}},
		"in another log entry":          {secret, `{"body":` + jsonString(sent) + "}", caddytest.SignWith(secret, sent+" "), []string{"another webhook", "byte for byte", "not an event"}},
		"two mistakes":                  {secret, sent + "\n", "sha256=" + caddytest.SignWith(secret+"\n", sent), []string{`"sha256=" before`, "newline or a blank at its end", saved}},
		"another secret":                {secret, sent, caddytest.SignWith("another secret", sent), []string{"another webhook", "byte for byte"}},
		"another secret, half a body":   {secret, sent[:60], right, []string{"another webhook", "byte for byte", "not an event as BuzzBip sends it"}},
		"cut off":                       {secret, sent, right[:62], []string{"the signature was cut off"}},
		"cut off within a byte":         {secret, sent, strings.ToUpper(right[:63]), []string{"the signature was cut off"}},
		"cut off, half a body":          {secret, sent[:60], right[:40], []string{"the signature was cut off"}},
		"empty header":                  {secret, sent, "", []string{"no HMAC in any usual encoding"}},
		"no HMAC at all":                {secret, sent, "hello", []string{"cut off"}},
	} {
		e := capture{body: []byte(c.body), signatures: []string{c.signature}, secrets: []namedSecret{{"here", []byte(c.secret)}}, maxBodySize: webhook.DefaultMaxBodySize, at: time.Now()}.explain()
		wantReason := webhook.ReasonSignatureMismatch
		if len(c.signature) != 64 {
			wantReason = webhook.ReasonSignatureMalformed
		}
		if e.Reason != wantReason || e.Status != 401 || e.Detail == "" {
			t.Errorf("%s: rejected as %+v", name, e)
		}
		if len(e.Causes) != len(c.causes) {
			t.Errorf("%s: the causes are %q, want %q", name, e.Causes, c.causes)
			continue
		}
		for i, cause := range c.causes {
			if !strings.Contains(e.Causes[i], cause) {
				t.Errorf("%s: a cause is %q, want %q", name, e.Causes[i], cause)
			}
		}
		for _, text := range append(e.Causes, e.Detail) {
			if strings.Contains(text, c.secret) || strings.Contains(text, caddytest.SignWith(c.secret, c.body)) {
				t.Errorf("%s: it tells %q", name, text)
			}
		}
	}
}

func TestExplainTakesTheHeaderAsItIsCopied(t *testing.T) {
	const hash = "700d048d09cd1f75"
	for text, want := range map[string][]string{
		hash:                                    {hash},
		"":                                      {""},
		" " + hash:                              {" " + hash}, // the sender's own mistakes stay
		`"` + hash + `"`:                        {`"` + hash + `"`},
		"sha256=" + hash:                        {"sha256=" + hash},
		"X-BuzzBip-Signature: " + hash:          {hash},
		"x-buzzbip-signature:" + hash:           {hash},
		"X-BUZZBIP-SIGNATURE: " + hash + "\r\n": {hash},
		"> X-BuzzBip-Signature: " + hash + "\n> Accept: */*":                                {hash},
		"* [HTTP/2] [1] [x-buzzbip-signature: " + hash + "]":                                {hash},
		"X-BuzzBip-Signature: sha256=" + hash:                                               {"sha256=" + hash},
		`X-BuzzBip-Signature: "` + hash + `"`:                                               {`"` + hash + `"`},
		"X-BuzzBip-Signature: cAAEjQnNH3U=":                                                 {"cAAEjQnNH3U="},
		"X-BuzzBip-Signature:":                                                              {""},
		`-H 'X-BuzzBip-Signature: ` + hash + `' -d @x`:                                      {hash},
		`-H "X-BuzzBip-Signature: ` + hash + `"`:                                            {hash},
		`'X-BuzzBip-Signature: ` + hash + `\r\n'`:                                           {hash},
		`"X-Buzzbip-Signature":["` + hash + `"]`:                                            {hash},
		`{"headers":{"Accept":["*/*"],"X-Buzzbip-Signature":["` + hash + `"],"Via":["a"]}}`: {hash},
		`\"X-Buzzbip-Signature\": [\"` + hash + `\"],`:                                      {hash},
		`"X-Buzzbip-Signature":["sha256=` + hash + `","b"]`:                                 {"sha256=" + hash, "b"},
		`"X-Buzzbip-Signature":[]`:                                                          nil,
		`["` + hash + `"]`:                                                                  {hash},
		`[` + hash + `]`:                                                                    {hash},
		`"x-buzzbip-signature": "` + hash + `",`:                                            {hash},
		`{"name": "X-BuzzBip-Signature", "value": "` + hash + `"}`:                          {hash},
		`'HTTP_X_BUZZBIP_SIGNATURE': '` + hash + `', 'PATH_INFO': '/'`:                      {hash},
		`'HTTP_X_BUZZBIP_SIGNATURE' => '` + hash + `',`:                                     {hash},
		`("X-BuzzBip-Signature", "` + hash + `")`:                                           {hash},
		`[HTTP_X_BUZZBIP_SIGNATURE] => ` + hash:                                             {hash},
		`map[X-Buzzbip-Signature:[` + hash + `]]`:                                           {hash},
		"HTTP_X_BUZZBIP_SIGNATURE=" + hash:                                                  {hash},
	} {
		if got := headerValues(text); !slices.Equal(got, want) {
			t.Errorf("%s is read as %q, want %q", text, got, want)
		}
	}
	request := capture{body: []byte("{}"), signatures: []string{hash, hash}, maxBodySize: webhook.DefaultMaxBodySize}
	if e := request.explain(); e.Reason != webhook.ReasonSignatureMalformed || len(e.Causes) != 1 || !strings.Contains(e.Causes[0], "a second time") {
		t.Errorf("two lines: %+v", e)
	}
}

// What it computes is checked against the standard library, not itself.
func TestExplainKnowsTheAlgorithms(t *testing.T) {
	for description, want := range map[string][]byte{
		"HMAC-SHA1":   hmac.New(sha1.New, []byte("k")).Sum(nil),
		"HMAC-SHA512": hmac.New(sha512.New, []byte("k")).Sum(nil),
		"HMAC-MD5":    hmac.New(md5.New, []byte("k")).Sum(nil),
	} {
		found := false
		for _, a := range algorithms {
			if strings.Contains(a.description, description+",") {
				found = bytes.Equal(a.sum([]byte("k"), nil), want)
			}
		}
		if !found {
			t.Errorf("%s is not known", description)
		}
	}
	if got := algorithms[4].sum([]byte("k"), []byte("body")); !bytes.Equal(got, func() []byte { s := sha256.Sum256([]byte("body")); return s[:] }()) {
		t.Error("the bare hash is not known")
	}
}

func TestExplainGoesThroughTheSteps(t *testing.T) {
	const limit = 100
	created := time.Date(2026, 6, 1, 14, 32, 0, 0, time.UTC)
	event := `{"id":"evt_1","type":"message.received","createdAt":"2026-06-01T14:32:00Z","data":{}}`
	strict := webhook.Requirements{CreatedAt: true, Data: true}
	for name, c := range map[string]struct {
		body     string
		unsigned bool
		requires webhook.Requirements
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
		request := capture{body: []byte(c.body), requires: c.requires, maxBodySize: limit, maxAge: c.maxAge, at: c.at,
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
