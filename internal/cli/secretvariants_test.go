package cli

import (
	"encoding/binary"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

func inUTF16(order binary.AppendByteOrder, text string) (encoded string) {
	for _, unit := range utf16.Encode([]rune(text)) {
		encoded += string(order.AppendUint16(nil, unit))
	}
	return encoded
}

func TestExplainNamesMistakesInTheSecret(t *testing.T) {
	const hexSecret = "30313233343536373839616263646566"
	testDiagnoses(t, map[string]diagnosis{
		"newline at the end of the sender's secret": {testSecret, testBody, caddytest.SignWith(testSecret+"\n", testBody), []string{"from here: the sender's has a newline"}},
		"blank at the end of ours":                  {testSecret + " ", testBody, testSignature, []string{"it has a blank or a newline"}},
		"quotes around ours":                        {`"` + testSecret + `"`, testBody, testSignature, []string{"in quotes"}},
		"byte order mark before ours":               {"\ufeff" + testSecret, testBody, testSignature, []string{"it begins with a byte order mark: save it as UTF-8"}},
		"ours in UTF-16":                            {inUTF16(binary.LittleEndian, "\ufeff"+testSecret+"\r\n"), testBody, testSignature, []string{"it is in UTF-16: save it as UTF-8"}},
		"ours in big-endian UTF-16":                 {strings.TrimSuffix(inUTF16(binary.BigEndian, "\ufeff"+testSecret+"\n"), "\n"), testBody, testSignature, []string{"it is in UTF-16"}},
		"ours in UTF-16 without a mark":             {inUTF16(binary.LittleEndian, testSecret), testBody, testSignature, []string{"it is in UTF-16"}},
		"ours with its name":                        {"BUZZBIP_SECRET=" + testSecret, testBody, testSignature, []string{"it begins with a name, as in NAME=value: keep only the value"}},
		"ours with its name in a script":            {`export BUZZBIP_SECRET="` + testSecret + `"`, testBody, testSignature, []string{"NAME=value: keep only the value; it is in quotes"}},
		"ours with its name in YAML":                {"secret: " + testSecret, testBody, testSignature, []string{"it begins with a name"}},
		"ours with its name in UTF-16":              {inUTF16(binary.LittleEndian, "\ufeffBUZZBIP_SECRET="+testSecret), testBody, testSignature, []string{"it is in UTF-16: save it as UTF-8, without a byte order mark; it begins with a name"}},
		"ours in an environment file":               {"# BuzzBip\nSITE=hooks.example.com\nBUZZBIP_SECRET=" + testSecret, testBody, testSignature, []string{"it has other lines"}},
		"zero-width space in ours":                  {testSecret[:9] + "\u200b" + testSecret[9:], testBody, testSignature, []string{"invisible characters, such as a zero-width space"}},
		"zero-width space at ours's end":            {testSecret + "\u200b", testBody, testSignature, []string{"invisible characters"}},
		"ours as a terminal pastes it":              {"\x1b[200~" + testSecret + "\x1b[201~", testBody, testSignature, []string{"invisible characters"}},
		"no-break space after ours":                 {testSecret + "\u00a0", testBody, testSignature, []string{"it has a blank or a newline"}},
		"typographic quotes around ours":            {"“" + testSecret + "”", testBody, testSignature, []string{"it is in typographic quotes"}},
		"other typographic quotes":                  {"„" + testSecret + "’", testBody, testSignature, []string{"it is in typographic quotes"}},
		"ours was wrapped":                          {testSecret[:9] + "\n" + testSecret[9:], testBody, testSignature, []string{"blanks or line breaks within it"}},
		"ours is none of it":                        {strings.Repeat("A=\u200b“x\n", 1000), testBody, testSignature, []string{"another webhook", "byte for byte"}},
		"prefix of the secret":                      {testSecret, testBody, caddytest.SignWith(strings.TrimPrefix(testSecret, "whsec_"), testBody), []string{"lacks the prefix"}},
		"secret decoded from base64":                {testSecret, testBody, caddytest.SignWith("0123456789abcdef", testBody), []string{"decoded it from base64"}},
		"secret decoded from hex":                   {hexSecret, testBody, caddytest.SignWith("0123456789abcdef", testBody), []string{"decoded it from hex"}},
		"private use character in ours":             {testSecret + "\ue000", testBody, testSignature, []string{"invisible characters"}},
	})
}
