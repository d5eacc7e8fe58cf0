package cli

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"slices"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// The mistakes for which a body is not the one that was signed.
const (
	rewritten   = "the body was parsed and written again before it was signed or captured, which changes bytes: sign and keep it as it is"
	saved       = "the captured body differs from the signed one in a newline at its end, as editors and shells add it"
	converted   = "the body was converted to another character encoding"
	lineEndings = "the line endings of the body were converted between LF and CRLF"
	marked      = "a byte order mark was added to the body or removed"
	compressed  = "the body is compressed with gzip, and was not when it was signed"
)

// bodyVariants returns a captured body, and what may have been signed in its place.
func bodyVariants(body []byte) []variant {
	set := newVariantSet(variant{body, ""})
	addEdges(set, body)
	addLineEndings(set, body)
	addRewritten(set, body)
	addConverted(set, body)
	addUncompressed(set, body)
	for _, v := range unwrap(body) {
		set.add(v.value, v.description)
	}
	return set.variants
}

// addEdges adds a body with another start or end.
func addEdges(set *variantSet, body []byte) {
	set.add(bytes.TrimRight(body, "\r\n"), saved)
	set.add(append(bytes.Clone(body), "\n"...), saved)
	set.add(append(bytes.Clone(body), "\r\n"...), saved)
	set.add(bytes.TrimSpace(body), saved)
	mark := []byte(webhook.ByteOrderMark)
	set.add(bytes.TrimPrefix(body, mark), marked)
	set.add(append(bytes.Clone(mark), body...), marked)
}

func addLineEndings(set *variantSet, body []byte) {
	lf := bytes.ReplaceAll(body, []byte("\r\n"), []byte("\n"))
	set.add(lf, lineEndings)
	set.add(bytes.ReplaceAll(lf, []byte("\n"), []byte("\r\n")), lineEndings)
}

// laxJSON are options for what data may have: repeated names and unpaired surrogates.
var laxJSON = []jsontext.Options{jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)}

// jsonStyles are the usual ways to write JSON, besides the escapes of addRewritten.
var jsonStyles = [][]jsontext.Options{
	{},
	{jsontext.PreserveRawStrings(true)},
	{jsontext.SpaceAfterColon(true), jsontext.SpaceAfterComma(true)},
	{jsontext.EscapeForHTML(true)},
	{jsontext.Multiline(true), jsontext.WithIndent("  ")},
	{jsontext.Multiline(true), jsontext.WithIndent("    ")},
	{jsontext.Multiline(true), jsontext.WithIndent("\t")},
	{jsontext.ReorderRawObjects(true)},
	{jsontext.ReorderRawObjects(true), jsontext.SpaceAfterColon(true), jsontext.SpaceAfterComma(true)},
}

// addRewritten adds the JSON of a body as others write it.
func addRewritten(set *variantSet, body []byte) {
	for _, style := range jsonStyles {
		written, err := jsontext.AppendFormat(nil, body, slices.Concat(style, laxJSON)...)
		if err != nil {
			continue
		}
		set.add(written, rewritten)
		set.add(append(bytes.Clone(written), '\n'), rewritten)
		ascii := escapeNonASCII(written)
		set.add(ascii, rewritten)
		set.add(bytes.ReplaceAll(ascii, []byte("/"), []byte(`\/`)), rewritten)
		set.add(bytes.ReplaceAll(written, []byte("/"), []byte(`\/`)), rewritten)
	}
}

// escapeNonASCII writes what is not ASCII as escapes, as Python and PHP do.
func escapeNonASCII(text []byte) []byte {
	var ascii []byte
	for _, r := range string(text) {
		switch {
		case r < utf8.RuneSelf:
			ascii = append(ascii, byte(r))
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			ascii = fmt.Appendf(ascii, `\u%04x\u%04x`, high, low)
		default:
			ascii = fmt.Appendf(ascii, `\u%04x`, r)
		}
	}
	return ascii
}

// addConverted adds a body in UTF-8 as Latin-1, and one in Latin-1 as UTF-8.
func addConverted(set *variantSet, body []byte) {
	if latin1, ok := toLatin1(body); ok {
		set.add(latin1, converted)
	}
	var text []byte
	for _, b := range body {
		text = utf8.AppendRune(text, rune(b))
	}
	set.add(text, converted)
}

func toLatin1(text []byte) (latin1 []byte, ok bool) {
	latin1 = make([]byte, 0, len(text))
	for _, r := range string(text) {
		if r > 0xff {
			return nil, false
		}
		latin1 = append(latin1, byte(r))
	}
	return latin1, true
}

func addUncompressed(set *variantSet, body []byte) {
	zipped, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return
	}
	if plain, err := io.ReadAll(io.LimitReader(zipped, webhook.DefaultMaxBodySize)); err == nil {
		set.add(plain, compressed)
	}
}
