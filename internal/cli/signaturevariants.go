package cli

import (
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
)

// signatureVariants returns what the value of the header may mean in bytes, without
// what does not belong there. It is empty if the value is no hash in any encoding.
func signatureVariants(text string) []variant {
	trimmed := strings.Trim(strings.TrimSpace(text), `"'`)
	given := variant{value: []byte(trimmed)}
	if trimmed != text {
		given.description = "the header has blanks or quotes around the signature, which do not belong there"
	}
	texts := []variant{given}
	if i := strings.IndexAny(strings.TrimRight(trimmed, "="), "=:,"); i >= 0 {
		texts = append(texts, variant{[]byte(trimmed[i+1:]), fmt.Sprintf("the header has %q before the signature, which does not belong there", trimmed[:i+1])})
	}
	if rest, ok := strings.CutPrefix(strings.ToLower(trimmed), "0x"); ok {
		texts = append(texts, variant{[]byte(rest), `the header has "0x" before the signature, which does not belong there`})
	}
	var decodings []variant
	for _, t := range texts {
		if decoded, err := hex.DecodeString(string(t.value)); err == nil && len(decoded) > 0 {
			decodings = append(decodings, variant{decoded, t.description})
		}
		if decoded, ok := decodeBase64(string(t.value)); ok && len(decoded) >= md5.Size {
			description := "the signature is in base64: it must be in hex"
			if t.description != "" {
				description = t.description + ", and " + description
			}
			decodings = append(decodings, variant{decoded, description})
		}
	}
	return decodings
}

// decodeBase64 decodes both alphabets, with padding or without.
func decodeBase64(text string) ([]byte, bool) {
	text = strings.TrimRight(text, "=")
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		if decoded, err := encoding.DecodeString(text); err == nil {
			return decoded, true
		}
	}
	return nil, false
}
