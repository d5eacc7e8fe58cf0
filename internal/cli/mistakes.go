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
	"fmt"
	"hash"
	"html"
	"io"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
	"github.com/go-json-experiment/json/jsontext"
)

// variant is a value, and what was done to get it from the one given; nothing
// if description is empty.
type variant struct {
	value       []byte
	description string
}

// algorithms are what others use to sign.
var algorithms = []struct {
	description string
	sum         func(secret, body []byte) []byte
}{

	{"", keyed(sha256.New)},
	{"the signature was made with HMAC-SHA1, not HMAC-SHA256", keyed(sha1.New)},
	{"the signature was made with HMAC-SHA512, not HMAC-SHA256", keyed(sha512.New)},
	{"the signature was made with HMAC-MD5, not HMAC-SHA256", keyed(md5.New)},
	{"the signature is a SHA-256 of the body, without a secret: it proves nothing", func(_, body []byte) []byte { sum := sha256.Sum256(body); return sum[:] }},
	{"the signature is a SHA-256 of the secret and the body, not an HMAC", func(secret, body []byte) []byte {
		sum := sha256.Sum256(append(bytes.Clone(secret), body...))
		return sum[:]
	}},
}

func keyed(newHash func() hash.Hash) func(secret, body []byte) []byte {
	return func(secret, body []byte) []byte {
		mac := hmac.New(newHash, secret)
		mac.Write(body)
		return mac.Sum(nil)
	}
}

// secretRepairs undo, in this order, what happens to a secret on its way into a
// file or a variable. Each returns nothing, or nothing new, where it does not apply.
var secretRepairs = []struct {
	description string
	undo        func(secret []byte) [][]byte
}{

	{"it is in UTF-16: save it as UTF-8, without a byte order mark", fromUTF16},
	{"it begins with a byte order mark: save it as UTF-8 without one", func(s []byte) [][]byte {
		return [][]byte{bytes.TrimPrefix(s, []byte(byteOrderMark))}
	}},
	{"it has invisible characters, such as a zero-width space: copy it again from BuzzBip, or type it", func(s []byte) [][]byte {
		s = bytes.ReplaceAll(bytes.ReplaceAll(s, []byte("\x1b[200~"), nil), []byte("\x1b[201~"), nil) // as terminals paste
		return [][]byte{bytes.Map(func(r rune) rune {
			if unicode.Is(unicode.Cf, r) || unicode.IsControl(r) && !unicode.IsSpace(r) {
				return -1
			}
			return r
		}, s)}
	}},
	{"it has other lines than that of the secret, which do not belong there", func(s []byte) [][]byte {
		return bytes.SplitN(s, []byte("\n"), 16)
	}},
	{"it has a blank or a newline at its start or end that does not belong there", func(s []byte) [][]byte {
		return [][]byte{bytes.TrimSpace(s)}
	}},
	{"it begins with a name, as in NAME=value: keep only the value", func(s []byte) [][]byte {
		return [][]byte{nameBefore.ReplaceAll(s, nil)}
	}},
	{"it is in quotes, which do not belong to it", func(s []byte) [][]byte {
		return [][]byte{bytes.Trim(s, "\"'`")}
	}},
	{"it is in typographic quotes, which do not belong to it", func(s []byte) [][]byte {
		return [][]byte{bytes.Trim(s, "\"'`“”„‟‘’‚‛«»‹›´")}
	}},
	{"it has blanks or line breaks within it, which do not belong there", func(s []byte) [][]byte {
		return [][]byte{bytes.Join(bytes.Fields(s), nil)}
	}},
}

const byteOrderMark = "\ufeff"

// nameBefore matches the start of a line of an environment file, a shell script
// or a YAML file.
var nameBefore = regexp.MustCompile(`^(?:export\s+|set\s+|\$env:)?[A-Za-z_][A-Za-z0-9_.-]*\s*[=:]\s*`)

// fromUTF16 decodes text with or without a byte order mark. A newline may have
// been cut off in the middle.
func fromUTF16(text []byte) (decoded [][]byte) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		units := make([]uint16, len(text)/2)
		wide := 0
		for i := range units {
			units[i] = order.Uint16(text[2*i:])
			if units[i] > 0xff {
				wide++
			}
		}
		if wide > len(units)/2 { // the other byte order, or no UTF-16
			continue
		}
		decoded = append(decoded, []byte(strings.TrimPrefix(string(utf16.Decode(units)), byteOrderMark)))
	}
	return decoded
}

// maxSecretVariants bounds what is tried for a file that is anything but a secret.
const maxSecretVariants = 64

// secretVariants returns a secret as it was given, without what was done to it
// here, and as a sender may have read it.
func secretVariants(s namedSecret) []variant {
	found := []variant{{s.value, ""}}
	seen := map[string]bool{"": true, string(s.value): true}
	add := func(value []byte, description string) {
		if !seen[string(value)] {
			seen[string(value)] = true
			found = append(found, variant{value, fmt.Sprintf("the secret from %s: %s", s.from, description)})
		}
	}
	for _, repair := range secretRepairs {
		for _, from := range found { // also what other repairs have led to
			for _, value := range repair.undo(from.value) {
				if seen[string(value)] || len(found) == maxSecretVariants {
					continue
				}
				seen[string(value)] = true
				description := fmt.Sprintf("the secret from %s: %s", s.from, repair.description)
				if from.description != "" {
					description = from.description + "; " + repair.description
				}
				found = append(found, variant{value, description})
			}
		}
	}
	for _, end := range []string{"\n", "\r\n", "\r", " "} {
		add(append(bytes.Clone(s.value), end...), "the sender's has a newline or a blank at its end, as from echo without -n")
	}
	_, afterPrefix, _ := bytes.Cut(s.value, []byte("_"))
	add(afterPrefix, "the sender's lacks the prefix up to the _")
	for _, text := range [][]byte{s.value, afterPrefix} {
		if decoded, err := hex.DecodeString(string(text)); err == nil {
			add(decoded, "the sender decoded it from hex: the key is the text as it is shown")
		}
		if decoded, ok := decodeBase64(string(text)); ok {
			add(decoded, "the sender decoded it from base64: the key is the text as it is shown")
		}
	}
	return found
}

func decodeBase64(text string) ([]byte, bool) {
	text = strings.TrimRight(text, "=")
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		if decoded, err := encoding.DecodeString(text); err == nil {
			return decoded, true
		}
	}
	return nil, false
}

// The name of the header in logs and programs, and a quoted value or a list of
// such after it, as in JSON, HAR and Python.
var (
	headerName   = regexp.MustCompile(`(?i)x[-_]buzzbip[-_]signature`)
	quotedHeader = regexp.MustCompile(`^["']\s*\]?\s*(?:=>|[:=,])\s*(?:["']value["']\s*:\s*)?(\[\s*(?:["'][^\]]*)?\]|"[^"]*"|'[^']*')`)
	quotedValue  = regexp.MustCompile(`["']([^"']*)["']`)
	beforeValue  = regexp.MustCompile(`^["']?\]?\s*(?:=>|[:=])?\s*\[?`)
)

// headerValues returns the values of the signature header in a text, which is the
// value or has the name too, as in curl -v, a log or a program.
func headerValues(text string) []string {
	name := headerName.FindStringIndex(text)
	if name == nil {
		if list := strings.TrimSpace(text); !strings.HasPrefix(list, "[") {
			return []string{text}
		}
		name = []int{0, 0}
		text = `":` + text
	}
	before, after := text[:name[0]], text[name[1]:]
	if quoted := quotedHeader.FindStringSubmatch(strings.ReplaceAll(after, `\`, "")); quoted != nil {
		var values []string
		for _, value := range quotedValue.FindAllStringSubmatch(quoted[1], -1) {
			values = append(values, value[1])
		}
		return values
	}
	value := beforeValue.ReplaceAllString(after, "")
	if i := strings.IndexAny(value, "]\\\r\n"); i >= 0 {
		value = value[:i]
	}
	if i := strings.LastIndexAny(before, `"'`); i >= 0 { // as after curl -H
		value, _, _ = strings.Cut(value, before[i:i+1])
	}
	return []string{strings.TrimSpace(value)}
}

func signatureVariants(text string) []variant {
	var found []variant
	trimmed := strings.Trim(strings.TrimSpace(text), `"'`)
	prefix := ""
	if trimmed != text {
		prefix = "the header has blanks or quotes around the signature, which do not belong there"
	}
	candidates := []variant{{[]byte(trimmed), prefix}}
	if i := strings.IndexAny(strings.TrimRight(trimmed, "="), "=:,"); i >= 0 {
		candidates = append(candidates, variant{[]byte(trimmed[i+1:]), fmt.Sprintf("the header has %q before the signature, which does not belong there", trimmed[:i+1])})
	}
	if rest, ok := strings.CutPrefix(strings.ToLower(trimmed), "0x"); ok {
		candidates = append(candidates, variant{[]byte(rest), `the header has "0x" before the signature, which does not belong there`})
	}
	for _, c := range candidates {
		if decoded, err := hex.DecodeString(string(c.value)); err == nil && len(decoded) > 0 {
			found = append(found, variant{decoded, c.description})
		}
		if decoded, ok := decodeBase64(string(c.value)); ok && len(decoded) >= md5.Size {
			description := "the signature is in base64: it must be in hex"
			if c.description != "" {
				description = c.description + ", and " + description
			}
			found = append(found, variant{decoded, description})
		}
	}
	return found
}

// Why a body is not the one that was signed.
const (
	rewritten = "the body was parsed and written again before it was signed or captured, which changes bytes: sign and keep it as it is"
	saved     = "the captured body differs from the signed one in a newline at its end, as editors and shells add it"
	converted = "the body was converted to another character encoding"
	lineEnds  = "the line ends of the body were converted between LF and CRLF"
	marked    = "a byte order mark was added to the body or removed"

	// of the capture only
	surrounded = "the captured file has more than the body, such as quotes, a command or headers; the body in it is what was signed"
	unescaped  = "the captured body is escaped, as logs and programs write strings; without the escapes, it is what was signed"
	inString   = "the captured file is a log entry, an HTTP archive or the like, with the body as a string in it; that string is what was signed"
)

func bodyVariants(body []byte) []variant {
	found := []variant{{body, ""}}
	seen := map[string]bool{string(body): true}
	add := func(value []byte, description string) {
		if !seen[string(value)] {
			seen[string(value)] = true
			found = append(found, variant{value, description})
		}
	}
	add(bytes.TrimRight(body, "\r\n"), saved)
	add(append(bytes.Clone(body), "\n"...), saved)
	add(append(bytes.Clone(body), "\r\n"...), saved)
	add(bytes.TrimSpace(body), saved)
	mark := []byte(byteOrderMark)
	add(bytes.TrimPrefix(body, mark), marked)
	add(append(bytes.Clone(mark), body...), marked)
	unix := bytes.ReplaceAll(body, []byte("\r\n"), []byte("\n"))
	add(unix, lineEnds)
	add(bytes.ReplaceAll(unix, []byte("\n"), []byte("\r\n")), lineEnds)

	for _, options := range [][]jsontext.Options{
		{},
		{jsontext.PreserveRawStrings(true)},
		{jsontext.SpaceAfterColon(true), jsontext.SpaceAfterComma(true)},
		{jsontext.EscapeForHTML(true)},
		{jsontext.Multiline(true), jsontext.WithIndent("  ")},
		{jsontext.Multiline(true), jsontext.WithIndent("    ")},
		{jsontext.Multiline(true), jsontext.WithIndent("\t")},
		{jsontext.ReorderRawObjects(true)},
		{jsontext.ReorderRawObjects(true), jsontext.SpaceAfterColon(true), jsontext.SpaceAfterComma(true)},
	} {
		written, err := jsontext.AppendFormat(nil, body, append(options, webhook.LaxJSON...)...)
		if err != nil {
			continue
		}
		add(written, rewritten)
		add(append(bytes.Clone(written), '\n'), rewritten)
		ascii := escaped(written)
		add(ascii, rewritten)
		add(bytes.ReplaceAll(ascii, []byte("/"), []byte(`\/`)), rewritten)
		add(bytes.ReplaceAll(written, []byte("/"), []byte(`\/`)), rewritten)
	}

	latin := make([]byte, 0, len(body)) // UTF-8 to Latin-1
	for _, r := range string(body) {
		if r > 0xff {
			latin = nil
			break
		}
		latin = append(latin, byte(r))
	}
	if latin != nil {
		add(latin, converted)
	}
	var wide []byte // Latin-1 to UTF-8
	for _, b := range body {
		wide = utf8.AppendRune(wide, rune(b))
	}
	add(wide, converted)

	if zipped, err := gzip.NewReader(bytes.NewReader(body)); err == nil {
		if plain, err := io.ReadAll(io.LimitReader(zipped, webhook.DefaultMaxBodySize)); err == nil {
			add(plain, "the body is compressed with gzip, and was not when it was signed")
		}
	}
	for _, v := range unwrap(body) {
		add(v.value, v.description)
	}
	return found
}

// maxUnwrapped is how many texts unwrap looks at.
const maxUnwrapped = 32

// unwrap returns what may be the body in a capture that is encoded, escaped or
// has something around it, also several times.
func unwrap(body []byte) []variant {
	found := []variant{{bytes.TrimSpace(body), saved}}
	seen := map[string]bool{string(found[0].value): true}
	for i := 0; i < len(found); i++ {
		from := found[i]
		add := func(value []byte, description string) {
			if len(value) == 0 || seen[string(value)] || len(found) == maxUnwrapped {
				return
			}
			seen[string(value)] = true
			if from.description != saved && from.description != surrounded {
				description = from.description // the outermost says what was captured
			}
			found = append(found, variant{value, description})
		}
		text := string(from.value)
		if start, end := strings.Index(text, "{"), strings.LastIndex(text, "}"); start >= 0 && start < end {
			add([]byte(text[start:end+1]), surrounded)
		}
		add(unescape(text), unescaped)
		add([]byte(strings.ReplaceAll(text, `'\''`, `'`)), surrounded) // a quote in quotes of a shell
		add([]byte(html.UnescapeString(text)), "the captured body is escaped for HTML")
		if decoded, ok := decodeBase64(text); ok {
			add(decoded, "the captured body is in base64")
		}
		if decoded, err := hex.DecodeString(strings.TrimPrefix(text, `\x`)); err == nil {
			add(decoded, "the captured body is in hex")
		}
		if decoded, err := url.QueryUnescape(text); err == nil {
			add([]byte(decoded), "the captured body is percent-encoded")
		}
		for _, quoted := range quotedText.FindAllString(text, -1) {
			value := unescape(quoted[1 : len(quoted)-1])
			if decoded, ok := decodeBase64(string(value)); ok && bytes.HasPrefix(decoded, []byte("{")) {
				add(decoded, inString)
			} else if bytes.Contains(value, []byte("{")) {
				if strings.HasPrefix(text, `"`) {
					add(value, unescaped)
				} else {
					add(value, inString)
				}
			}
		}
	}
	return found
}

// quotedText matches a string in JSON, also in a part of a log entry.
var quotedText = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)

// escapes are those of JSON, and of nginx, Python, Go and shells.
var escapes = regexp.MustCompile(`(?:\\u[0-9A-Fa-f]{4})+|\\U[0-9A-Fa-f]{8}|\\x[0-9A-Fa-f]{2}|\\[^uUx]`)

func unescape(text string) []byte {
	return []byte(escapes.ReplaceAllStringFunc(text, func(escape string) string {
		switch escape[1] {
		case 'u':
			var units []uint16
			for digits := range strings.SplitSeq(escape[len(`\u`):], `\u`) {
				unit, _ := strconv.ParseUint(digits, 16, 16)
				units = append(units, uint16(unit))
			}
			return string(utf16.Decode(units))
		case 'U':
			r, _ := strconv.ParseUint(escape[len(`\U`):], 16, 32)
			return string(rune(r))
		case 'x':
			b, _ := strconv.ParseUint(escape[len(`\x`):], 16, 8)
			return string([]byte{byte(b)})
		}
		if i := strings.IndexByte("nrtbf", escape[1]); i >= 0 {
			return "\n\r\t\b\f"[i : i+1]
		}
		return escape[1:]
	}))
}

// escaped writes what is not ASCII as escapes, as Python and PHP do.
func escaped(text []byte) []byte {
	var ascii []byte
	for _, r := range string(text) {
		switch {
		case r < utf8.RuneSelf:
			ascii = append(ascii, byte(r))
		case r > 0xffff:
			r -= 0x10000
			ascii = fmt.Appendf(ascii, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			ascii = fmt.Appendf(ascii, `\u%04x`, r)
		}
	}
	return ascii
}
