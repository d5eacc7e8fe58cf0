package buzzbip

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// blocks returns the fenced blocks of the README in a language.
func blocks(t *testing.T, language string) (found []string) {
	t.Helper()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, more := strings.Cut(string(readme), "```"+language+"\n")
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
	examples := blocks(t, "json")
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
	if err := json.Unmarshal(adapt(t, blocks(t, "caddyfile")[0]), &config); err != nil {
		t.Fatal(err)
	}
	config.Admin = &caddy.AdminConfig{Disabled: true}
	if err := caddy.Validate(&config); err != nil {
		t.Error(err)
	}
}

func TestREADMENamesEveryOptionAndReason(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"max_body_size", "read_timeout", "delivery_timeout", "duplicate_wait", "max_age", "retention", "scope",
		"store", "on_conflict", "dedupe off", "secret", "events", "envelope"}
	for _, line := range strings.Split(reasonsInContract, "\n") {
		names = append(names, strings.Fields(line)[1])
	}
	missing := slices.DeleteFunc(names, func(name string) bool { return strings.Contains(string(readme), "| `"+name+"`") })
	if len(missing) > 0 {
		t.Errorf("the README has no row for %q", missing)
	}
}
