// Package caddytest runs Caddy with the plugin as a process of its own, for
// tests of what is killed, what is shared between processes, and what users see
// of the binary.
package caddytest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Secret is the signing secret of the tests.
const Secret = "test-secret-of-32-bytes-exactly!"

// Patience is how long a test waits for what must happen; it never decides
// whether a test passes on a slow machine.
const Patience = 30 * time.Second

// Binary is Caddy with the plugin, built from this checkout by [Main].
var Binary string

// Main is for TestMain. It builds [Binary], runs the tests and returns what to
// exit with.
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "caddy-webhook")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	Binary = filepath.Join(dir, "caddy")
	_, here, _, _ := runtime.Caller(0)
	build := exec.Command("go", "build", "-o", Binary, "./cmd/caddy")
	build.Dir = filepath.Join(filepath.Dir(here), "..", "..")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		log.Printf("building Caddy: %v", err)
		return 1
	}
	return m.Run()
}

// Caddy is a running process.
type Caddy struct {
	Cmd    *exec.Cmd
	Config string // path of the Caddyfile
	Admin  string // address of the admin endpoint
	Log    Output
	Ended  chan struct{}

	t testing.TB
}

// Start runs a Caddyfile, whose global options may be given, and returns
// when it is being served. Its files are below data, or below a new directory
// if that is empty.
func Start(t testing.TB, data, globals, sites string, env ...string) *Caddy {
	t.Helper()
	c := Launch(t, data, globals, sites, env...)
	WaitFor(t, "Caddy to start", func() bool {
		select {
		case <-c.Ended:
			t.Fatalf("Caddy ended: %s", c.Log.String())
		default:
		}
		res, err := http.Get("http://" + c.Admin + "/config/")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		config, err := io.ReadAll(res.Body)
		return err == nil && res.StatusCode == http.StatusOK && len(bytes.TrimSpace(config)) > len("null")
	})
	return c
}

// Launch is [Start] without the wait.
func Launch(t testing.TB, data, globals, sites string, env ...string) *Caddy {
	t.Helper()
	if data == "" {
		data = t.TempDir()
	}
	c := &Caddy{Config: filepath.Join(t.TempDir(), "Caddyfile"), Admin: FreeAddress(t), Ended: make(chan struct{}), t: t}
	text := fmt.Sprintf("{\n\tadmin %s\n\tskip_install_trust\n\tgrace_period 5s\n%s\n}\n%s\n", c.Admin, globals, sites)
	if err := os.WriteFile(c.Config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Cmd = exec.Command(Binary, "run", "--config", c.Config)
	c.Cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+data, "XDG_CONFIG_HOME="+data, "HOME="+data)
	c.Cmd.Env = append(c.Cmd.Env, env...)
	c.Log = Capture(t, c.Cmd)
	if err := c.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = c.Cmd.Wait()
		close(c.Ended)
	}()
	t.Cleanup(func() {
		c.Kill()
		if t.Failed() {
			t.Logf("log of Caddy %d:\n%s", c.Cmd.Process.Pid, c.Log.String())
		}
	})
	return c
}

// Reload loads the Caddyfile again, whether it has changed or not.
func (c *Caddy) Reload() {
	c.t.Helper()
	if err := c.TryReload(); err != nil {
		c.t.Fatal(err)
	}
}

// TryReload is [Caddy.Reload] of what may not load.
func (c *Caddy) TryReload() error {
	out, err := exec.Command(Binary, "reload", "--force", "--config", c.Config, "--address", c.Admin).CombinedOutput()
	c.awaitAdmin()
	if err != nil {
		return fmt.Errorf("reloading: %w: %s", err, out)
	}
	return nil
}

// Load posts a Caddyfile to the admin endpoint, and returns what that answers.
func (c *Caddy) Load(caddyfile string) (status int, text string) {
	c.t.Helper()
	status, text = c.request(http.MethodPost, "/load", "text/caddyfile", caddyfile)
	c.awaitAdmin()
	return status, text
}

// awaitAdmin waits, after a configuration was posted, until only one admin
// endpoint is left. Each that Caddy tries has its own, those of before end some
// time later, and a request that reaches one that ends may get no answer.
func (c *Caddy) awaitAdmin() {
	c.t.Helper()
	WaitFor(c.t, "the admin endpoints of before to end", func() bool {
		log := c.Log.String()
		return strings.Count(log, `"admin endpoint started"`) == strings.Count(log, `"stopped previous server"`)+1
	})
	http.DefaultClient.CloseIdleConnections()
}

// Metrics returns what Prometheus would get.
func (c *Caddy) Metrics() string {
	c.t.Helper()
	res, err := http.Get("http://" + c.Admin + "/metrics")
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		c.t.Fatalf("the metrics: %s: %v", res.Status, err)
	}
	return string(text)
}

// Metric returns the value of one of our series, which must be there.
func (c *Caddy) Metric(series string) float64 {
	c.t.Helper()
	text := c.Metrics()
	_, rest, found := strings.Cut(text, "\ncaddy_buzzbip_webhook_"+series+" ")
	if !found {
		c.t.Fatalf("there is no %s in the metrics", series)
	}
	number, _, _ := strings.Cut(rest, "\n")
	value, err := strconv.ParseFloat(number, 64)
	if err != nil {
		c.t.Fatal(err)
	}
	return value
}

// Series returns the values of one of our metrics by their labels.
func (c *Caddy) Series(name string) map[string]float64 {
	c.t.Helper()
	found := make(map[string]float64)
	for _, line := range regexp.MustCompile(`(?m)^caddy_buzzbip_webhook_`+name+`(?:\{(.*)\})? (\S+)$`).FindAllStringSubmatch(c.Metrics(), -1) {
		var value float64
		if _, err := fmt.Sscan(line[2], &value); err != nil {
			c.t.Fatal(err)
		}
		found[line[1]] = value
	}
	return found
}

// Entries are the whole lines of the log, decoded.
func (c *Caddy) Entries() (all []map[string]any) {
	c.t.Helper()
	for line := range strings.Lines(c.Log.String()) {
		if strings.HasPrefix(line, "{") && strings.HasSuffix(line, "\n") {
			entry := make(map[string]any)
			if err := json.Unmarshal([]byte(line), &entry); err != nil {
				c.t.Fatalf("%s: %v", line, err)
			}
			all = append(all, entry)
		}
	}
	return all
}

// Ask returns what the admin endpoint answers.
func (c *Caddy) Ask(method, path string) (status int, text string) {
	c.t.Helper()
	return c.request(method, path, "", "")
}

func (c *Caddy) request(method, path, contentType, body string) (status int, text string) {
	c.t.Helper()
	r, err := http.NewRequest(method, "http://"+c.Admin+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return res.StatusCode, string(answer)
}

// Kill is kill -9.
func (c *Caddy) Kill() {
	_ = c.Cmd.Process.Kill()
	<-c.Ended
}

// Stop ends Caddy as an operator does.
func (c *Caddy) Stop() {
	c.t.Helper()
	_ = c.Cmd.Process.Signal(os.Interrupt)
	select {
	case <-c.Ended:
	case <-time.After(Patience):
		c.t.Fatal("Caddy did not stop")
	}
}

// ServePage runs `caddy buzzbip page` and returns the address that it prints.
func ServePage(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command(Binary, append([]string{"buzzbip", "page"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// FreeAddress returns an address on loopback that nobody listens at.
func FreeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// WaitFor waits until something is done.
func WaitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

// Output is what a process has written to standard output and standard error:
// all of it at any moment, for it goes into a file and not through a pipe.
type Output struct{ path string }

// Capture sets where a command that is to be started writes.
func Capture(t testing.TB, cmd *exec.Cmd) Output {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	cmd.Stdout, cmd.Stderr = f, f
	return Output{f.Name()}
}

func (o Output) String() string {
	text, err := os.ReadFile(o.path)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Backend counts the bodies that it gets and answers 200, or as its handler
// does.
type Backend struct {
	*httptest.Server
	mu    sync.Mutex
	calls map[string]int // by body
}

// NewBackend starts a backend.
func NewBackend(t testing.TB, handler http.HandlerFunc) *Backend {
	b := &Backend{calls: make(map[string]int)}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // its Caddy was killed
		}
		b.mu.Lock()
		b.calls[string(body)]++
		b.mu.Unlock()
		if handler != nil {
			handler(w, r)
		}
	}))
	t.Cleanup(b.Close)
	return b
}

// Address is where it listens.
func (b *Backend) Address() string { return b.Listener.Addr().String() }

// Count returns how often a body arrived.
func (b *Backend) Count(body string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls[body]
}

var ids atomic.Int64

// NewID returns the id of an event that no other test has.
func NewID() string { return fmt.Sprintf("evt_%d_%d", os.Getpid(), ids.Add(1)) }

// NewEvent returns the body of an event that no other test has.
func NewEvent() string {
	return fmt.Sprintf(`{"id":%q,"type":"message.received","createdAt":"2026-06-01T14:32:00Z","data":{}}`, NewID())
}

// Sign returns the signature of a body.
func Sign(body string) string { return SignWith(Secret, body) }

// SignWith is [Sign] under another secret.
func SignWith(secret, body string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	io.WriteString(mac, body)
	return hex.EncodeToString(mac.Sum(nil))
}

// Answer is what a sender gets; status 0 means that it got none.
type Answer struct {
	Status     int
	Result     string
	RetryAfter string
	Body       string
}

// Post sends a signed event, as BuzzBip does, with its limit of 10 seconds.
func Post(ctx context.Context, url, body string) Answer { return PostWith(ctx, url, Secret, body) }

// PostWith is [Post] under another secret.
func PostWith(ctx context.Context, url, secret, body string) Answer {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return Answer{}
	}
	r.Header.Set("X-BuzzBip-Signature", SignWith(secret, body))
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return Answer{}
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return Answer{}
	}
	return Answer{res.StatusCode, res.Header.Get("X-BuzzBip-Result"), res.Header.Get("Retry-After"), string(text)}
}
