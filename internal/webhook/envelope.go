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
	MaxIDLength = 256 // of id and type, in bytes
	maxDepth    = 100 // of nesting, the envelope included
)

// Event is the envelope of a verified delivery.
type Event struct {
	ID        string
	Type      string
	CreatedAt string    // as the sender wrote it
	Created   time.Time // zero unless createdAt is required
	Data      []byte    // a JSON object, or nil
}

// Requirements are the members of the envelope that must be right, besides id
// and type.
type Requirements struct{ CreatedAt, Data bool }

// decoders are reused for their buffers.
var decoders = sync.Pool{New: func() any { return new(jsontext.Decoder) }}

// LaxJSON leaves to us what differs between the envelope and what is in it: inside
// of data, names may repeat and escapes may stand for half a character.
var LaxJSON = []jsontext.Options{jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)}

// ParseEvent reads the envelope in body. It accepts only what every JSON parser
// reads alike.
func ParseEvent(body []byte, required Requirements) (Event, error) {
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
		return Event{}, errors.New("something follows the JSON object")
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
	shallow  bool // too few brackets to be nested too deep
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
	// a name with half a character in it is compared with that replaced
	name, _ := unquote(quoted)
	switch string(name) {
	case memberID:
		return p.text(memberID, &p.seen.id, &p.event.ID)
	case memberType:
		return p.text(memberType, &p.seen.typ, &p.event.Type)
	case memberCreatedAt:
		return p.creation()
	case memberData:
		return p.object()
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

func (p *envelopeParser) creation() error {
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
	if err == nil {
		p.event.CreatedAt = string(value)
		p.event.Created, err = ParseTime(value)
	}
	if err != nil && p.required.CreatedAt {
		return errors.New("createdAt is not a time as in RFC 3339")
	}
	return nil
}

func (p *envelopeParser) object() error {
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
		// many parsers, such as Go's, would take the one for the other
		if member.required && strings.EqualFold(name, member.name) {
			return fmt.Errorf("the name %q differs from %q in case only", name, member.name)
		}
	}
	if _, repeated := p.others[name]; repeated {
		return fmt.Errorf("%q is there twice", name)
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
		return fmt.Errorf("%s is there twice", name)
	}
	*seen = true
	return nil
}

// unquote returns the text of a JSON string, which may be a part of it. With
// an error, which means half a character, that is replaced in the text.
func unquote(quoted jsontext.Value) ([]byte, error) {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1], nil
	}
	return jsontext.AppendUnquote(nil, quoted)
}

// ParseTime reads a time as in RFC 3339, whose T and Z may be lower case. A leap
// second is 23:59:60 in UTC. Its day is not checked: which days have one is
// announced only months ahead, and an error would lose an event.
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

var errNotRFC3339 = errors.New("not a time as in RFC 3339")

// hasTimeSyntax rejects what [time.Parse] takes although RFC 3339 does not: an
// hour of one digit, a comma, and offsets of +24:00 or +00:60
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
