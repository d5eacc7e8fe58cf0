package buzzbip

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

const (
	readme          = "README.md"
	configuration   = "docs/CONFIGURATION.md"
	troubleshooting = "docs/TROUBLESHOOTING.md"
)

// docsPage returns a page of the documentation.
func docsPage(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.FromSlash(path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// section returns a section of a page, up to the next heading of its level or above.
func section(t *testing.T, path, heading string) string {
	t.Helper()
	_, text, found := strings.Cut(docsPage(t, path), "\n"+heading+"\n")
	if !found {
		t.Fatalf("%s has no %q", path, heading)
	}
	level, _, _ := strings.Cut(heading, " ")
	return regexp.MustCompile(fmt.Sprintf(`\n#{2,%d} `, len(level))).Split(text, 2)[0]
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

func TestJSONOfTheDocsLoads(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", caddytest.Secret)
	examples := blocks(docsPage(t, configuration), "json")
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

func TestCaddyfilesOfTheREADMELoad(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", caddytest.Secret)
	for _, block := range blocks(docsPage(t, readme), "caddyfile") {
		var config caddy.Config
		if err := json.Unmarshal(adapt(t, block), &config); err != nil {
			t.Fatal(err)
		}
		config.Admin = &caddy.AdminConfig{Disabled: true}
		if err := caddy.Validate(&config); err != nil {
			t.Errorf("%v\n%s", err, block)
		}
	}
}

func TestDocsNameEveryOptionAndReason(t *testing.T) {
	text := docsPage(t, configuration)
	names := []string{"max_body_size", "read_timeout", "delivery_timeout", "answer_within", "max_in_flight", "max_age", "retention", "scope",
		"store", "on_conflict", "dedupe off", "enforce off", "inbox", "secret", "events", "envelope"}
	for _, reason := range webhook.Reasons {
		names = append(names, string(reason))
	}
	missing := slices.DeleteFunc(names, func(name string) bool { return strings.Contains(text, "| `"+name+"`") })
	if len(missing) > 0 {
		t.Errorf("%s has no row for %q", configuration, missing)
	}
}

func TestDocsSayTheDefaultsOfTheInbox(t *testing.T) {
	tuning := docsPage(t, "docs/INBOX.md")
	options := blocks(section(t, configuration, "## Inbox"), "caddyfile")[0]
	var stated, unset inbox.Options
	for name, value := range map[string]string{
		"accept": "on_failure", "retry": "5s 15m", "dead_after": "72h", "concurrency": "8", "max_size": "1GiB", "keep_dead": "30d",
	} {
		if !regexp.MustCompile(`(?m)^\t` + name + ` .*# default ` + value + `\b`).MatchString(options) {
			t.Errorf("%s does not say that %s is %s by default", configuration, name, value)
		}
		if name != "accept" && !strings.Contains(tuning, "| `"+name+"` | `"+value+"` |") {
			t.Errorf("docs/INBOX.md does not say that %s is %s by default", name, value)
		}
		d := caddyfile.NewTestDispenser(name + " " + value)
		d.Next()
		if err := stated.UnmarshalCaddyfileOption(d, "sqlite"); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(stated.Resolve(), unset.Resolve()); err != nil {
		t.Fatal(err)
	}
	got, want := stated.Policy(), unset.Policy()
	got.DeadOn, want.DeadOn = nil, nil // functions
	if !reflect.DeepEqual(got, want) || stated.Capacity() != unset.Capacity() || stated.AcceptsAlways() != unset.AcceptsAlways() {
		t.Errorf("with the defaults that the docs state, the inbox has %+v and %d bytes, without options %+v and %d", got, stated.Capacity(), want, unset.Capacity())
	}
}

// What the docs say of a named route: it is Caddy that keeps one handler only.
func TestNamedRouteOfTheDocsKeepsAllHandlers(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", caddytest.Secret)
	var config string
	for _, block := range blocks(docsPage(t, troubleshooting), "caddyfile") {
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
		port := caddytest.FreePort(t)
		here := strings.Replace(step.config, "hooks.example.com {", fmt.Sprintf("https://localhost:%d {\ntls %s %s", port, certFile, keyFile), 1)
		if err := caddy.Load(adapt(t, testOptions+here), true); err != nil {
			t.Fatal(err)
		}
		expect(t, send(client, signed(fmt.Sprintf("https://localhost:%d/webhooks/buzzbip", port), caddytest.NewEvent())), step.status, "")
	}
	b.expectCount(t, 1)
}

// The docs quote what a Caddy without the plugin says. Here it is said of a
// directive that no Caddy has.
func TestDocsQuoteTheErrorOfACaddyWithoutThePlugin(t *testing.T) {
	const unknown = "buzzbip_webhook_of_nobody"
	_, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(":80 {\n"+unknown+"\n}"), nil)
	if err == nil {
		t.Fatal("the directive is known")
	}
	_, said, _ := strings.Cut(err.Error(), ": ")
	if said = strings.Replace(said, unknown, "buzzbip_webhook", 1); !strings.Contains(docsPage(t, troubleshooting), "`"+said+"`") {
		t.Errorf("%s does not quote %q", troubleshooting, said)
	}
}

// quickstart returns the blocks of the README's quickstart: how to start it, what
// to type into another terminal, and what that prints.
func quickstart(t *testing.T) (run, commands, output string) {
	t.Helper()
	section := section(t, readme, "## Quickstart")
	shell, text := blocks(section, "sh"), blocks(section, "text")
	if len(shell) != 2 || len(text) != 1 {
		t.Fatalf("the section has %d blocks of commands and %d of output, want 2 and 1", len(shell), len(text))
	}
	return shell[0], shell[1], text[0]
}

// buildCaddy builds what `go run ./cmd/caddy` runs, once for all tests.
func buildCaddy(t *testing.T) (binary string) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("the commands of the README are for a Unix shell")
	}
	binary = filepath.Join(filepath.Dir(certFile), "caddy-under-test")
	if err := caddytest.Build(binary); err != nil {
		t.Fatal(err)
	}
	return binary
}

// shell runs commands of the docs word for word, except that `caddy` and
// `go run ./cmd/caddy` are the binary, which was built once.
func shell(binary, dir, commands string) *exec.Cmd {
	cmd := exec.Command("sh", "-c", `
caddy() { $HOW "$CADDY_UNDER_TEST" "$@"; }
go() { shift 2; caddy "$@" || { echo "exit status $?" >&2; return 1; }; }
`+commands)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CADDY_UNDER_TEST="+binary, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	return cmd
}

// startServer runs commands, the last of which is a Caddy that serves url, and returns
// when it does. It returns the address of its admin endpoint, which is not that of
// another Caddy.
func startServer(t *testing.T, binary, dir, commands, url string) (admin string) {
	t.Helper()
	server := shell(binary, dir, commands)
	admin = fmt.Sprintf("localhost:%d", caddytest.FreePort(t))
	// in the place of the shell, so that it gets the signal
	server.Env = append(server.Env, "HOW=exec", "CADDY_ADMIN="+admin)
	var log bytes.Buffer
	server.Stderr = &log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Process.Signal(os.Interrupt)
		server.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	client := newClient(t, "HTTP/1.1")
	caddytest.WaitFor(t, "Caddy to serve "+url, func() bool {
		res, err := client.Get(url)
		if err != nil {
			return false
		}
		defer res.Body.Close()
		_, err = io.Copy(io.Discard, res.Body)
		return err == nil
	})
	return admin
}

// curl makes the request of a command of the docs at an admin endpoint, and returns the
// answer.
func curl(t *testing.T, command, admin string) (answer string) {
	t.Helper()
	parts := regexp.MustCompile(`^curl (?:-s )?(?:-X (POST) )?'?localhost:2019(/[^ ']+)'?(?: -d '([^']+)')?(?: \| jq .+)?$`).FindStringSubmatch(command)
	if parts == nil {
		t.Fatalf("%q is not the form of the other commands", command)
	}
	r, err := http.NewRequest(cmp.Or(parts[1], http.MethodGet), "http://"+admin+parts[2], strings.NewReader(parts[3]))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("%s: %s %s, %v", command, res.Status, text, err)
	}
	return string(text)
}

// The commands of docs/INBOX.md for the admin endpoint, as they are.
func TestInboxIsOperatedAsTheDocsSay(t *testing.T) {
	text := docsPage(t, "docs/INBOX.md")
	config, commands := blocks(text, "caddyfile"), regexp.MustCompile(`(?m)^curl .*$`).FindAllString(text, -1)
	if len(config) != 1 || len(commands) < 9 {
		t.Fatalf("the page has %d configurations and %d commands", len(config), len(commands))
	}
	t.Setenv("BUZZBIP_SECRET", caddytest.Secret)
	binary, dir := buildCaddy(t), t.TempDir()
	address := fmt.Sprintf("localhost:%d", caddytest.FreePort(t))
	config[0] += "reverse_proxy " + caddytest.FreeAddress(t) // nobody is there
	admin := startServer(t, binary, dir, "caddy run --config "+writeFile(t, dir, "Caddyfile", "http://"+address+" {\n"+config[0]+"\n}"), "http://"+address)
	client := newClient(t, "HTTP/1.1")
	for _, id := range []string{"evt_7f3a9b2c", "evt_1d8e0f3a"} {
		expect(t, send(client, signed("http://"+address, caddytest.Event{ID: id}.Body())), http.StatusOK, webhook.ResultStored)
	}
	count := regexp.MustCompile(`"(waiting|events)":(\d+)`)
	selected := make(map[string]string)
	for _, command := range commands {
		if found := count.FindStringSubmatch(curl(t, command, admin)); found != nil {
			selected[command] = found[2]
		}
	}
	for _, command := range commands {
		var want string
		switch {
		case strings.Contains(command, "state=waiting"), strings.Contains(command, `"state":["waiting"]`), strings.Contains(command, "evt_7f3a9b2c"):
			want = "2"
		case strings.Contains(command, `"state":["dead"]`), strings.Contains(command, "contact.updated"):
			want = "0"
		default:
			continue
		}
		if selected[command] != want {
			t.Errorf("%s selects %s events, want %s", command, selected[command], want)
		}
	}
}

// took is how long an answer took.
var took = regexp.MustCompile(`(?m) in [0-9.]+(µs|ms|s)$`)

// The commands of the README, run word for word, print what it says.
func TestQuickstartOfTheREADME(t *testing.T) {
	run, commands, output := quickstart(t)
	const caddyfile = "examples/quickstart/Caddyfile"
	if strings.TrimSpace(run) != "go run ./cmd/caddy run --config "+caddyfile {
		t.Fatalf("the command is %q", run)
	}
	// other ports than the documented ones: somebody may be trying it just now
	config, err := os.ReadFile(caddyfile)
	if err != nil {
		t.Fatal(err)
	}
	port := fmt.Sprintf("localhost:%d", caddytest.FreePort(t))
	text := strings.ReplaceAll(string(config), "localhost:8443", port)
	text = strings.ReplaceAll(text, ":9753", fmt.Sprintf(":%d", caddytest.FreePort(t)))
	binary, dir := buildCaddy(t), t.TempDir()
	mine := writeFile(t, dir, "Caddyfile", text)
	startServer(t, binary, dir, strings.ReplaceAll(run, caddyfile, mine), "https://"+port)
	got, err := shell(binary, dir, strings.ReplaceAll(commands, "localhost:8443", port)).CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) { // the last command fails
		t.Fatalf("%v\n%s", err, got)
	}
	if got, want := took.ReplaceAllString(string(got), ""), took.ReplaceAllString(output, ""); got != want {
		t.Errorf("the commands print\n%s\nbut the README says\n%s", got, want)
	}
}

func writeFile(t *testing.T, dir, name, text string) (path string) {
	t.Helper()
	path = filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The commands with which the README serves an example on localhost.
func TestTryingAnExampleAsTheREADMESays(t *testing.T) {
	commands := blocks(section(t, readme, "### Trying an example on your own machine"), "sh")
	if len(commands) != 3 {
		t.Fatalf("the section has %d blocks of commands, want 3", len(commands))
	}
	binary, dir := buildCaddy(t), t.TempDir()
	address, backend := fmt.Sprintf("localhost:%d", caddytest.FreePort(t)), caddytest.FreeAddress(t)
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for i, command := range commands {
		for _, pair := range [][2]string{
			{"localhost:8080", address}, {"127.0.0.1:9000", backend}, {"/tmp/Caddyfile", filepath.Join(dir, "Caddyfile")},
			{"examples/", filepath.Join(root, "examples") + "/"},
		} {
			command = strings.ReplaceAll(command, pair[0], pair[1])
		}
		commands[i] = command
	}
	// the example has its backend at the port of the README
	commands[0] = strings.Replace(commands[0], "sed '", "sed 's|127.0.0.1:9000|"+backend+"|; ", 1)
	startServer(t, binary, dir, commands[0], "http://"+address)
	startServer(t, binary, dir, commands[1], "http://"+backend)
	got, err := shell(binary, dir, commands[2]).CombinedOutput()
	if err != nil || !strings.Contains(string(got), "answered 200 OK") || !strings.HasSuffix(string(got), "\nprocessed\n") {
		t.Errorf("%v: %s", err, got)
	}
}

// The way in which the docs capture what explain needs.
func TestCapturingARejectedRequestAsTheDocsSay(t *testing.T) {
	if _, err := exec.LookPath("jq"); err != nil {
		t.Fatal("jq is missing: make test installs it")
	}
	t.Setenv("BUZZBIP_SECRET", caddytest.Secret)
	const path = "/var/lib/caddy/captured.log"
	text := section(t, troubleshooting, "## Capturing a rejected request")
	config, commands := blocks(text, "caddyfile"), blocks(text, "sh")
	if len(config) != 1 || len(commands) != 1 {
		t.Fatalf("the section has %d configurations and %d blocks of commands", len(config), len(commands))
	}
	binary, dir := buildCaddy(t), t.TempDir()
	captured := filepath.Join(dir, "captured.log")
	address := fmt.Sprintf("localhost:%d", caddytest.FreePort(t))
	caddyfile := strings.Replace(config[0], path, captured, 1)
	caddyfile = strings.Replace(caddyfile, "hooks.example.com", "http://"+address, 1)
	caddyfile = strings.Replace(caddyfile, "# as before: buzzbip_webhook, reverse_proxy", "buzzbip_webhook {env.BUZZBIP_SECRET}\nrespond processed", 1)
	if strings.Contains(caddyfile, "#") {
		t.Fatalf("a comment is left: %s", caddyfile)
	}
	startServer(t, binary, dir, "caddy run --config "+writeFile(t, dir, "Caddyfile", caddyfile), "http://"+address)
	url := "http://" + address + "/webhooks/buzzbip"
	client := newClient(t, "HTTP/1.1")
	const otherSecret = "the-secret-of-another-webhook"
	body := strings.Replace(caddytest.NewEvent(), "hello", `höllo \"you\" <\/p>\u00e9\n`, 1)
	forged := signed(url, body)
	forged.Header.Set(webhook.SignatureHeader, caddytest.SignWith(otherSecret, body))
	expect(t, send(client, forged), http.StatusUnauthorized, "")
	expect(t, send(client, signed(url, body)), http.StatusOK, "")
	caddytest.WaitFor(t, "both requests in the log", func() bool {
		logged, _ := os.ReadFile(captured)
		return strings.Count(string(logged), "signature_mismatch") == 1 && strings.Count(string(logged), `"delivered"`) == 1
	})
	explain := shell(binary, dir, strings.ReplaceAll(commands[0], path, captured))
	explain.Env = append(explain.Env, "BUZZBIP_SECRET="+otherSecret)
	if out, err := explain.CombinedOutput(); err != nil || !strings.Contains(string(out), "accepted: the signature is right") {
		t.Errorf("%v: %s", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "body.json")); err != nil || string(got) != body {
		t.Errorf("captured is %q, %v, want %q", got, err, body)
	}
}
