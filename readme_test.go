package buzzbip

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
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
	for _, reason := range webhook.Reasons {
		names = append(names, string(reason))
	}
	missing := slices.DeleteFunc(names, func(name string) bool { return strings.Contains(readme, "| `"+name+"`") })
	if len(missing) > 0 {
		t.Errorf("the README has no row for %q", missing)
	}
}

// What the README says of a named route: it is Caddy that keeps one handler only.
func TestNamedRouteOfTheREADMEKeepsAllHandlers(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", testSecret)
	var config string
	for _, block := range blocks(section(t, "## Troubleshooting"), "caddyfile") {
		if strings.Contains(block, "&(") {
			config = block
		}
	}
	b := newBackend(t, nil)
	config = strings.Replace(config, "127.0.0.1:9000", b.address(), 1)
	without := regexp.MustCompile(`\troute \{\n([^}]*\}[^}]*)\}`).ReplaceAllString(config, "$1")
	if without == config {
		t.Fatalf("there is no route in %s", config)
	}
	stopAtEnd(t)
	client := newClient(t, "HTTP/2.0")
	for _, step := range []struct {
		config string
		status int
	}{{config, http.StatusOK}, {without, http.StatusNotFound}} {
		port := freePort(t)
		here := strings.Replace(step.config, "hooks.example.com {", fmt.Sprintf("https://localhost:%d {\ntls %s %s", port, certFile, keyFile), 1)
		if err := caddy.Load(adapt(t, testOptions+here), true); err != nil {
			t.Fatal(err)
		}
		expect(t, send(client, signed(fmt.Sprintf("https://localhost:%d/webhooks/buzzbip", port), eventBody(newID()))), step.status, "")
	}
	b.expectCount(t, 1)
}

// The README quotes what a Caddy without the plugin says. Here it is said of a
// directive that no Caddy has.
func TestREADMEQuotesTheErrorOfACaddyWithoutThePlugin(t *testing.T) {
	const unknown = "buzzbip_webhook_of_nobody"
	_, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(":80 {\n"+unknown+"\n}"), nil)
	if err == nil {
		t.Fatal("the directive is known")
	}
	_, said, _ := strings.Cut(err.Error(), ": ")
	if said = strings.Replace(said, unknown, "buzzbip_webhook", 1); !strings.Contains(readme(t), "`"+said+"`") {
		t.Errorf("the README does not quote %q", said)
	}
}

// The layout in docs/ARCHITECTURE.md has every file that a newcomer may look for,
// and none that has moved.
func TestArchitectureNamesTheFilesThatThereAre(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("docs", "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	err = filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			files = append(files, filepath.ToSlash(path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	links := regexp.MustCompile(`https?://[^)\s]+`)
	named := regexp.MustCompile(`[\w./-]+\.(go|html|json)\b`).FindAllString(links.ReplaceAllString(string(text), ""), -1)
	for _, name := range named {
		if !slices.ContainsFunc(files, func(file string) bool { return file == name || path.Base(file) == name }) {
			t.Errorf("there is no %s", name)
		}
	}
	for _, file := range files {
		if dir := path.Dir(file); dir != "." && dir != "internal/cli" || path.Ext(file) != ".go" || strings.HasSuffix(file, "_test.go") {
			continue
		}
		if !slices.Contains(named, path.Base(file)) {
			t.Errorf("it does not name %s", file)
		}
	}
}

// What CONTRIBUTING says of the one tool in the main go.mod.
func TestToolsAreNotPartOfThePlugin(t *testing.T) {
	packages, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(packages), "xcaddy") {
		t.Error("the plugin imports xcaddy")
	}
}
