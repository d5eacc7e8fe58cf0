package webhook

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
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

	maxDepth      = 100 // of nesting, including the envelope
	maxTimeLength = 64  // of createdAt, in bytes: fractions can be of any length
)

// Event is the envelope of an event.
type Event struct {
	// ID is the event ID, of 1 to [MaxIDLength] bytes.
	ID string
	// Type is the event type, of 1 to [MaxIDLength] bytes. It need not be one of
	// [DocumentedTypes].
	Type string
	// CreatedAt is createdAt as the sender wrote it, or empty if there is none.
	CreatedAt string
	// Created is CreatedAt as a time, or zero if it is none and not required.
	Created time.Time
	// Data is data as the sender wrote it, a JSON object and a part of the body,
	// or nil if there is none.
	Data []byte
}

// Requirements says which members of the envelope must be valid, besides id and
// type.
type Requirements struct{ CreatedAt, Data bool }

// decoders are reused for their buffers.
var decoders = sync.Pool{New: func() any { return new(jsontext.Decoder) }}

// LaxJSON are the options for reading a body. They accept what the envelope must
// not have but data may: repeated names, and unpaired surrogates such as `\ud83d`.
// [ParseEvent] checks these in the envelope itself.
var LaxJSON = []jsontext.Options{jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)}

// ParseEvent reads the envelope in body: one JSON object in valid UTF-8, nested at
// most 100 deep, with each name given once and spelled exactly, so that all JSON
// parsers read the same from it. The error says what is invalid, and contains
// nothing of data.
func ParseEvent(body []byte, required Requirements) (Event, error) {
	event, err := parseEvent(body, required)
	if syntactic, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		// without the JSON pointer, which consists of names in data
		err = fmt.Errorf("the body is not valid JSON: at byte %d: %v", syntactic.ByteOffset, syntactic.Err)
	}
	return event, err
}

func parseEvent(body []byte, required Requirements) (Event, error) {
	if !utf8.Valid(body) {
		return Event{}, errors.New("the body is not valid UTF-8")
	}
	dec := decoders.Get().(*jsontext.Decoder)
	defer decoders.Put(dec)
	dec.Reset(bytes.NewBuffer(body), LaxJSON...)

	if kind := dec.PeekKind(); kind != jsontext.KindBeginObject {
		return Event{}, errors.New("the body is not a JSON object")
	}
	if _, err := dec.ReadToken(); err != nil {
		return Event{}, err
	}
	brackets := bytes.Count(body, []byte("{")) + bytes.Count(body, []byte("["))
	p := envelopeParser{dec: dec, body: body, required: required, shallow: brackets <= maxDepth}
	for dec.PeekKind() != jsontext.KindEndObject {
		if err := p.member(); err != nil {
			return Event{}, err
		}
	}
	if _, err := dec.ReadToken(); err != nil {
		return Event{}, err
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return Event{}, errors.New("the body has data after the JSON object")
	}
	if err := p.missing(); err != nil {
		return Event{}, err
	}
	return p.event, nil
}

type envelopeParser struct {
	dec      *jsontext.Decoder
	body     []byte
	required Requirements
	shallow  bool // it has too few brackets to be nested too deep
	event    Event
	seen     struct{ id, typ, createdAt, data bool }
	others   map[string]struct{} // the other members seen
}

// member reads one member of the envelope.
func (p *envelopeParser) member() error {
	quoted, err := p.dec.ReadValue()
	if err != nil {
		return err
	}
	// the error is for an unpaired surrogate, which name has a replacement for
	name, _ := unquote(quoted)
	switch string(name) {
	case memberID:
		return p.text(memberID, &p.seen.id, &p.event.ID)
	case memberType:
		return p.text(memberType, &p.seen.typ, &p.event.Type)
	case memberCreatedAt:
		return p.createdAt()
	case memberData:
		return p.data()
	}
	return p.other(string(name))
}

// text reads the id or the type.
func (p *envelopeParser) text(name string, seen *bool, text *string) error {
	if err := once(name, seen); err != nil {
		return err
	}
	if p.dec.PeekKind() != jsontext.KindString {
		return fmt.Errorf("%s is not a string", name)
	}
	quoted, err := p.dec.ReadValue()
	if err != nil {
		return err
	}
	value, err := unquote(quoted)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if len(value) == 0 || len(value) > MaxIDLength {
		return fmt.Errorf("%s has %d bytes: it must have 1 to %d", name, len(value), MaxIDLength)
	}
	*text = string(value)
	return nil
}

func (p *envelopeParser) createdAt() error {
	if err := once(memberCreatedAt, &p.seen.createdAt); err != nil {
		return err
	}
	if p.dec.PeekKind() != jsontext.KindString {
		if p.required.CreatedAt {
			return errors.New("createdAt is not a string")
		}
		return p.skip()
	}
	quoted, err := p.dec.ReadValue()
	if err != nil {
		return err
	}
	value, err := unquote(quoted)
	if err == nil && len(value) > maxTimeLength {
		err = errNotRFC3339
	}
	if err == nil {
		p.event.CreatedAt = string(value)
		p.event.Created, err = ParseTime(value)
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
	if p.dec.PeekKind() != jsontext.KindBeginObject {
		if p.required.Data {
			return errors.New("data is not an object")
		}
		return p.skip()
	}
	start := p.dec.InputOffset() // before the colon
	if err := p.skip(); err != nil {
		return err
	}
	p.event.Data = bytes.TrimLeft(p.body[start:p.dec.InputOffset()], ": \t\r\n")
	return nil
}

// other reads a member that is not documented.
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
	return p.skip()
}

// skip reads a value of any kind.
func (p *envelopeParser) skip() error {
	if p.shallow {
		_, err := p.dec.ReadValue() // faster than token by token
		return err
	}
	outer := p.dec.StackDepth()
	for {
		if _, err := p.dec.ReadToken(); err != nil {
			return err
		}
		switch depth := p.dec.StackDepth(); {
		case depth > maxDepth:
			return fmt.Errorf("the body is nested more than %d deep", maxDepth)
		case depth == outer:
			return nil
		}
	}
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
func unquote(quoted jsontext.Value) ([]byte, error) {
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
	text = bytes.ToUpper(text)
	if !hasTimeSyntax(text) {
		return time.Time{}, errNotRFC3339
	}
	leap := bytes.HasPrefix(text[second:], []byte("60"))
	if leap {
		copy(text[second:], "59")
	}
	t, err := time.Parse(time.RFC3339, string(text))
	if !leap || err != nil {
		return t, err
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
