package webhook

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// The functions in this file check the grammar of JSON (RFC 8259) without decoding
// it. Each gets a text and the index at which something starts. It returns the index
// after that, or the index of what is invalid and an error. The text must be valid
// UTF-8, which is not checked here.

// maxDepth is how deep objects and arrays may be nested, the outermost included.
const maxDepth = 100

// The errors do not quote the text, which may be confidential.
var (
	errTooDeep   = errors.New("nested too deep")
	errCutOff    = errors.New("unexpected end")
	errNoValue   = errors.New("expected a value")
	errNoName    = errors.New("expected a name in double quotes")
	errNoColon   = errors.New("expected a colon after a name")
	errInObject  = errors.New("expected a comma or a closing brace")
	errInArray   = errors.New("expected a comma or a closing bracket")
	errControl   = errors.New("a control character in a string must be escaped")
	errEscape    = errors.New("invalid escape in a string")
	errNotNumber = errors.New("expected a digit")
)

// expected returns err, unless the reason for it is that the text ends at i.
func expected(err error, text []byte, i int) error {
	if i >= len(text) {
		return errCutOff
	}
	return err
}

// at returns the byte at i, or 0 after the end: JSON has no such byte anywhere.
func at(text []byte, i int) byte {
	if uint(i) < uint(len(text)) {
		return text[i]
	}
	return 0
}

func skipSpace(text []byte, i int) int {
	for uint(i) < uint(len(text)) && text[i] <= ' ' && isSpace(text[i]) {
		i++
	}
	return i
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// skipValue skips a value that is in depth objects and arrays.
func skipValue(text []byte, i, depth int) (int, error) {
	switch c := at(text, i); c {
	case '"':
		return skipString(text, i)
	case '{':
		return skipObject(text, i, depth+1)
	case '[':
		return skipArray(text, i, depth+1)
	case 't':
		return skipLiteral(text, i, "true")
	case 'f':
		return skipLiteral(text, i, "false")
	case 'n':
		return skipLiteral(text, i, "null")
	default:
		if c == '-' || isDigit(c) {
			return skipNumber(text, i)
		}
		return i, expected(errNoValue, text, i)
	}
}

// skipObject skips an object whose members are in depth objects and arrays.
func skipObject(text []byte, i, depth int) (int, error) {
	if depth > maxDepth {
		return i, errTooDeep
	}
	i = skipSpace(text, i+len("{"))
	if at(text, i) == '}' {
		return i + 1, nil
	}
	for {
		var err error
		if at(text, i) != '"' {
			return i, expected(errNoName, text, i)
		}
		if i, err = skipString(text, i); err != nil {
			return i, err
		}
		i = skipSpace(text, i)
		if at(text, i) != ':' {
			return i, expected(errNoColon, text, i)
		}
		i = skipSpace(text, i+1)
		if i, err = skipValue(text, i, depth); err != nil {
			return i, err
		}
		i = skipSpace(text, i)
		switch at(text, i) {
		case ',':
			i = skipSpace(text, i+1)
		case '}':
			return i + 1, nil
		default:
			return i, expected(errInObject, text, i)
		}
	}
}

// skipArray skips an array whose elements are in depth objects and arrays.
func skipArray(text []byte, i, depth int) (int, error) {
	if depth > maxDepth {
		return i, errTooDeep
	}
	i = skipSpace(text, i+len("["))
	if at(text, i) == ']' {
		return i + 1, nil
	}
	for {
		var err error
		if i, err = skipValue(text, i, depth); err != nil {
			return i, err
		}
		i = skipSpace(text, i)
		switch at(text, i) {
		case ',':
			i = skipSpace(text, i+1)
		case ']':
			return i + 1, nil
		default:
			return i, expected(errInArray, text, i)
		}
	}
}

func skipLiteral(text []byte, i int, literal string) (int, error) {
	end := i + len(literal)
	if end > len(text) || string(text[i:end]) != literal {
		return i, errNoValue
	}
	return end, nil
}

func skipNumber(text []byte, i int) (int, error) {
	if at(text, i) == '-' {
		i++
	}
	var err error
	if at(text, i) == '0' {
		i++ // nothing may follow a leading zero
	} else if i, err = skipDigits(text, i); err != nil {
		return i, err
	}
	if at(text, i) == '.' {
		if i, err = skipDigits(text, i+1); err != nil {
			return i, err
		}
	}
	if c := at(text, i); c == 'e' || c == 'E' {
		i++
		if sign := at(text, i); sign == '+' || sign == '-' {
			i++
		}
		return skipDigits(text, i)
	}
	return i, nil
}

// skipDigits skips one digit or more.
func skipDigits(text []byte, i int) (int, error) {
	start := i
	for isDigit(at(text, i)) {
		i++
	}
	if i == start {
		return i, expected(errNotNumber, text, i)
	}
	return i, nil
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// skipString skips a string, with its quotes.
func skipString(text []byte, i int) (int, error) {
	i += len(`"`)
	for uint(i) < uint(len(text)) {
		if rest := text[i:]; len(rest) >= 8 {
			marks := notPlain(binary.LittleEndian.Uint64(rest))
			if marks == 0 {
				i += 8
				continue
			}
			i += bits.TrailingZeros64(marks) / 8
		}
		switch c := text[i]; {
		case c == '"':
			return i + 1, nil
		case c == '\\':
			length := escapeLength(text[i:])
			if length == 0 {
				return i, errEscape
			}
			i += length
		case c < ' ':
			return i, errControl
		default:
			i++ // one of the last 8 bytes
		}
	}
	return i, errCutOff
}

const (
	eachByte = 0x0101010101010101 // times a byte: a word of 8 such bytes
	highBits = 0x80 * eachByte
)

// notPlain finds quotes, backslashes and control characters in 8 bytes. The lowest
// bit that is set in the result is the high bit of the first of them. If there is
// none, the result is 0.
//
// A subtraction sets the high bit of a byte that is less than what is subtracted. It
// borrows from the next byte then, so what is above the lowest bit means nothing.
// Bytes that are not ASCII are left out: their high bits were set before.
func notPlain(word uint64) uint64 {
	control := word - ' '*eachByte
	quote := (word ^ '"'*eachByte) - eachByte
	backslash := (word ^ '\\'*eachByte) - eachByte
	return (control | quote | backslash) & highBits &^ word
}

// escapeLength returns the length of the escape at the start of text, or 0 if it is
// invalid.
func escapeLength(text []byte) int {
	c := at(text, 1)
	if isShortEscape[c] {
		return len(`\n`)
	}
	if c == 'u' && len(text) >= len(`\u0000`) && isHex[text[2]] && isHex[text[3]] && isHex[text[4]] && isHex[text[5]] {
		return len(`\u0000`)
	}
	return 0
}

var (
	isShortEscape = byteSet(`"\/bfnrt`)
	isHex         = byteSet("0123456789abcdefABCDEF")
)

func byteSet(members string) (set [256]bool) {
	for _, c := range []byte(members) {
		set[c] = true
	}
	return set
}
