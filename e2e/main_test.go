// Package e2e tests Caddy with the plugin as a process of its own: what is
// killed, what is shared between processes, and what users see of the binary.
package e2e

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const testSecret = "test-secret-of-32-bytes-exactly!"

// patience is how long a test waits for what must happen; it never decides
// whether a test passes on a slow machine.
const patience = 30 * time.Second

// binary is Caddy with the plugin, built from this checkout.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "caddy-webhook-e2e")
	if err != nil {
		log.Fatal(err)
	}
	binary = filepath.Join(dir, "caddy")
	build := exec.Command("go", "build", "-o", binary, "../cmd/caddy")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		log.Fatalf("building Caddy: %v", err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// caddy is a running process.
type caddy struct {
	t      testing.TB
	cmd    *exec.Cmd
	config string // path of the Caddyfile
	admin  string // address of the admin endpoint
	data   string // Caddy's data and configuration directories are in it
	log    buffer
	ended  chan struct{}
}

// startCaddy runs a Caddyfile, whose global options may be given, and returns
// when it is being served. Its files are below data, or below a new directory
// if that is empty.
func startCaddy(t testing.TB, data, globals, sites string, env ...string) *caddy {
	t.Helper()
	c := launchCaddy(t, data, globals, sites, env...)
	waitFor(t, "Caddy to start", func() bool {
		select {
		case <-c.ended:
			t.Fatalf("Caddy ended: %s", c.log.String())
		default:
		}
		res, err := http.Get("http://" + c.admin + "/config/")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		config, err := io.ReadAll(res.Body)
		return err == nil && res.StatusCode == http.StatusOK && len(bytes.TrimSpace(config)) > len("null")
	})
	return c
}

// launchCaddy is startCaddy without the wait.
func launchCaddy(t testing.TB, data, globals, sites string, env ...string) *caddy {
	t.Helper()
	if data == "" {
		data = t.TempDir()
	}
	c := &caddy{t: t, config: filepath.Join(t.TempDir(), "Caddyfile"), admin: freeAddress(t), data: data, ended: make(chan struct{})}
	text := fmt.Sprintf("{\n\tadmin %s\n\tskip_install_trust\n\tgrace_period 5s\n%s\n}\n%s\n", c.admin, globals, sites)
	if err := os.WriteFile(c.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.cmd = exec.Command(binary, "run", "--config", c.config)
	c.cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+data, "XDG_CONFIG_HOME="+data, "HOME="+data)
	c.cmd.Env = append(c.cmd.Env, env...)
	c.cmd.Stderr = &c.log
	c.cmd.Stdout = &c.log
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = c.cmd.Wait()
		close(c.ended)
	}()
	t.Cleanup(func() {
		c.kill()
		if t.Failed() {
			t.Logf("log of Caddy %d:\n%s", c.cmd.Process.Pid, c.log.String())
		}
	})
	return c
}

// reload loads the Caddyfile again, whether it has changed or not.
func (c *caddy) reload() {
	c.t.Helper()
	out, err := exec.Command(binary, "reload", "--force", "--config", c.config, "--address", c.admin).CombinedOutput()
	if err != nil {
		c.t.Fatalf("reloading: %v: %s", err, out)
	}
}

// metrics returns what Prometheus would get.
func (c *caddy) metrics() string {
	c.t.Helper()
	res, err := http.Get("http://" + c.admin + "/metrics")
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

// metric returns the value of one of our series, which must be there.
func (c *caddy) metric(series string) float64 {
	c.t.Helper()
	text := c.metrics()
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

// kill is kill -9.
func (c *caddy) kill() {
	_ = c.cmd.Process.Kill()
	<-c.ended
}

// stop ends Caddy as an operator does.
func (c *caddy) stop() {
	c.t.Helper()
	_ = c.cmd.Process.Signal(os.Interrupt)
	select {
	case <-c.ended:
	case <-time.After(patience):
		c.t.Fatal("Caddy did not stop")
	}
}

// freeAddress returns an address on loopback that nobody listens at.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

// buffer may be written and read at the same time.
type buffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// backend counts the bodies that it gets and answers 200, or as its handler
// does.
type backend struct {
	*httptest.Server
	mu    sync.Mutex
	calls map[string]int // by body
}

func newBackend(t testing.TB, handler http.HandlerFunc) *backend {
	b := &backend{calls: make(map[string]int)}
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

func (b *backend) address() string { return b.Listener.Addr().String() }

// count returns how often a body arrived.
func (b *backend) count(body string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls[body]
}

var ids atomic.Int64

// newEvent returns the body of an event that no other test has.
func newEvent() string {
	return fmt.Sprintf(`{"id":"evt_%d_%d","type":"message.received","createdAt":"2026-06-01T14:32:00Z","data":{}}`, os.Getpid(), ids.Add(1))
}

func sign(body string) string { return signWith(testSecret, body) }

func signWith(secret, body string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	io.WriteString(mac, body)
	return hex.EncodeToString(mac.Sum(nil))
}

// answer is what a sender gets; status 0 means that it got none.
type answer struct {
	status int
	result string
	body   string
}

// post sends a signed event, as BuzzBip does, with its limit of 10 seconds.
func post(ctx context.Context, url, body string) answer {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return answer{}
	}
	r.Header.Set("X-BuzzBip-Signature", sign(body))
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return answer{}
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return answer{}
	}
	return answer{res.StatusCode, res.Header.Get("X-BuzzBip-Result"), string(text)}
}
