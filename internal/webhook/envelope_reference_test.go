package webhook

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// parseWithJSONText reads the envelope with the tokenizer of jsontext. It is slower
// than [ParseEvent], which must accept the same bodies and read the same from them.
func parseWithJSONText(body []byte, required Requirements) (Event, error) {
	if !utf8.Valid(body) {
		return Event{}, errors.New("not valid UTF-8")
	}
	p := referenceParser{
		dec:      jsontext.NewDecoder(bytes.NewBuffer(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)),
		body:     body,
		required: required,
		seen:     make(map[string]bool),
	}
	if err := p.envelope(); err != nil {
		return Event{}, err
	}
	return p.event, nil
}

type referenceParser struct {
	dec      *jsontext.Decoder
	body     []byte
	required Requirements
	event    Event
	seen     map[string]bool
}

func (p *referenceParser) envelope() error {
	if p.dec.PeekKind() != jsontext.KindBeginObject {
		return errors.New("not a JSON object")
	}
	if _, err := p.dec.ReadToken(); err != nil {
		return err
	}
	for p.dec.PeekKind() != jsontext.KindEndObject {
		if err := p.member(); err != nil {
			return err
		}
	}
	if _, err := p.dec.ReadToken(); err != nil {
		return err
	}
	if _, err := p.dec.ReadToken(); !errors.Is(err, io.EOF) {
		return errors.New("data after the JSON object")
	}
	for _, name := range p.names() {
		if !p.seen[name] {
			return errors.New("missing: " + name)
		}
	}
	return nil
}

// names are those of the required members.
func (p *referenceParser) names() []string {
	names := []string{memberID, memberType}
	if p.required.CreatedAt {
		names = append(names, memberCreatedAt)
	}
	if p.required.Data {
		names = append(names, memberData)
	}
	return names
}

func (p *referenceParser) member() error {
	quoted, err := p.dec.ReadValue()
	if err != nil {
		return err
	}
	unquoted, _ := jsontext.AppendUnquote(nil, quoted)
	name := string(unquoted)
	if p.seen[name] {
		return errors.New("repeated: " + name)
	}
	p.seen[name] = true
	switch name {
	case memberID:
		return p.text(&p.event.ID)
	case memberType:
		return p.text(&p.event.Type)
	case memberCreatedAt:
		return p.createdAt()
	case memberData:
		return p.data()
	}
	for _, documented := range p.names() {
		if strings.EqualFold(name, documented) {
			return errors.New("differs in case only: " + name)
		}
	}
	return p.skip()
}

func (p *referenceParser) text(text *string) error {
	if p.dec.PeekKind() != jsontext.KindString {
		return errors.New("not a string")
	}
	quoted, err := p.dec.ReadValue()
	if err != nil {
		return err
	}
	value, err := jsontext.AppendUnquote(nil, quoted)
	if err != nil {
		return err
	}
	if len(value) == 0 || len(value) > MaxIDLength {
		return errors.New("length")
	}
	*text = string(value)
	return nil
}

func (p *referenceParser) createdAt() error {
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
	value, err := jsontext.AppendUnquote(nil, quoted)
	if err == nil && len(value) > maxTimeLength {
		err = errNotRFC3339
	}
	if err == nil {
		p.event.CreatedAt = value
		p.event.Created, err = parseTimeOfAnyLength(value)
	}
	if p.required.CreatedAt {
		return err
	}
	return nil
}

func (p *referenceParser) data() error {
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

// skip reads a value of any kind.
func (p *referenceParser) skip() error {
	outer := p.dec.StackDepth()
	for {
		if _, err := p.dec.ReadToken(); err != nil {
			return err
		}
		switch depth := p.dec.StackDepth(); {
		case depth > maxDepth:
			return errors.New("nested too deep")
		case depth == outer:
			return nil
		}
	}
}

// parseTimeOfAnyLength is ParseTime with [time.Parse].
func parseTimeOfAnyLength(text []byte) (time.Time, error) {
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
