package cli

import (
	"bytes"
	"encoding/hex"
	"html"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf16"
)

// The mistakes for which a file is not the body that was captured.
const (
	surrounded     = "the captured file has more than the body, such as quotes, a command or headers; the body in it is what was signed"
	escaped        = "the captured body is escaped, as logs and programs write strings; without the escapes, it is what was signed"
	inString       = "the captured file is a log entry, an HTTP archive or the like, with the body as a string in it; that string is what was signed"
	htmlEscaped    = "the captured body is escaped for HTML"
	base64Encoded  = "the captured body is in base64"
	hexEncoded     = "the captured body is in hex"
	percentEncoded = "the captured body is percent-encoded"
)

// maxUnwrapped bounds how many texts unwrap looks at.
const maxUnwrapped = 32

// unwrap returns what may be the body in a captured file that is encoded, escaped
// or has something around the body, also one within the other.
func unwrap(file []byte) []variant {
	set := newVariantSet(variant{bytes.TrimSpace(file), saved})
	for i := 0; i < len(set.variants); i++ {
		outer := set.variants[i]
		for _, inner := range unwrapOnce(string(outer.value)) {
			if len(inner.value) == 0 || len(set.variants) == maxUnwrapped {
				continue
			}
			if outer.description != saved && outer.description != surrounded {
				inner.description = outer.description // the outermost says what was captured
			}
			set.add(inner.value, inner.description)
		}
	}
	return set.variants
}

// unwrapOnce returns what may be in a text, with one kind of encoding undone.
func unwrapOnce(text string) (found []variant) {
	add := func(value []byte, description string) { found = append(found, variant{value, description}) }
	if start, end := strings.Index(text, "{"), strings.LastIndex(text, "}"); start >= 0 && start < end {
		add([]byte(text[start:end+1]), surrounded)
	}
	add(unescape(text), escaped)
	add([]byte(strings.ReplaceAll(text, `'\''`, `'`)), surrounded) // a quote in quotes of a shell
	add([]byte(html.UnescapeString(text)), htmlEscaped)
	if decoded, ok := decodeBase64(text); ok {
		add(decoded, base64Encoded)
	}
	if decoded, err := hex.DecodeString(strings.TrimPrefix(text, `\x`)); err == nil {
		add(decoded, hexEncoded)
	}
	if decoded, err := url.QueryUnescape(text); err == nil {
		add([]byte(decoded), percentEncoded)
	}
	for _, quoted := range quotedText.FindAllString(text, -1) {
		value := unescape(quoted[1 : len(quoted)-1])
		if decoded, ok := decodeBase64(string(value)); ok && bytes.HasPrefix(decoded, []byte("{")) {
			add(decoded, inString)
		} else if bytes.Contains(value, []byte("{")) {
			if strings.HasPrefix(text, `"`) {
				add(value, escaped)
			} else {
				add(value, inString)
			}
		}
	}
	return found
}

// quotedText matches a string in JSON, also in a part of a log entry.
var quotedText = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)

// escapes matches those of JSON, nginx, Python, Go and shells. Those of UTF-16
// belong together if one follows the other.
var escapes = regexp.MustCompile(`(?:\\u[0-9A-Fa-f]{4})+|\\U[0-9A-Fa-f]{8}|\\x[0-9A-Fa-f]{2}|\\[^uUx]`)

// unescape returns a text without escapes.
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
