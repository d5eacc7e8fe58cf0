package buzzbip

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// startExample runs an example as it is but for its addresses, which become
// those of this test. replacements are pairs of old and new.
func startExample(t *testing.T, name string, replacements ...string) *site {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("examples", name, "Caddyfile"))
	if err != nil {
		t.Fatal(err)
	}
	adapt(t, string(text)) // as it is
	port := freePort(t)
	replacements = append(replacements, "hooks.example.com {", fmt.Sprintf("https://localhost:%d {\n\ttls %s %s", port, certFile, keyFile))
	config := string(text)
	// global options of its own join those of the tests
	if leading, rest, ok := strings.Cut(config, "\n{\n"); ok && !strings.Contains(leading, "{") {
		options := strings.TrimSuffix(testOptions, "}\n")
		if strings.Contains(rest, "\n\tlog {\n") { // its log, where the tests can read it
			options, _, _ = strings.Cut(options, "\tlog {\n")
			rest = strings.Replace(rest, "\n\tlog {\n", "\n\tlog {\n\t\toutput test\n", 1)
		}
		config = options + rest
	} else {
		config = testOptions + config
	}
	for i := 0; i < len(replacements); i += 2 {
		if !strings.Contains(config, replacements[i]) {
			t.Fatalf("the example has no %s", replacements[i])
		}
		config = strings.ReplaceAll(config, replacements[i], replacements[i+1])
	}
	s := &site{t: t, url: fmt.Sprintf("https://localhost:%d/webhooks/buzzbip", port)}
	logged.Lock()
	logged.text.Reset()
	logged.Unlock()
	stopAtEnd(t)
	if err := caddy.Load(adapt(t, config), true); err != nil {
		t.Fatalf("loading: %v", err)
	}
	// what BuzzBip sends to a mistyped path is not to be lost
	elsewhere := signed(s.url+"-elsewhere", eventBody(newID()))
	expect(t, send(newClient(t, "HTTP/2.0"), elsewhere), http.StatusNotFound, "")
	return s
}

func TestExampleExistingBackend(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", testSecret)
	b := newBackend(t, nil)
	s := startExample(t, "existing-backend", "127.0.0.1:9000", b.address())
	client := newClient(t, "HTTP/2.0")
	body := eventBody(newID())
	expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
	expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
	b.expectCount(t, 1)
	if got := await(t, b.arrived, "the delivery"); got.body != body {
		t.Errorf("the backend got %q", got.body)
	}
}

func TestFirstExampleHasAnAccessLogWithoutSignatures(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", testSecret)
	b := newBackend(t, nil)
	s := startExample(t, "existing-backend", "127.0.0.1:9000", b.address())
	client := newClient(t, "HTTP/2.0")
	id, failing := newID(), newID()
	delivered, failed, forged := signed(s.url, eventBody(id)), signed(s.url, eventBody(failing)), signed(s.url, eventBody(newID()))
	forged.Header.Set(webhook.SignatureHeader, signature("some-other-secret", "of-another-body"))
	expect(t, send(client, delivered), http.StatusOK, "")
	expect(t, send(client, forged), http.StatusUnauthorized, "")
	b.Close()
	expect(t, send(client, failed), http.StatusBadGateway, "")
	for _, text := range []string{
		fmt.Sprintf(`"buzzbip_event_id":%q,"buzzbip_event_type":"message.received","buzzbip_result":"delivered"`, id),
		fmt.Sprintf(`"buzzbip_event_id":%q,"buzzbip_event_type":"message.received","buzzbip_result":"failed"`, failing),
		`"buzzbip_result":"rejected","buzzbip_reason":"signature_mismatch"`,
		`"http.log.error"`,
	} {
		waitFor(t, text+" in the log", func() bool { return strings.Contains(s.logs(), text) })
	}
	for _, r := range []*http.Request{delivered, failed, forged} {
		if strings.Contains(s.logs(), r.Header.Get(webhook.SignatureHeader)) {
			t.Errorf("a signature is in the log:\n%s", s.logs())
		}
	}
}

func TestExampleRouteByEventType(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", testSecret)
	messages, vip, contacts := newBackend(t, nil), newBackend(t, nil), newBackend(t, nil)
	s := startExample(t, "route-by-event-type", "127.0.0.1:9001", messages.address(), "127.0.0.1:9002", vip.address(), "127.0.0.1:9003", contacts.address())
	client := newClient(t, "HTTP/2.0")
	event := func(typ, data string) string {
		return fmt.Sprintf(`{"id":%q,"type":%q,"createdAt":%q,"data":%s}`, newID(), typ, time.Now().Format(time.RFC3339), data)
	}
	for i, step := range []struct {
		body   string
		to     *backend
		result webhook.Result
	}{
		{event("message.received", `{}`), messages, ""},
		{event("contact.created", `{"contact":{"vip":true}}`), vip, ""},
		{event("contact.updated", `{"contact":{"vip":false}}`), contacts, ""},
		{event("conversation.opened", `{}`), nil, webhook.ResultIgnored},
	} {
		before := messages.count() + vip.count() + contacts.count()
		expect(t, send(client, signed(s.url, step.body)), http.StatusOK, step.result)
		if step.to == nil {
			if messages.count()+vip.count()+contacts.count() != before {
				t.Errorf("step %d reached a backend", i)
			}
			continue
		}
		if got := await(t, step.to.arrived, "the delivery"); got.body != step.body {
			t.Errorf("step %d: the backend got %q", i, got.body)
		}
	}
}

func TestExampleSeveralWorkspaces(t *testing.T) {
	const supportSecret = "the-secret-of-the-support-workspace"
	t.Setenv("BUZZBIP_SECRET_SHOP", testSecret)
	t.Setenv("BUZZBIP_SECRET_SUPPORT", supportSecret)
	shop, support := newBackend(t, nil), newBackend(t, nil)
	s := startExample(t, "several-workspaces", "127.0.0.1:9001", shop.address(), "127.0.0.1:9002", support.address())
	client := newClient(t, "HTTP/2.0")
	body := eventBody(newID())
	expect(t, send(client, signed(s.url+"/shop", body)), http.StatusOK, "")
	expect(t, send(client, signed(s.url+"/support", body)), http.StatusUnauthorized, "")
	r := signed(s.url+"/support", body)
	r.Header.Set(webhook.SignatureHeader, signature(supportSecret, body))
	expect(t, send(client, r), http.StatusOK, "")
	shop.expectCount(t, 1)
	support.expectCount(t, 1)
	answer := httptest.NewRecorder()
	if err := serveAdmin(answer, httptest.NewRequest(http.MethodGet, adminapi.Path+"scopes", nil)); err != nil {
		t.Fatal(err)
	}
	for _, scope := range []string{"secret:shop", "secret:support"} {
		if !strings.Contains(answer.Body.String(), `"`+scope+`"`) {
			t.Errorf("there is no scope %s in %s", scope, answer.Body)
		}
	}
}

func TestExampleSecretRotation(t *testing.T) {
	const newSecret = "the-secret-after-the-rotation"
	dir := t.TempDir()
	write := func(name, secret string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("buzzbip", testSecret)
	write("buzzbip_previous", testSecret)
	b := newBackend(t, nil)
	s := startExample(t, "secret-rotation", "/run/secrets", dir, "127.0.0.1:9000", b.address())
	client := newClient(t, "HTTP/2.0")
	post := func(secret, body string) response {
		r := signed(s.url, body)
		r.Header.Set(webhook.SignatureHeader, signature(secret, body))
		return send(client, r)
	}
	retried := eventBody(newID())
	seen := func(label string) {
		t.Helper()
		if got := await(t, b.arrived, "the delivery").Header.Get("X-BuzzBip-Secret"); got != label {
			t.Errorf("the backend sees the secret %q, want %q", got, label)
		}
	}
	expect(t, post(testSecret, retried), http.StatusOK, "")
	seen("current")

	write("buzzbip", newSecret) // the step that needs no reload
	waitFor(t, "the new secret to be in force", func() bool {
		time.Sleep(20 * time.Millisecond)
		return post(newSecret, eventBody(newID())).status == http.StatusOK
	})
	seen("current")
	expect(t, post(testSecret, eventBody(newID())), http.StatusOK, "")
	seen("previous")
	expect(t, post(newSecret, retried), http.StatusOK, webhook.ResultDuplicate)
}

func TestExampleErrorPages(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", testSecret)
	down := newBackend(t, nil)
	down.Close()
	s := startExample(t, "error-pages", "127.0.0.1:9000", down.address())
	client := newClient(t, "HTTP/2.0")
	forged := signed(s.url, eventBody(newID()))
	forged.Header.Del(webhook.SignatureHeader)
	for want, r := range map[string]*http.Request{
		`{"status": 401, "reason": "signature_missing"}`: forged,
		`{"status": 502}`: signed(s.url, eventBody(newID())),
	} {
		got := send(client, r)
		if got.body != want || got.header.Get("Content-Type") != "application/json" {
			t.Errorf("answered %d %q with %v, want %q", got.status, got.body, got.header, want)
		}
	}
}

func TestExampleStickyByConversation(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", testSecret)
	backends := []*backend{newBackend(t, nil), newBackend(t, nil), newBackend(t, nil)}
	s := startExample(t, "sticky-by-conversation",
		"127.0.0.1:9001", backends[0].address(), "127.0.0.1:9002", backends[1].address(), "127.0.0.1:9003", backends[2].address())
	client := newClient(t, "HTTP/2.0")
	const conversations, events = 20, 5
	for range events {
		for c := range conversations {
			body := fmt.Sprintf(`{"id":%q,"type":"message.received","createdAt":%q,"data":{"conversation":{"id":"cnv_%d"}}}`,
				newID(), time.Now().Format(time.RFC3339), c)
			expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
		}
	}
	home := make(map[string]int)
	used := make(map[int]bool)
	for i, b := range backends {
		for _, r := range b.requests {
			c := r.Header.Get("X-Conversation")
			if h, known := home[c]; known && h != i {
				t.Errorf("%s went to two backends", c)
			}
			home[c] = i
			used[i] = true
		}
	}
	if len(home) != conversations || len(used) < 2 {
		t.Errorf("%d conversations went to %d backends", len(home), len(used))
	}
}

func TestExampleLoadBalanced(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", testSecret)
	down, up := newBackend(t, nil), newBackend(t, nil)
	down.Close()
	s := startExample(t, "load-balanced", "127.0.0.1:9001", down.address(), "127.0.0.1:9002", up.address())
	client := newClient(t, "HTTP/2.0")
	for range 10 {
		expect(t, send(client, signed(s.url, eventBody(newID()))), http.StatusOK, "")
	}
	up.expectCount(t, 10)
}

func TestExampleDurable(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", testSecret)
	b := newBackend(t, nil)
	path := filepath.Join(t.TempDir(), "events.db")
	client := newClient(t, "HTTP/2.0")
	body := eventBody(newID())
	for restart, want := range []webhook.Result{"", webhook.ResultDuplicate} {
		s := startExample(t, "durable", "127.0.0.1:9000", b.address(), "/var/lib/caddy/buzzbip/events.db", path)
		expect(t, send(client, signed(s.url, body)), http.StatusOK, want)
		if restart == 0 {
			if err := caddy.Stop(); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.expectCount(t, 1)
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

// That instances act as one is tested in e2e, with processes.
func TestExampleCluster(t *testing.T) {
	server := redistest.Start(t)
	t.Setenv("BUZZBIP_SECRET", testSecret)
	shared := t.TempDir()
	t.Setenv("SHARED_STORAGE", shared)
	t.Setenv("REDIS_URL", server.URL())
	b := newBackend(t, nil)
	// with a site of Caddy's own authority, which it keeps in the storage
	own := fmt.Sprintf("https://own.localhost:%d {\n\ttls internal\n}\n\nhooks.example.com {", freePort(t))
	s := startExample(t, "cluster", "127.0.0.1:9000", b.address(), "\tstorage ", "\tskip_install_trust\n\tstorage ", "hooks.example.com {", own)
	if _, err := os.Stat(filepath.Join(shared, "pki", "authorities", "local", "root.crt")); err != nil {
		t.Errorf("Caddy does not use the shared storage: %v", err)
	}
	client := newClient(t, "HTTP/2.0")
	body := eventBody(newID())
	expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
	expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
	b.expectCount(t, 1)
	if keys := server.Do("KEYS", "buzzbip:done:*"); keys == "" {
		t.Error("Redis knows nothing of it")
	}
}

// quickstart returns the blocks of the README's quickstart: how to start it, what
// to type into another terminal, and what that prints.
func quickstart(t *testing.T) (run, commands, output string) {
	t.Helper()
	section := section(t, "## Quickstart")
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
	if out, err := exec.Command("go", "build", "-o", binary, "./cmd/caddy").CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
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
// when it does. Its admin endpoint is not that of another Caddy.
func startServer(t *testing.T, binary, dir, commands, url string) {
	t.Helper()
	server := shell(binary, dir, commands)
	// in the place of the shell, so that it gets the signal
	server.Env = append(server.Env, "HOW=exec", fmt.Sprintf("CADDY_ADMIN=localhost:%d", freePort(t)))
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
	waitFor(t, "Caddy to serve "+url, func() bool {
		res, err := client.Get(url)
		if err != nil {
			return false
		}
		defer res.Body.Close()
		_, err = io.Copy(io.Discard, res.Body)
		return err == nil
	})
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
	port := fmt.Sprintf("localhost:%d", freePort(t))
	text := strings.ReplaceAll(string(config), "localhost:8443", port)
	text = strings.ReplaceAll(text, ":9753", fmt.Sprintf(":%d", freePort(t)))
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

// A reader's own backend is at port 9000, says the README.
func TestQuickstartLeavesThePortsOfTheOtherExamplesAlone(t *testing.T) {
	ports := regexp.MustCompile(`(?m)(?:127\.0\.0\.1|localhost|//):(\d+)`)
	config, err := os.ReadFile("examples/quickstart/Caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range exampleCaddyfiles(t) {
		for _, port := range ports.FindAllStringSubmatch(string(config), -1) {
			if name != "quickstart" && strings.Contains(text, ":"+port[1]) {
				t.Errorf("port %s of the quickstart is one of %s", port[1], name)
			}
		}
	}
}

// exampleCaddyfiles returns the text of each example, by its name.
func exampleCaddyfiles(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("examples/*/Caddyfile")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	texts := make(map[string]string)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		texts[filepath.Base(filepath.Dir(path))] = string(text)
	}
	return texts
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
	commands := blocks(section(t, "### Trying an example on your own machine"), "sh")
	if len(commands) != 3 {
		t.Fatalf("the section has %d blocks of commands, want 3", len(commands))
	}
	binary, dir := buildCaddy(t), t.TempDir()
	address, backend := fmt.Sprintf("localhost:%d", freePort(t)), fmt.Sprintf("127.0.0.1:%d", freePort(t))
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

func TestEachExampleCanBeServedOnLocalhost(t *testing.T) {
	t.Setenv("SHARED_STORAGE", t.TempDir())
	for name, text := range exampleCaddyfiles(t) {
		if name == "quickstart" || name == "kubernetes" { // these have other addresses
			continue
		}
		text = regexp.MustCompile(`(?m)^hooks\.example\.com`).ReplaceAllString(text, "http://localhost:8080")
		if config := string(adapt(t, text)); !strings.Contains(config, `":8080"`) || strings.Contains(config, "hooks.example.com") {
			t.Errorf("%s: %s", name, config)
		}
	}
}

// The way in which the README captures what explain needs.
func TestCapturingARejectedRequestAsTheREADMESays(t *testing.T) {
	if _, err := exec.LookPath("jq"); err != nil {
		t.Skip("there is no jq")
	}
	t.Setenv("BUZZBIP_SECRET", testSecret)
	const path = "/var/lib/caddy/captured.log"
	text := section(t, "### Capturing a rejected request")
	config, commands := blocks(text, "caddyfile"), blocks(text, "sh")
	if len(config) != 1 || len(commands) != 1 {
		t.Fatalf("the section has %d configurations and %d blocks of commands", len(config), len(commands))
	}
	binary, dir := buildCaddy(t), t.TempDir()
	captured := filepath.Join(dir, "captured.log")
	address := fmt.Sprintf("localhost:%d", freePort(t))
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
	body := strings.Replace(eventBody(newID()), "hello", `höllo \"you\" <\/p>\u00e9\n`, 1)
	forged := signed(url, body)
	forged.Header.Set(webhook.SignatureHeader, signature(otherSecret, body))
	expect(t, send(client, forged), http.StatusUnauthorized, "")
	expect(t, send(client, signed(url, body)), http.StatusOK, "")
	waitFor(t, "both requests in the log", func() bool {
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
