package option

import (
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// dispense returns a dispenser at the option of a line.
func dispense(line string) *caddyfile.Dispenser {
	d := caddyfile.NewTestDispenser(line)
	d.Next()
	return d
}

// expectError fails the test unless an error is as wanted: none, or one that
// contains a text.
func expectError(t *testing.T, line string, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("%s: the error is %v, want %q", line, err, want)
	}
}

func TestNumbersMustBeGreaterThanZero(t *testing.T) {
	for value, want := range map[int]string{1: "", 0: "capacity must be greater than zero", -1: "capacity must be greater than zero"} {
		expectError(t, "int", Positive("capacity", value), want)
		expectError(t, "int64", Positive("capacity", int64(value)), want)
		expectError(t, "duration", Positive("capacity", caddy.Duration(value)), want)

		resolved, err := Resolve("capacity", &value, 7)
		expectError(t, "given", err, want)
		if resolved != value {
			t.Errorf("%d is resolved to %d", value, resolved)
		}
	}
	if resolved, err := Resolve("capacity", nil, 7); resolved != 7 || err != nil {
		t.Errorf("the default is %d, %v", resolved, err)
	}
}

func TestChoiceHasADefaultAndOneAlternative(t *testing.T) {
	for value, want := range map[string]bool{"": false, "strict": false, "lenient": true} {
		if got, err := Choice("envelope", value, "strict", "lenient"); got != want || err != nil {
			t.Errorf("%q: %t, %v", value, got, err)
		}
	}
	for _, value := range []string{"Strict", "lenient ", "off"} {
		_, err := Choice("envelope", value, "strict", "lenient")
		expectError(t, value, err, "envelope must be strict or lenient, not ")
	}
}

func TestSizes(t *testing.T) {
	const invalid, zero = "max_size must be a size such as 512KiB or 1MB", "max_size must be greater than zero"
	for text, want := range map[string]struct {
		size int64
		err  string
	}{
		"1":                    {1, ""},
		"10B":                  {10, ""},
		"1MB":                  {1_000_000, ""},
		"1MiB":                 {1 << 20, ""},
		"1.5 kib":              {1536, ""},
		"7EiB":                 {7 << 60, ""},
		"0":                    {0, zero},
		"0.1B":                 {0, zero},
		"-1":                   {0, invalid},
		"large":                {0, invalid},
		"":                     {0, invalid},
		"8EiB":                 {0, invalid}, // more than an int64
		"99999999999999999999": {0, invalid},
	} {
		size, err := ParseSize("max_size", text)
		expectError(t, text, err, want.err)
		if size != want.size {
			t.Errorf("%q is %d, want %d", text, size, want.size)
		}
		if text == "" || strings.Contains(text, " ") {
			continue
		}
		given, err := Size(dispense("max_size " + text))
		expectError(t, text, err, want.err)
		if err == nil && *given != want.size {
			t.Errorf("%q in a Caddyfile is %d, want %d", text, *given, want.size)
		}
	}
	for line, want := range map[string]string{"max_size": "rong argument count", "max_size 1 2": "rong argument count", `max_size ""`: "max_size is empty"} {
		_, err := Size(dispense(line))
		expectError(t, line, err, want)
	}
}

func TestDurations(t *testing.T) {
	for line, want := range map[string]struct {
		duration time.Duration
		err      string
	}{
		"max_age 90s":    {90 * time.Second, ""},
		"max_age 7d":     {7 * 24 * time.Hour, ""},
		"max_age 0":      {0, "max_age must be greater than zero"},
		"max_age -1h":    {0, "max_age must be greater than zero"},
		"max_age 90":     {0, "max_age must be a duration such as 30s or 24h"},
		`max_age ""`:     {0, "max_age is empty"},
		"max_age":        {0, "rong argument count"},
		"max_age 1h 30m": {0, "rong argument count"},
	} {
		duration, err := Duration(dispense(line))
		expectError(t, line, err, want.err)
		if err == nil && time.Duration(*duration) != want.duration {
			t.Errorf("%s is %s, want %s", line, time.Duration(*duration), want.duration)
		}
	}
}

func TestCounts(t *testing.T) {
	for line, want := range map[string]string{
		"capacity 12":  "",
		"capacity 0":   "capacity must be a whole number greater than zero",
		"capacity 1.5": "capacity must be a whole number greater than zero",
		"capacity":     "rong argument count",
	} {
		n, err := Count(dispense(line))
		expectError(t, line, err, want)
		if err == nil && *n != 12 {
			t.Errorf("%s is read as %d", line, *n)
		}
	}
}

func TestWordIsTheOnlyArgument(t *testing.T) {
	for line, want := range map[string]string{"scope orders": "", `scope "two words"`: "", "scope": "rong argument count", "scope a b": "rong argument count", `scope ""`: "scope is empty"} {
		word, err := Word(dispense(line))
		expectError(t, line, err, want)
		if want == "" && word != strings.Trim(strings.TrimPrefix(line, "scope "), `"`) {
			t.Errorf("%s is read as %q", line, word)
		}
	}
}

func TestOptionsAreGivenOnce(t *testing.T) {
	expectError(t, "first", Once(dispense("scope a"), false), "")
	expectError(t, "second", Once(dispense("scope a"), true), "scope is given more than once")
}
