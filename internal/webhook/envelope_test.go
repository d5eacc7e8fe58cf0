package webhook

import (
	"bytes"
	"encoding/json"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	strict  = Requirements{CreatedAt: true, Data: true}
	lenient = Requirements{}
)

// withMembers returns a valid envelope but for members to add or replace.
func withMembers(members ...string) string {
	all := []string{`"id":"evt_1"`, `"type":"message.sent"`, `"createdAt":"2026-06-01T14:32:00Z"`, `"data":{}`}
	for _, m := range members {
		name, _, _ := strings.Cut(m, ":")
		if i := slices.IndexFunc(all, func(s string) bool { return strings.HasPrefix(s, name+":") }); i >= 0 {
			all[i] = m
			continue
		}
		all = append(all, m)
	}
	return "{" + strings.Join(all, ",") + "}"
}

func without(name string) string {
	for _, m := range []string{`"id":"evt_1",`, `"type":"message.sent",`, `"createdAt":"2026-06-01T14:32:00Z",`, `,"data":{}`} {
		if strings.Contains(m, `"`+name+`"`) {
			return strings.Replace(withMembers(), m, "", 1)
		}
	}
	panic(name)
}

// nested returns an object that is n deep.
func nested(n int) string {
	return strings.Repeat(`{"a":`, n-1) + "{}" + strings.Repeat("}", n-1)
}

func TestEnvelope(t *testing.T) {
	tests := []struct {
		name            string
		body            string
		strict, lenient bool // accepted
	}{
		{"the documented example", `{
  "id": "evt_7f3a9b2c",
  "type": "message.received",
  "createdAt": "2026-06-01T14:32:00Z",
  "data": { }
}`, true, true},
		{"other members", withMembers(`"workspace":"w_1"`, `"nested":{"id":1,"id":2}`, `"n":null`), true, true},
		{"space around", " \t\r\n" + withMembers() + " \t\r\n", true, true},
		{"escapes in a name", withMembers(`"\u0069d":"evt_1"`), false, false}, // id twice
		{"name that is escaped", strings.Replace(withMembers(), `"id"`, `"\u0069\u0064"`, 1), true, true},
		{"offset and fraction in createdAt", withMembers(`"createdAt":"2026-06-01T14:32:00.123456+02:00"`), true, true},
		{"lower case in createdAt", withMembers(`"createdAt":"2026-06-01t14:32:00z"`), true, true},
		{"id of 256 bytes", withMembers(`"id":"` + strings.Repeat("x", 256) + `"`), true, true},
		{"id of 256 bytes, escaped", withMembers(`"id":"` + strings.Repeat(`\u0078`, 256) + `"`), true, true},
		{"pair of escapes in id", withMembers(`"id":"\ud83d\ude00"`), true, true},
		{"names repeat inside data", withMembers(`"data":{"a":1,"a":2,"id":"x","id":"y"}`), true, true},
		{"unpaired surrogate inside data", withMembers(`"data":{"text":"\ud83d","\ude00":1}`), true, true},
		{"unpaired surrogate in another member", withMembers(`"note":"\ud83d"`, `"\ude00":1`), true, true},
		{"100 deep", withMembers(`"data":` + nested(99)), true, true},
		{"100 deep in an array", withMembers(`"list":` + strings.Repeat("[", 99) + strings.Repeat("]", 99)), true, true},
		{"many brackets in a string", withMembers(`"data":{"text":"` + strings.Repeat("[{", 1000) + `"}`), true, true},
		{"many siblings", withMembers(`"data":{"list":[` + strings.Repeat("{},", 1000) + `{}]}`), true, true},

		{"nothing", "", false, false},
		{"space", "  \n", false, false},
		{"array", "[" + withMembers() + "]", false, false},
		{"string", `"id"`, false, false},
		{"null", "null", false, false},
		{"byte order mark", "\ufeff" + withMembers(), false, false},
		{"UTF-16", "\x00{\x00}", false, false},
		{"something after it", withMembers() + "x", false, false},
		{"another object after it", withMembers() + withMembers(), false, false},
		{"NUL after it", withMembers() + "\x00", false, false},
		{"cut off", withMembers()[:40], false, false},
		{"trailing comma", strings.TrimSuffix(withMembers(), "}") + ",}", false, false},
		{"single quotes", strings.ReplaceAll(withMembers(), `"`, `'`), false, false},
		{"comment", "/**/" + withMembers(), false, false},
		{"number with a leading zero", withMembers(`"data":{"n":01}`), false, false},
		{"NaN", withMembers(`"data":{"n":NaN}`), false, false},
		{"control character in a string", withMembers("\"data\":{\"text\":\"a\nb\"}"), false, false},
		{"bad UTF-8 in id", withMembers("\"id\":\"a\xff\""), false, false},
		{"bad UTF-8 in data", withMembers("\"data\":{\"text\":\"a\xff\"}"), false, false},
		{"surrogate in UTF-8", withMembers("\"data\":{\"text\":\"\xed\xa0\x80\"}"), false, false},
		{"101 deep", withMembers(`"data":` + nested(100)), false, false},
		{"101 deep in an array", withMembers(`"list":` + strings.Repeat("[", 100) + strings.Repeat("]", 100)), false, false},
		{"very deep", withMembers(`"data":` + nested(200_000)), false, false},

		{"no id", without("id"), false, false},
		{"no type", without("type"), false, false},
		{"no createdAt", without("createdAt"), false, true},
		{"no data", without("data"), false, true},
		{"empty id", withMembers(`"id":""`), false, false},
		{"empty type", withMembers(`"type":""`), false, false},
		{"id that is a number", withMembers(`"id":1`), false, false},
		{"id that is null", withMembers(`"id":null`), false, false},
		{"type that is a list", withMembers(`"type":["message.sent"]`), false, false},
		{"id of 257 bytes", withMembers(`"id":"` + strings.Repeat("x", 257) + `"`), false, false},
		{"type of 257 bytes", withMembers(`"type":"` + strings.Repeat("x", 257) + `"`), false, false},
		{"unpaired surrogate in id", withMembers(`"id":"\ud83d"`), false, false},
		{"unpaired surrogate in type", withMembers(`"type":"\ude00"`), false, false},
		{"createdAt that is no time", withMembers(`"createdAt":"yesterday"`), false, true},
		{"createdAt without an offset", withMembers(`"createdAt":"2026-06-01T14:32:00"`), false, true},
		{"createdAt with a short hour", withMembers(`"createdAt":"2026-06-01T4:32:00Z"`), false, true},
		{"createdAt with a comma", withMembers(`"createdAt":"2026-06-01T14:32:00,5Z"`), false, true},
		{"createdAt that is no date", withMembers(`"createdAt":"2026-02-30T14:32:00Z"`), false, true},
		{"createdAt that is a number", withMembers(`"createdAt":1780324320`), false, true},
		{"data that is null", withMembers(`"data":null`), false, true},
		{"data that is a list", withMembers(`"data":[]`), false, true},
		{"data that is a string", withMembers(`"data":"{}"`), false, true},

		{"id twice", `{"id":"evt_0",` + withMembers()[1:], false, false},
		{"type twice", `{"type":"message.sent",` + withMembers()[1:], false, false},
		{"createdAt twice", `{"createdAt":"2026-06-01T14:32:00Z",` + withMembers()[1:], false, false},
		{"data twice", `{"data":{},` + withMembers()[1:], false, false},
		{"another member twice", withMembers(`"x":1`)[:len(withMembers(`"x":1`))-1] + `,"\u0078":2}`, false, false},
		{"id in another case beside it", withMembers(`"ID":"evt_2"`), false, false},
		{"type in another case beside it", withMembers(`"Type":"message.sent"`), false, false},
		{"createdAt in another case beside it", withMembers(`"createdat":"2026-06-01T14:32:00Z"`), false, true},
		{"data in another case beside it", withMembers(`"DATA":{}`), false, true},
		{"id in another case instead", strings.Replace(withMembers(), `"id"`, `"Id"`, 1), false, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, mode := range []struct {
				name     string
				required Requirements
				accepted bool
			}{{"strict", strict, test.strict}, {"lenient", lenient, test.lenient}} {
				if _, err := ParseEvent([]byte(test.body), mode.required); (err == nil) != mode.accepted {
					t.Errorf("%s: accepted %v, want %v (%v)", mode.name, err == nil, mode.accepted, err)
				}
			}
		})
	}
}

func TestTimesAreReadAsInRFC3339(t *testing.T) {
	for text, want := range map[string]string{ // what it is in UTC; "": it is rejected
		"2026-06-01T14:32:00Z":                "2026-06-01T14:32:00Z",
		"2026-06-01t14:32:00z":                "2026-06-01T14:32:00Z",
		"2026-06-01T14:32:00.1234567890123Z":  "2026-06-01T14:32:00.123456789Z",
		"2026-06-01T14:32:00-00:00":           "2026-06-01T14:32:00Z",
		"2026-06-01T00:00:00+23:59":           "2026-05-31T00:01:00Z",
		"2026-06-01T00:00:00-23:59":           "2026-06-01T23:59:00Z",
		"2024-02-29T00:00:00Z":                "2024-02-29T00:00:00Z",
		"0000-01-01T00:00:00Z":                "0000-01-01T00:00:00Z",
		"2016-12-31T23:59:60Z":                "2017-01-01T00:00:00Z",
		"2016-12-31t23:59:60.5z":              "2017-01-01T00:00:00.5Z",
		"2017-01-01T00:59:60+01:00":           "2017-01-01T00:00:00Z",
		"2017-01-01T05:29:60.999999999+05:30": "2017-01-01T00:00:00.999999999Z",
		"1990-12-31T15:59:60-08:00":           "1991-01-01T00:00:00Z", // an example of RFC 3339
		"2027-02-14T23:59:60Z":                "2027-02-15T00:00:00Z", // which days have one is not known in advance

		"2026-06-01T14:32:00+24:00":  "",
		"2026-06-01T14:32:00-24:00":  "",
		"2026-06-01T14:32:00+23:60":  "",
		"2026-06-01T14:32:00-00:60":  "",
		"2026-06-01T14:32:00+24:60":  "",
		"2026-06-01T14:32:00.5+24:0": "",
		"2026-06-01T14:32:60Z":       "", // not the last second of a day
		"2016-12-31T23:59:60+01:00":  "",
		"2016-12-31T23:59:61Z":       "",
		"2016-12-31T23:59:600Z":      "",
		"2016-12-32T23:59:60Z":       "",
		"2016-12-31T23:59:60":        "",
		"2016-12-31T23:59:60,5Z":     "",
		"2026-02-29T00:00:00Z":       "",
		"2026-06-01T24:00:00Z":       "",
		"2026-06-01T4:32:00Z":        "",
		"2026-06-01T14:32:00,5Z":     "",
		"2026-06-01T14:32:00.Z":      "",
		"2026-06-01T14:32:00":        "",
		"2026-06-01T14:32Z":          "",
		"2026-06-01 14:32:00Z":       "",
		"2026-06-01T14:32:00 Z":      "",
		" 2026-06-01T14:32:00Z":      "",
		"2026-06-01T14:32:00+0100":   "",
		"2026-06-01T14:32:00+01":     "",
		"2026-06-01T14:32:00ZZ":      "",
		"20260601T143200Z":           "",
		"12026-06-01T14:32:00Z":      "",
		"":                           "",
	} {
		got, err := ParseTime([]byte(text))
		if err != nil {
			if want != "" {
				t.Errorf("%q: %v", text, err)
			}
		} else if got := got.UTC().Format(time.RFC3339Nano); got != want {
			t.Errorf("%q is %s, want %q", text, got, want)
		}
	}
}

func TestLeapSecondIsNoReasonToLoseAnEvent(t *testing.T) {
	body := withMembers(`"createdAt":"2017-01-01T00:59:60+01:00"`)
	e, err := ParseEvent([]byte(body), strict)
	if err != nil || !e.Created.Equal(time.Date(2017, time.January, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("created %v, %v", e.Created, err)
	}
}

// The grammar of RFC 3339, section 5.6; days of months are checked elsewhere.
var rfc3339 = regexp.MustCompile(`^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])[Tt]([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)$`)

func FuzzTime(f *testing.F) {
	for _, text := range []string{
		"2026-06-01T14:32:00Z", "2026-06-01t14:32:00.5z", "2016-12-31T23:59:60Z", "2017-01-01T00:59:60.5+01:00",
		"2026-06-01T14:32:00+24:00", "2026-06-01T14:32:00-23:60", "2026-06-01T4:32:00Z", "2026-06-01T14:32:00,5Z",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := ParseTime(text)
		inGrammar := rfc3339.Match(text)
		if err == nil && !inGrammar {
			t.Fatalf("%q was accepted", text)
		}
		day := 0
		if inGrammar {
			day, _ = strconv.Atoi(string(text[len("2006-01-"):len("2006-01-02")]))
		}
		if leap := inGrammar && string(text[len("2006-01-02T15:04:"):len("2006-01-02T15:04:05")]) == "60"; err != nil && inGrammar && day <= 28 && !leap {
			t.Fatalf("%q was rejected: %v", text, err)
		} else if err == nil && leap && got.UTC().Truncate(time.Second).Format(time.TimeOnly) != "00:00:00" {
			t.Fatalf("%q is %v", text, got)
		}
	})
}

func TestEventIsReadFromItsEnvelope(t *testing.T) {
	body := []byte(`{ "data" : {"a": [1, "}"]} , "type":"message.\u0073ent","x":{},"id":"\u00e9vt", "createdAt":"2026-06-01T14:32:00Z"}`)
	e, err := ParseEvent(body, strict)
	if err != nil {
		t.Fatal(err)
	}
	if e.ID != "évt" || e.Type != "message.sent" || string(e.CreatedAt) != "2026-06-01T14:32:00Z" || string(e.Data) != `{"a": [1, "}"]}` {
		t.Errorf("got %q %q %q %s", e.ID, e.Type, e.CreatedAt, e.Data)
	}
}

func TestEnvelopeIsReadWithTwoAllocations(t *testing.T) {
	body := []byte(withMembers(`"data":{"text":"\u00e9","list":[{"n":1.5}]}`))
	if n := testing.AllocsPerRun(100, func() {
		if _, err := ParseEvent(body, strict); err != nil {
			t.Fatal(err)
		}
	}); n > 2 { // of id and createdAt
		t.Errorf("there are %v allocations", n)
	}
}

// envelopes are valid and invalid bodies at the limits of the envelope.
var envelopes = []string{
	withMembers(), withMembers(`"ID":"x"`), withMembers(`"\u0069d":"x"`), withMembers(`"data":{"a":"\ud83d"}`),
	withMembers(`"x":[[[{"y":1e9}]]]`), "\ufeff{}", "{}", `{"id":1}`, withMembers("\"id\":\"\xff\""), withMembers() + "{}",
	"{\r\n\t\"id\" : \"evt_1\" ,\r\n\t\"type\" : \"x.\\u0079\\ud83d\\ude00\",\r\n\t\"createdAt\" : \"2026-06-01t14:32:00.5+02:00\",\r\n\t\"data\" : { \"a\" : [ ] }\r\n}\r\n",
	strings.Replace(withMembers(), `"id"`, `"\u0069\u0064"`, 1), withMembers(`"x":1`, `"\u0078":2`), withMembers(`"\ud83d":1`, `"\ude00":2`), withMembers(`"\ud83d":1`, `"\ufffd":2`),
	withMembers(`"id":"\ud83d"`), withMembers(`"type":"\ude00\ud83d"`), withMembers(`"createdAt":"\ud83d"`), withMembers(`"createdAt":"2026-06-01T14:32:00\u005a"`),
	withMembers(`"createdAt":"2016-12-31T23:59:60Z"`), withMembers(`"createdAt":"2026-06-01T14:32:00.` + strings.Repeat("0", 43) + `Z"`), withMembers(`"createdAt":"2026-06-01T14:32:00.` + strings.Repeat("0", 44) + `Z"`),
	withMembers(`"createdAt":[{}]`), withMembers(`"data":[{}]`), withMembers(`"createdAt":1.`), withMembers(`"data":tru`), withMembers(`"id":""`), withMembers(`"\u212ai":1`), withMembers(`"Id":1`), withMembers(`"typ\u0045":1`), withMembers(`"createdAt":null,"CREATEDAT":1`), withMembers(`"DATA":1`),
	withMembers(`"id":"` + strings.Repeat(`\u00e9`, 128) + `"`), withMembers(`"id":"` + strings.Repeat(`\u00e9`, 129) + `"`),
	withMembers(`"data":` + nested(99)), withMembers(`"data":` + nested(100)), withMembers(`"createdAt":` + nested(100)), withMembers(`"x":` + nested(99)), withMembers(`"x":` + nested(100)),
	`{"data":{"from":"c_1","text":"Zo\u00eb \"M\\ller\" 😀 Привет","n":[-1.5e+3,0,true,null]},"type":"message.sent","id":"é","createdAt":"2026-06-01T14:32:00Z","x":[{}]}`,
}

// checkEnvelope compares what [ParseEvent] and the reference read from a body.
func checkEnvelope(t *testing.T, body []byte) {
	t.Helper()
	for _, required := range []Requirements{strict, lenient, {CreatedAt: true}, {Data: true}} {
		got, err := ParseEvent(body, required)
		want, wantErr := parseWithJSONText(body, required)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%q, %+v: the error is %v, want %v", body, required, err, wantErr)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%q, %+v: read %+v, want %+v", body, required, got, want)
		}
	}
}

func TestEnvelopeIsReadAsByJSONText(t *testing.T) {
	for _, value := range jsonValues() {
		for _, name := range []string{"id", "type", "createdAt", "data", "other"} {
			checkEnvelope(t, []byte(withMembers(`"`+name+`":`+value)))
		}
		checkEnvelope(t, []byte(withMembers(`"data":{"a":`+value+`}`)))
		checkEnvelope(t, []byte(withMembers(value+`:1`)))
		checkEnvelope(t, []byte(withMembers()+value))
		checkEnvelope(t, []byte(value+withMembers()))
	}
}

func TestChangedEnvelopeIsReadAsByJSONText(t *testing.T) {
	for _, body := range envelopes {
		if _, err := ParseEvent([]byte(body), strict); err != nil || len(body) > 300 {
			continue
		}
		for i := range body {
			checkEnvelope(t, []byte(body[:i]))
			for _, b := range interestingBytes {
				changed := []byte(body)
				changed[i] = b
				checkEnvelope(t, changed)
			}
		}
	}
}

// A body that is accepted must mean the same to every parser. encoding/json
// stands for the others: it takes the last of several members and does not
// look at their case.
func FuzzEnvelope(f *testing.F) {
	for _, body := range envelopes {
		f.Add([]byte(body))
	}
	for _, value := range jsonValues() {
		f.Add([]byte(withMembers(`"data":{"a":` + value + `}`)))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		original := bytes.Clone(body)
		checkJSON(t, body)
		checkEnvelope(t, body)
		e, err := ParseEvent(body, strict)
		if !bytes.Equal(body, original) {
			t.Fatal("the body was changed")
		}
		if err != nil {
			return
		}
		if l, err := ParseEvent(body, lenient); err != nil || l.ID != e.ID || l.Type != e.Type {
			t.Fatalf("strict gave %+v, lenient %+v, %v", e, l, err)
		}
		var other struct {
			ID        string
			Type      string
			CreatedAt string
			Data      json.RawMessage
		}
		if err := json.Unmarshal(body, &other); err != nil {
			t.Fatalf("accepted what encoding/json does not: %v", err)
		}
		if other.ID != e.ID || other.Type != e.Type || other.CreatedAt != string(e.CreatedAt) || !bytes.Equal(other.Data, e.Data) {
			t.Fatalf("read %+v, encoding/json %+v", e, other)
		}
		if e.ID == "" || e.Type == "" || e.Created.IsZero() && !strings.HasPrefix(string(e.CreatedAt), "0001-01-01") {
			t.Fatalf("incomplete: %+v", e)
		}
	})
}

// Errors are logged, and payloads must not be.
func TestErrorsOfTheEnvelopeAreShortAndShowNothingOfData(t *testing.T) {
	for name, body := range map[string]string{
		"invalid literal":  withMembers(`"data":{"+43 660 1234567":{"diagnosis":tru}}`),
		"cut off":          `{"id":"evt_1","type":"message.sent","data":{"diagnosis":{"+43 660 1234567":"x`,
		"repeated name":    withMembers(`"` + strings.Repeat("x", 100_000) + `":1,"` + strings.Repeat("x", 100_000) + `":2`),
		"endless fraction": withMembers(`"createdAt":"2026-06-01T14:32:00.` + strings.Repeat("0", 100_000) + `Z"`),
	} {
		_, err := ParseEvent([]byte(body), Requirements{CreatedAt: true, Data: true})
		if err == nil {
			t.Errorf("%s is accepted", name)
			continue
		}
		if text := err.Error(); len(text) > 200 || strings.Contains(text, "diagnosis") || strings.Contains(text, "+43") {
			t.Errorf("%s: the error is %.300q", name, text)
		}
	}
}
