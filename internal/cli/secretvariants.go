package cli

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf16"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// secretRepairs undo, in this order, what happens to a secret on its way into a
// file or a variable. One that does not apply returns nothing, or the secret as it
// was. They look for what [webhook.CheckSecret] rejects or warns of, but change the
// value, and may guess: a wrong guess does not match the signature.
var secretRepairs = []struct {
	description string
	undo        func(secret []byte) [][]byte
}{
	{"it is in UTF-16: save it as UTF-8, without a byte order mark", fromUTF16},
	{"it begins with a byte order mark: save it as UTF-8 without one", func(s []byte) [][]byte {
		return [][]byte{bytes.TrimPrefix(s, []byte(webhook.ByteOrderMark))}
	}},
	{"it has invisible characters, such as a zero-width space: copy it again from BuzzBip, or type it", func(s []byte) [][]byte {
		s = bytes.ReplaceAll(bytes.ReplaceAll(s, []byte("\x1b[200~"), nil), []byte("\x1b[201~"), nil) // as terminals paste
		return [][]byte{bytes.Map(func(r rune) rune {
			if !unicode.IsGraphic(r) && !unicode.IsSpace(r) {
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
		return [][]byte{assignedName.ReplaceAll(s, nil)}
	}},
	{"it is in quotes, which do not belong to it", func(s []byte) [][]byte {
		return [][]byte{bytes.Trim(s, webhook.ASCIIQuotes)}
	}},
	{"it is in typographic quotes, which do not belong to it", func(s []byte) [][]byte {
		return [][]byte{bytes.Trim(s, webhook.Quotes)}
	}},
	{"it has blanks or line breaks within it, which do not belong there", func(s []byte) [][]byte {
		return [][]byte{bytes.Join(bytes.Fields(s), nil)}
	}},
}

// assignedName matches the name at the start of a line of an environment file, a
// shell script or a YAML file.
var assignedName = regexp.MustCompile(`^(?:export\s+|set\s+|\$env:)?[A-Za-z_][A-Za-z0-9_.-]*\s*[=:]\s*`)

// fromUTF16 decodes text with or without a byte order mark. The last byte is
// missing where a newline was cut off in the middle.
func fromUTF16(text []byte) (decoded [][]byte) {
	if !webhook.LooksUTF16(text) {
		return nil
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		units := make([]uint16, len(text)/2)
		wide := 0
		for i := range units {
			units[i] = order.Uint16(text[2*i:])
			if units[i] > 0xff {
				wide++
			}
		}
		if wide > len(units)/2 { // the other byte order
			continue
		}
		decoded = append(decoded, []byte(strings.TrimPrefix(string(utf16.Decode(units)), webhook.ByteOrderMark)))
	}
	return decoded
}

// maxRepairedSecrets bounds what is tried for a file that is anything but a secret.
const maxRepairedSecrets = 64

// secretVariants returns a secret as it was given, repaired, and as a sender may
// have read it.
func secretVariants(s namedSecret) []variant {
	set := newVariantSet(variant{s.value, ""})
	set.seen[""] = true
	prefix := fmt.Sprintf("the secret from %s: ", s.source)
	for _, repair := range secretRepairs {
		for _, from := range set.variants { // also what earlier repairs have led to
			description := prefix + repair.description
			if from.description != "" {
				description = from.description + "; " + repair.description
			}
			for _, value := range repair.undo(from.value) {
				if len(set.variants) < maxRepairedSecrets {
					set.add(value, description)
				}
			}
		}
	}
	for _, end := range []string{"\n", "\r\n", "\r", " "} {
		set.add(append(bytes.Clone(s.value), end...), prefix+"the sender's has a newline or a blank at its end, as from echo without -n")
	}
	_, afterPrefix, _ := bytes.Cut(s.value, []byte("_"))
	set.add(afterPrefix, prefix+"the sender's lacks the prefix up to the _")
	for _, text := range [][]byte{s.value, afterPrefix} {
		if decoded, err := hex.DecodeString(string(text)); err == nil {
			set.add(decoded, prefix+"the sender decoded it from hex: the key is the text as it is shown")
		}
		if decoded, ok := decodeBase64(string(text)); ok {
			set.add(decoded, prefix+"the sender decoded it from base64: the key is the text as it is shown")
		}
	}
	return set.variants
}
