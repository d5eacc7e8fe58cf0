package buzzbip

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
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
	port := caddytest.FreePort(t)
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
	config = caddytest.Replace(t, config, replacements...)
	s := &site{t: t, url: fmt.Sprintf("https://localhost:%d/webhooks/buzzbip", port)}
	logged.Lock()
	logged.text.Reset()
	logged.Unlock()
	stopAtEnd(t)
	if err := caddy.Load(adapt(t, config), true); err != nil {
		t.Fatalf("loading: %v", err)
	}
	// what BuzzBip sends to a mistyped path is not to be lost
	elsewhere := signed(s.url+"-elsewhere", caddytest.NewEvent())
	expect(t, send(newClient(t, "HTTP/2.0"), elsewhere), http.StatusNotFound, "")
	return s
}

func TestExampleExistingBackend(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", caddytest.Secret)
	b := newBackend(t, nil)
	s := startExample(t, "existing-backend", "127.0.0.1:9000", b.address())
	client := newClient(t, "HTTP/2.0")
	body := caddytest.NewEvent()
	expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
	expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
	b.expectCount(t, 1)
	if got := caddytest.Receive(t, b.arrived, "the delivery"); got.body != body {
		t.Errorf("the backend got %q", got.body)
	}
}

func TestFirstExampleHasAnAccessLogWithoutSignatures(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", caddytest.Secret)
	b := newBackend(t, nil)
	s := startExample(t, "existing-backend", "127.0.0.1:9000", b.address())
	client := newClient(t, "HTTP/2.0")
	id, failing := caddytest.NewID(), caddytest.NewID()
	delivered, failed, forged := signed(s.url, caddytest.Event{ID: id}.Body()), signed(s.url, caddytest.Event{ID: failing}.Body()), signed(s.url, caddytest.NewEvent())
	forged.Header.Set(webhook.SignatureHeader, caddytest.SignWith("some-other-secret", "of-another-body"))
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
		caddytest.WaitFor(t, text+" in the log", func() bool { return strings.Contains(s.logs(), text) })
	}
	for _, r := range []*http.Request{delivered, failed, forged} {
		if strings.Contains(s.logs(), r.Header.Get(webhook.SignatureHeader)) {
			t.Errorf("a signature is in the log:\n%s", s.logs())
		}
	}
}

func TestExampleRouteByEventType(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", caddytest.Secret)
	messages, vip, contacts := newBackend(t, nil), newBackend(t, nil), newBackend(t, nil)
	s := startExample(t, "route-by-event-type", "127.0.0.1:9001", messages.address(), "127.0.0.1:9002", vip.address(), "127.0.0.1:9003", contacts.address())
	client := newClient(t, "HTTP/2.0")
	event := func(typ, data string) string {
		return caddytest.Event{Type: typ, Data: data}.Body()
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
		if got := caddytest.Receive(t, step.to.arrived, "the delivery"); got.body != step.body {
			t.Errorf("step %d: the backend got %q", i, got.body)
		}
	}
}

func TestExampleSeveralWorkspaces(t *testing.T) {
	const supportSecret = "the-secret-of-the-support-workspace"
	t.Setenv("BUZZBIP_SECRET_SHOP", caddytest.Secret)
	t.Setenv("BUZZBIP_SECRET_SUPPORT", supportSecret)
	shop, support := newBackend(t, nil), newBackend(t, nil)
	s := startExample(t, "several-workspaces", "127.0.0.1:9001", shop.address(), "127.0.0.1:9002", support.address())
	client := newClient(t, "HTTP/2.0")
	body := caddytest.NewEvent()
	expect(t, send(client, signed(s.url+"/shop", body)), http.StatusOK, "")
	expect(t, send(client, signed(s.url+"/support", body)), http.StatusUnauthorized, "")
	r := signed(s.url+"/support", body)
	r.Header.Set(webhook.SignatureHeader, caddytest.SignWith(supportSecret, body))
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
	write("buzzbip", caddytest.Secret)
	write("buzzbip_previous", caddytest.Secret)
	b := newBackend(t, nil)
	s := startExample(t, "secret-rotation", "/run/secrets", dir, "127.0.0.1:9000", b.address())
	client := newClient(t, "HTTP/2.0")
	post := func(secret, body string) response {
		r := signed(s.url, body)
		r.Header.Set(webhook.SignatureHeader, caddytest.SignWith(secret, body))
		return send(client, r)
	}
	retried := caddytest.NewEvent()
	seen := func(label string) {
		t.Helper()
		if got := caddytest.Receive(t, b.arrived, "the delivery").Header.Get("X-BuzzBip-Secret"); got != label {
			t.Errorf("the backend sees the secret %q, want %q", got, label)
		}
	}
	expect(t, post(caddytest.Secret, retried), http.StatusOK, "")
	seen("current")

	write("buzzbip", newSecret) // the step that needs no reload
	caddytest.WaitFor(t, "the new secret to be active", func() bool {
		time.Sleep(20 * time.Millisecond)
		return post(newSecret, caddytest.NewEvent()).status == http.StatusOK
	})
	seen("current")
	expect(t, post(caddytest.Secret, caddytest.NewEvent()), http.StatusOK, "")
	seen("previous")
	expect(t, post(newSecret, retried), http.StatusOK, webhook.ResultDuplicate)
}

func TestExampleErrorPages(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", caddytest.Secret)
	down := newBackend(t, nil)
	down.Close()
	s := startExample(t, "error-pages", "127.0.0.1:9000", down.address())
	client := newClient(t, "HTTP/2.0")
	forged := signed(s.url, caddytest.NewEvent())
	forged.Header.Del(webhook.SignatureHeader)
	for want, r := range map[string]*http.Request{
		`{"status": 401, "reason": "signature_missing"}`: forged,
		`{"status": 502}`: signed(s.url, caddytest.NewEvent()),
	} {
		got := send(client, r)
		if got.body != want || got.header.Get("Content-Type") != "application/json" {
			t.Errorf("answered %d %q with %v, want %q", got.status, got.body, got.header, want)
		}
	}
}

func TestExampleStickyByConversation(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", caddytest.Secret)
	backends := []*backend{newBackend(t, nil), newBackend(t, nil), newBackend(t, nil)}
	s := startExample(t, "sticky-by-conversation",
		"127.0.0.1:9001", backends[0].address(), "127.0.0.1:9002", backends[1].address(), "127.0.0.1:9003", backends[2].address())
	client := newClient(t, "HTTP/2.0")
	const conversations, events = 20, 5
	for range events {
		for c := range conversations {
			body := caddytest.Event{Data: fmt.Sprintf(`{"conversation":{"id":"cnv_%d"}}`, c)}.Body()
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
	t.Setenv("BUZZBIP_SECRET", caddytest.Secret)
	down, up := newBackend(t, nil), newBackend(t, nil)
	down.Close()
	s := startExample(t, "load-balanced", "127.0.0.1:9001", down.address(), "127.0.0.1:9002", up.address())
	client := newClient(t, "HTTP/2.0")
	for range 10 {
		expect(t, send(client, signed(s.url, caddytest.NewEvent())), http.StatusOK, "")
	}
	up.expectCount(t, 10)
}

func TestExampleDurable(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", caddytest.Secret)
	b := newBackend(t, nil)
	path := filepath.Join(t.TempDir(), "webhook.db")
	client := newClient(t, "HTTP/2.0")
	body := caddytest.NewEvent()
	for restart, want := range []webhook.Result{"", webhook.ResultDuplicate} {
		s := startExample(t, "durable", "127.0.0.1:9000", b.address(), "/var/lib/caddy/buzzbip/webhook.db", path)
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

func TestExampleInbox(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", caddytest.Secret)
	b, working := failing(t, http.StatusServiceUnavailable)
	s := startExample(t, "inbox", "127.0.0.1:9000", b.address(), "/var/lib/caddy", t.TempDir(), "retry 5s 1m", "retry 50ms 200ms")
	client := newClient(t, "HTTP/2.0")
	body := caddytest.NewEvent()
	expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultStored)
	working.Store(true)
	waitForEmptyInbox(t)
	expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
}

// The commands of the README of the example, word for word but for its addresses.
func TestExampleInboxAsItsREADMESays(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("examples", "inbox", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	binary, dir := buildCaddy(t), t.TempDir()
	address, backend := fmt.Sprintf("localhost:%d", caddytest.FreePort(t)), caddytest.FreeAddress(t)
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	readme := caddytest.Replace(t, string(text), "localhost:8080", address, "127.0.0.1:9000", backend,
		"|/tmp|", "|"+dir+"|", "/tmp/Caddyfile", filepath.Join(dir, "Caddyfile"), "examples/inbox/Caddyfile", filepath.Join(root, "examples", "inbox", "Caddyfile"))
	readme = strings.ReplaceAll(readme, "\n   ", "\n")
	commands, output := blocks(readme, "sh"), blocks(readme, "text")
	if len(commands) != 5 || len(output) != 2 {
		t.Fatalf("the README has %d blocks of commands and %d of output, want 5 and 2", len(commands), len(output))
	}
	// the example has its backend at the port of the README
	start := caddytest.Replace(t, commands[0], "sed '", "sed 's|127.0.0.1:9000|"+backend+"|; ")
	admin := startServer(t, binary, dir, start, "http://"+address)
	prints := func(commands, output string) {
		t.Helper()
		cmd := shell(binary, dir, commands)
		cmd.Env = append(cmd.Env, "CADDY_ADMIN="+admin)
		got, err := cmd.CombinedOutput()
		varies := regexp.MustCompile(`attempts: \d|\d{4}-\d\d-\d\dT[\d:]+Z| {2,}`)
		text := func(s string) string { return varies.ReplaceAllString(took.ReplaceAllString(s, ""), "") }
		if err != nil || text(string(got)) != text(output) {
			t.Errorf("%v: the commands print\n%s\nbut the README says\n%s", err, got, output)
		}
	}
	prints(commands[1], output[0])
	startServer(t, binary, dir, commands[2], "http://"+backend)
	curl(t, strings.TrimSpace(commands[3]), admin)
	caddytest.WaitFor(t, "the inbox to be empty", func() bool {
		return strings.Contains(curl(t, "curl localhost:2019/buzzbip_webhook/inbox", admin), `"waiting":0`)
	})
	prints(commands[4], output[1])
}

// That instances act as one is tested in e2e, with processes.
func TestExampleCluster(t *testing.T) {
	server := redistest.Start(t)
	t.Setenv("BUZZBIP_SECRET", caddytest.Secret)
	shared := t.TempDir()
	t.Setenv("SHARED_STORAGE", shared)
	t.Setenv("REDIS_URL", server.URL())
	b := newBackend(t, nil)
	// with a site of Caddy's own authority, which it keeps in the storage
	own := fmt.Sprintf("https://own.localhost:%d {\n\ttls internal\n}\n\nhooks.example.com {", caddytest.FreePort(t))
	s := startExample(t, "cluster", "127.0.0.1:9000", b.address(), "\tstorage ", "\tskip_install_trust\n\tstorage ", "hooks.example.com {", own)
	if _, err := os.Stat(filepath.Join(shared, "pki", "authorities", "local", "root.crt")); err != nil {
		t.Errorf("Caddy does not use the shared storage: %v", err)
	}
	client := newClient(t, "HTTP/2.0")
	body := caddytest.NewEvent()
	expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
	expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
	b.expectCount(t, 1)
	if keys := server.Do("KEYS", "buzzbip:done:*"); keys == "" {
		t.Error("Redis knows nothing of it")
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

// execHandler runs commands as github.com/mholt/caddy-events-exec does.
type execHandler struct {
	Command string   `json:"command"`
	Args    []string `json:"args"`
}

func init() { caddy.RegisterModule(execHandler{}) }

func (execHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.exec", New: func() caddy.Module { return new(execHandler) }}
}

func (h *execHandler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	args := d.RemainingArgs()
	h.Command, h.Args = args[0], args[1:]
	return nil
}

func (h *execHandler) Handle(ctx context.Context, _ caddy.Event) error {
	args := make([]string, len(h.Args))
	for i, arg := range h.Args {
		args[i] = replacerOf(ctx).ReplaceAll(arg, "")
	}
	out, err := exec.CommandContext(ctx, h.Command, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func TestExampleChat(t *testing.T) {
	t.Setenv("BUZZBIP_SECRET", caddytest.Secret)
	chat := newBackend(t, nil)
	t.Setenv("CHAT_WEBHOOK_URL", chat.URL)
	script, err := filepath.Abs("examples/chat/notify.sh")
	if err != nil {
		t.Fatal(err)
	}
	s := startExample(t, "chat", "127.0.0.1:9000", answering(t, http.StatusUnprocessableEntity), "/etc/caddy/notify.sh", script,
		"inbox sqlite", "inbox sqlite "+filepath.Join(t.TempDir(), "inbox.db")+" {\ndead_on 422\n}")
	id := caddytest.NewID()
	expect(t, send(newClient(t, "HTTP/2.0"), signed(s.url, caddytest.Event{ID: id}.Body())), http.StatusOK, webhook.ResultStored)
	got := caddytest.Receive(t, chat.arrived, "the message about the dead event")
	if want := "1 event(s) are dead. The last one is " + id + ": status_4xx."; !strings.Contains(got.body, want) || got.Header.Get("Content-Type") != "application/json" {
		t.Errorf("the chat got %s %q, want %q", got.Header, got.body, want)
	}
	if _, err := ask(t, http.MethodPost, "inbox/pause", ""); err != nil {
		t.Fatal(err)
	}
	if got := caddytest.Receive(t, chat.arrived, "the message about the pause"); !strings.Contains(got.body, "is paused") {
		t.Errorf("the chat got %q", got.body)
	}
}
