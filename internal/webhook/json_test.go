package webhook

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// jsonValues are valid and invalid values at the limits of the grammar.
func jsonValues() []string {
	values := []string{
		"", "{", "[", `"`, `"\`, "-", "{}", "[]", "{ }", "[\t]", "[\r\n]", "[\v]", "[\f]", "[\u00a0]", "[\x00]",
		"0", "-0", "00", "01", "-01", "+1", "1.", ".5", "-.5", "1.5", "1.50", "1..5", "1.e5", "1e", "1e+", "1e-", "1E+5", "1e05", "1e5.5", "0e0", "0x1", "1_0", "--1", "NaN", "Infinity",
		"true", "false", "null", "tru", "truE", "True", "fals", "nul", "nulll", "t", "f", "n", "undefined",
		`""`, `"a`, `"\"`, `"\""`, `"\\"`, `"\\\"`, `"\/\b\f\n\r\t"`, `"\v"`, `"\'"`, `"\U0041"`, `"\x41"`,
		`"\u"`, `"\u0"`, `"\u00"`, `"\u004"`, `"\u0041"`, `"\uABCD\uabcd"`, `"\u00g0"`, `"\ug000"`, `"\u000g"`, `"\u 041"`, `"\u-041"`, `"\u004`, `"\u0041`,
		`"\ud83d\ude00"`, `"\ud83d"`, `"\ude00\ud83d"`, `"\ud83d\u"`, `"\ud83d\n"`,
		"\"\t\"", "\"\n\"", "\"\x00\"", "\"\x1f\"", "\"\x7f\"", "\"\u0080\u2028\"", "'a'", "`a`",
		"[,]", "[1,]", "[,1]", "[1,,2]", "[1 2]", "[1", "[1,", "[1}", "[1]]", "[ 1 , 2 ]", `["a" "b"]`, "[:]", "[1:2]",
		`{,}`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{,"a":1}`, `{"a":1,,"b":2}`, `{"a":1 "b":2}`, `{"a" 1}`, `{"a"::1}`, `{"a":1`, `{"a":1,`, `{"a":1]`, `{"a"`, `{"a":`,
		`{ "a" : 1 , "b" : 2 }`, "{\r\n\t\"a\"\r\n\t:\r\n\t1\r\n}", `{a:1}`, `{1:1}`, `{null:1}`, `{'a':1}`, `{"a":1}}`, `{"a":1,"a":2}`, `[{"a":[{}]},[]]`,
		"// comment", "/**/1", "1 2", "[] []", "\ufeff1",
	}
	// Strings are looked at 8 bytes at a time: each kind of byte at each place, next
	// to bytes that a subtraction could borrow from.
	for length := range 20 {
		for _, special := range []string{`"`, `\`, `\"`, `\\`, "\x00", "\n", "\x1f", " ", "!", "#", "[", "]", "\x7f", "ü", "�", "😀"} {
			for _, fill := range []string{"a", "\x7f", "ü", " ", "!", "#", "]"} {
				values = append(values, `"`+strings.Repeat(fill, length)+special+strings.Repeat(fill, 9)+`"`)
			}
			values = append(values, `"`+strings.Repeat("a", length)+special)
		}
	}
	for _, n := range []int{98, 99, 100, 101, 102} {
		values = append(values, nested(n),
			strings.Repeat("[", n)+strings.Repeat("]", n),
			strings.Repeat(`[{"a":`, n/2)+strings.Repeat("[", n%2)+strings.Repeat("]", n%2)+strings.Repeat("}]", n/2))
	}
	return values
}

// checkJSON compares what this package and encoding/json say of a text.
func checkJSON(t *testing.T, text []byte) {
	t.Helper()
	if !utf8.Valid(text) {
		return
	}
	end, err := skipValue(text, skipSpace(text, 0), 0)
	if errors.Is(err, errTooDeep) {
		return
	}
	if end < 0 || end > len(text) {
		t.Fatalf("%q: the index is %d", text, end)
	}
	valid := err == nil && skipSpace(text, end) == len(text)
	if valid != json.Valid(text) {
		t.Fatalf("%q: valid %v, for encoding/json %v (%d, %v)", text, valid, !valid, end, err)
	}
}

func TestJSONIsWhatEncodingJSONTakesForIt(t *testing.T) {
	for _, value := range jsonValues() {
		for _, text := range []string{value, " " + value + "\n", "[" + value + "]", `{"a":` + value + `}`, `{` + value + `:1}`, value + ","} {
			checkJSON(t, []byte(text))
		}
	}
}

func TestDepthOfJSONIsLimited(t *testing.T) {
	for name, text := range map[string]func(n int) string{
		"objects": nested,
		"arrays":  func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) },
	} {
		if _, err := skipValue([]byte(text(maxDepth)), 0, 0); err != nil {
			t.Errorf("%s, %d deep: %v", name, maxDepth, err)
		}
		for _, n := range []int{maxDepth + 1, 1_000_000} {
			if _, err := skipValue([]byte(text(n)), 0, 0); !errors.Is(err, errTooDeep) {
				t.Errorf("%s, %d deep: %v", name, n, err)
			}
		}
	}
}

func TestInvalidJSONIsReportedWhereItIs(t *testing.T) {
	for text, want := range map[string]struct {
		at  int
		err error
	}{
		`{"a":`:            {5, errCutOff},
		`{"a":1`:           {6, errCutOff},
		`["a`:              {3, errCutOff},
		`[-`:               {2, errCutOff},
		`{"a":+1}`:         {5, errNoValue},
		`[true,nul]`:       {6, errNoValue},
		`{"a":1,}`:         {7, errNoName},
		`{"a" 1}`:          {5, errNoColon},
		`{"a":1 "b":2}`:    {7, errInObject},
		`{"a":01}`:         {6, errInObject},
		`["a" "b"]`:        {5, errInArray},
		"[\"a\n\"]":        {3, errControl},
		`["0123456789\x"]`: {12, errEscape},
		`["\u00g0"]`:       {2, errEscape},
		`[1.]`:             {3, errNotNumber},
		`[1e+]`:            {4, errNotNumber},
	} {
		if i, err := skipValue([]byte(text), 0, 0); i != want.at || err != want.err {
			t.Errorf("%s: at %d: %v; want %d: %v", text, i, err, want.at, want.err)
		}
	}
}

// interestingBytes are those that the grammar is about, and their neighbors.
var interestingBytes = []byte("\x00\t\n\x1f !\"#+-.019:,[\\]eu{}\x7f\x80\xbf\xc3\xff")

func TestChangedBytesAreJudgedAsByEncodingJSON(t *testing.T) {
	for _, text := range []string{
		`{"a":[true,false,null,-12.5e+7,{"\u00e9\n":"x"}],"bcdefghijklm":""}`,
		"{\r\n\t\"Zoë\" : [ ] , \"x\\\\\" : { } \r\n}",
		`["0123456789abcdef\"","\ud83d\ude00",[[0]],0.1,1E2]`,
	} {
		for i := range text {
			checkJSON(t, []byte(text[:i]))
			for _, b := range interestingBytes {
				checkJSON(t, slices.Concat([]byte(text[:i]), []byte{b}, []byte(text[i+1:])))
				checkJSON(t, slices.Concat([]byte(text[:i]), []byte{b}, []byte(text[i:])))
			}
		}
	}
}
