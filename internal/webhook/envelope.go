package webhook

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// The members of the envelope around every event (BuzzBip's developer
// documentation, "Webhooks", updated 2026-06-01).
const (
	memberID        = "id"
	memberType      = "type"
	memberCreatedAt = "createdAt"
	memberData      = "data"
)

const (
	// MaxIDLength is the largest length of id and of type, in bytes.
	MaxIDLength = 256

	maxTimeLength = 64 // of createdAt, in bytes: fractions can be of any length
)

// Event is the envelope of an event.
type Event struct {
	// ID is the event ID, of 1 to [MaxIDLength] bytes.
	ID string
	// Type is the event type, of 1 to [MaxIDLength] bytes. It need not be one of
	// [DocumentedTypes].
	Type string
	// CreatedAt is createdAt as the sender wrote it, or empty if there is none. It
	// may be a part of the body.
	CreatedAt []byte
	// Created is CreatedAt as a time, or zero if it is none and not required.
	Created time.Time
	// Data is data as the sender wrote it, a JSON object and a part of the body,
	// or nil if there is none.
	Data []byte
}

// Requirements says which members of the envelope must be valid, besides id and
// type.
type Requirements struct{ CreatedAt, Data bool }

// ParseEvent reads the envelope in body: one JSON object in valid UTF-8, nested at
// most 100 deep, with each name given once and spelled exactly, so that all JSON
// parsers read the same from it. The error says what is invalid, and contains
// nothing of data.
func ParseEvent(body []byte, required Requirements) (Event, error) {
	if !utf8.Valid(body) {
		return Event{}, errors.New("the body is not valid UTF-8")
	}
	p := envelopeParser{body: body, required: required}
	if err := p.parse(); err != nil {
		return Event{}, err
	}
	return p.event, nil
}

type envelopeParser struct {
	body     []byte
	next     int // the index in body of what is to be read next
	required Requirements
	event    Event
	seen     struct{ id, typ, createdAt, data bool }
	others   map[string]struct{} // the other members seen
}

func (p *envelopeParser) parse() error {
	if p.peek() != '{' {
		return errors.New("the body is not a JSON object")
	}
	p.next++
	if err := p.members(); err != nil {
		return err
	}
	p.peek()
	if p.next < len(p.body) {
		return errors.New("the body has data after the JSON object")
	}
	return p.missing()
}

// peek skips white space, and returns the byte after it, or 0 at the end.
func (p *envelopeParser) peek() byte {
	p.next = skipSpace(p.body, p.next)
	return at(p.body, p.next)
}

// members reads the members of the envelope, and the brace after them.
func (p *envelopeParser) members() error {
	if p.peek() == '}' {
		p.next++
		return nil
	}
	for {
		if err := p.member(); err != nil {
			return err
		}
		switch p.peek() {
		case ',':
			p.next++
		case '}':
			p.next++
			return nil
		default:
			return p.expected(errInObject)
		}
	}
}

func (p *envelopeParser) member() error {
	if p.peek() != '"' {
		return p.expected(errNoName)
	}
	quoted, err := p.value()
	if err != nil {
		return err
	}
	if p.peek() != ':' {
		return p.expected(errNoColon)
	}
	p.next++
	// the error is for an unpaired surrogate, which name has a replacement for
	name, _ := unquote(quoted)
	switch string(name) {
	case memberID:
		return p.id()
	case memberType:
		return p.typ()
	case memberCreatedAt:
		return p.createdAt()
	case memberData:
		return p.data()
	}
	return p.other(string(name))
}

func (p *envelopeParser) id() error {
	if err := once(memberID, &p.seen.id); err != nil {
		return err
	}
	text, err := p.text(memberID)
	p.event.ID = string(text)
	return err
}

func (p *envelopeParser) typ() error {
	if err := once(memberType, &p.seen.typ); err != nil {
		return err
	}
	text, err := p.text(memberType)
	p.event.Type = typeName(text)
	return err
}

// typeName returns text as a string, without an allocation if it is documented.
func typeName(text []byte) string {
	for _, documented := range DocumentedTypes {
		if string(text) == documented {
			return documented
		}
	}
	return string(text)
}

// text reads the value of id or type.
func (p *envelopeParser) text(name string) ([]byte, error) {
	if p.peek() != '"' {
		return nil, fmt.Errorf("%s is not a string", name)
	}
	quoted, err := p.value()
	if err != nil {
		return nil, err
	}
	text, err := unquote(quoted)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(text) == 0 || len(text) > MaxIDLength {
		return nil, fmt.Errorf("%s has %d bytes: it must have 1 to %d", name, len(text), MaxIDLength)
	}
	return text, nil
}

func (p *envelopeParser) createdAt() error {
	if err := once(memberCreatedAt, &p.seen.createdAt); err != nil {
		return err
	}
	isString := p.peek() == '"'
	if !isString && p.required.CreatedAt {
		return errors.New("createdAt is not a string")
	}
	quoted, err := p.value()
	if err != nil || !isString {
		return err
	}
	text, err := unquote(quoted)
	if err == nil && len(text) > maxTimeLength {
		err = errNotRFC3339
	}
	if err == nil {
		p.event.CreatedAt = text
		p.event.Created, err = ParseTime(text)
	}
	if err != nil && p.required.CreatedAt {
		return errors.New("createdAt is not a time in the format of RFC 3339")
	}
	return nil
}

func (p *envelopeParser) data() error {
	if err := once(memberData, &p.seen.data); err != nil {
		return err
	}
	isObject := p.peek() == '{'
	if !isObject && p.required.Data {
		return errors.New("data is not an object")
	}
	value, err := p.value()
	if err == nil && isObject {
		p.event.Data = value
	}
	return err
}

// other reads the value of a member that is not documented.
func (p *envelopeParser) other(name string) error {
	for _, member := range []struct {
		name     string
		required bool
	}{
		{memberID, true},
		{memberType, true},
		{memberCreatedAt, p.required.CreatedAt},
		{memberData, p.required.Data},
	} {
		// many parsers, such as Go's, ignore case
		if member.required && strings.EqualFold(name, member.name) {
			return fmt.Errorf("the name %q differs from %q in case only", name, member.name)
		}
	}
	if _, repeated := p.others[name]; repeated {
		return fmt.Errorf("%.32q is repeated", name)
	}
	if p.others == nil {
		p.others = make(map[string]struct{})
	}
	p.others[name] = struct{}{}
	_, err := p.value()
	return err
}

// value reads a value of any kind, and returns it as the sender wrote it.
func (p *envelopeParser) value() ([]byte, error) {
	start := skipSpace(p.body, p.next)
	end, err := skipValue(p.body, start, 1)
	p.next = end
	if err != nil {
		return nil, p.invalid(err)
	}
	return p.body[start:end], nil
}

// expected returns an error for what p.peek has returned.
func (p *envelopeParser) expected(err error) error {
	return p.invalid(expected(err, p.body, p.next))
}

// invalid returns an error for what is at p.next.
func (p *envelopeParser) invalid(err error) error {
	if errors.Is(err, errTooDeep) {
		return fmt.Errorf("the body is nested more than %d deep", maxDepth)
	}
	return fmt.Errorf("the body is not valid JSON: at byte %d: %w", p.next, err)
}

func (p *envelopeParser) missing() error {
	switch {
	case !p.seen.id:
		return errors.New("id is missing")
	case !p.seen.typ:
		return errors.New("type is missing")
	case p.required.CreatedAt && !p.seen.createdAt:
		return errors.New("createdAt is missing")
	case p.required.Data && !p.seen.data:
		return errors.New("data is missing")
	}
	return nil
}

func once(name string, seen *bool) error {
	if *seen {
		return fmt.Errorf("%s is repeated", name)
	}
	*seen = true
	return nil
}

// unquote returns the text of a JSON string, which may share its memory. An error
// means an unpaired surrogate, which is replaced in the text.
func unquote(quoted []byte) ([]byte, error) {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1], nil
	}
	return jsontext.AppendUnquote(nil, quoted)
}

// ParseTime reads a time in the format of RFC 3339. T and Z may be lower case. A
// leap second is 23:59:60 in UTC, and is returned as the first second of the next
// day. Its day is not checked: leap seconds are announced only months ahead, and an
// error would lose an event.
func ParseTime(text []byte) (time.Time, error) {
	const second = len("2006-01-02T15:04:")
	var buffer [maxTimeLength]byte // on the stack
	text = append(buffer[:0], text...)
	for i, c := range text {
		if 'a' <= c && c <= 'z' {
			text[i] = c - 'a' + 'A'
		}
	}
	if !hasTimeSyntax(text) {
		return time.Time{}, errNotRFC3339
	}
	leap := bytes.HasPrefix(text[second:], []byte("60"))
	if leap {
		copy(text[second:], "59")
	}
	var t time.Time
	if err := t.UnmarshalText(text); err != nil {
		return time.Time{}, err
	}
	if !leap {
		return t, nil
	}
	if utc := t.UTC(); utc.Hour() != 23 || utc.Minute() != 59 {
		return time.Time{}, errNotRFC3339
	}
	return t.Add(time.Second), nil
}

var errNotRFC3339 = errors.New("not a time in the format of RFC 3339")

// hasTimeSyntax reports false for what [time.Parse] accepts although RFC 3339 does
// not: an hour of one digit, a comma, and offsets of +24:00 or +00:60
// (https://go.dev/issue/54580).
func hasTimeSyntax(text []byte) bool {
	if len(text) < len("2006-01-02T15:04:05Z") || text[len("2006-01-02T15")] != ':' || bytes.IndexByte(text, ',') >= 0 {
		return false
	}
	if text[len(text)-1] == 'Z' {
		return true
	}
	offset := text[len(text)-len("00:00"):]
	return string(offset[:2]) < "24" && string(offset[3:]) < "60"
}
