package caddytest

import (
	"strings"
	"testing"
)

// Replace replaces pairs of old and new in a text of the docs or the examples.
// Each old must be there, so that the test notices when the text changes.
func Replace(t testing.TB, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("there is no %q in\n%s", pairs[i], text)
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}
