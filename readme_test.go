package buzzbip

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// section returns a section of the README, up to the next heading of its level.
func section(t *testing.T, heading string) string {
	t.Helper()
	_, text, found := strings.Cut(readme(t), "\n"+heading+"\n")
	if !found {
		t.Fatalf("the README has no %q", heading)
	}
	level, _, _ := strings.Cut(heading, " ")
	text, _, _ = strings.Cut(text, "\n"+level+" ")
	return text
}

// blocks returns the fenced blocks in a language.
func blocks(markdown, language string) (found []string) {
	_, rest, more := strings.Cut(markdown, "```"+language+"\n")
	for more {
		var block string
		block, rest, _ = strings.Cut(rest, "```")
		found = append(found, block)
		_, rest, more = strings.Cut(rest, "```"+language+"\n")
	}
	return found
}

func TestJSONOfTheREADMELoads(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", testSecret)
	examples := blocks(readme(t), "json")
	if len(examples) != 1 {
		t.Fatalf("%d examples", len(examples))
	}
	var config caddy.Config
	if err := json.Unmarshal([]byte(examples[0]), &config); err != nil {
		t.Fatal(err)
	}
	config.Admin = &caddy.AdminConfig{Disabled: true}
	if err := caddy.Validate(&config); err != nil {
		t.Error(err)
	}
}

func TestCaddyfileOfTheREADMELoads(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", testSecret)
	var config caddy.Config
	if err := json.Unmarshal(adapt(t, blocks(readme(t), "caddyfile")[0]), &config); err != nil {
		t.Fatal(err)
	}
	config.Admin = &caddy.AdminConfig{Disabled: true}
	if err := caddy.Validate(&config); err != nil {
		t.Error(err)
	}
}

func TestREADMENamesEveryOptionAndReason(t *testing.T) {
	readme := readme(t)
	names := []string{"max_body_size", "read_timeout", "delivery_timeout", "duplicate_wait", "max_age", "retention", "scope",
		"store", "on_conflict", "dedupe off", "secret", "events", "envelope"}
	for _, line := range strings.Split(reasonsInContract, "\n") {
		names = append(names, strings.Fields(line)[1])
	}
	missing := slices.DeleteFunc(names, func(name string) bool { return strings.Contains(readme, "| `"+name+"`") })
	if len(missing) > 0 {
		t.Errorf("the README has no row for %q", missing)
	}
}
