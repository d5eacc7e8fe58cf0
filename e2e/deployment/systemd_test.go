package deployment

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// setting returns the value of a line of the drop-in.
func setting(t *testing.T, name string) string {
	t.Helper()
	found := regexp.MustCompile(`(?m)^`+name+`=(.+)$`).FindAllStringSubmatch(example(t, "systemd", "buzzbip.conf"), -1)
	if len(found) != 1 {
		t.Fatalf("the drop-in has %s %d times", name, len(found))
	}
	return found[0][1]
}

func copyFile(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, text, mode); err != nil {
		t.Fatal(err)
	}
}

func TestSystemd(t *testing.T) {
	dir := t.TempDir()
	units := filepath.Join(dir, "usr", "lib", "systemd", "system")
	copyFile(t, filepath.Join("testdata", "caddy.service"), filepath.Join(units, "caddy.service"), 0o644)
	copyFile(t, caddytest.Binary, filepath.Join(dir, "usr", "bin", "caddy"), 0o755)
	copyFile(t, filepath.Join(root, "examples", "systemd", "buzzbip.conf"), filepath.Join(dir, "etc", "systemd", "system", "caddy.service.d", "buzzbip.conf"), 0o644)
	for _, name := range []string{"network", "network-online", "sysinit", "basic", "shutdown"} {
		if err := os.WriteFile(filepath.Join(units, name+".target"), []byte("[Unit]\nDescription=there\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// It exits with 0 for settings that it does not know.
	if out, err := exec.Command("systemd-analyze", "verify", "--root="+dir, "caddy.service").CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}

	caddyfile := example(t, "systemd", "Caddyfile")
	s := adapted(t, caddyfile)
	if stop, err := time.ParseDuration(setting(t, "TimeoutStopSec")); err != nil || stop <= s.ShortestStop {
		t.Errorf("TimeoutStopSec is %v (%v), which cuts deliveries off: Caddy takes up to %v", stop, err, s.ShortestStop)
	}
	if limit := setting(t, "StartLimitIntervalSec"); limit != "0" {
		t.Errorf("StartLimitIntervalSec is %s: after a few failures in it Caddy would stay down", limit)
	}
	credential, _, _ := strings.Cut(setting(t, "LoadCredential"), ":")
	caddytest.Replace(t, caddyfile,
		"secret_file {env.CREDENTIALS_DIRECTORY}/"+credential+"\n", "",
		"store sqlite /var/lib/"+setting(t, "StateDirectory")+"/", "",
		"inbox sqlite /var/lib/"+setting(t, "StateDirectory")+"/", "")
}

func TestSystemdRuns(t *testing.T) {
	credentials, state := t.TempDir(), t.TempDir()
	secret := filepath.Join(credentials, "buzzbip")
	if err := os.WriteFile(secret, []byte(caddytest.Secret+"\n"), 0o400); err != nil {
		t.Fatal(err)
	}
	var away atomic.Bool
	backend := caddytest.NewBackend(t, func(w http.ResponseWriter, _ *http.Request) {
		if away.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	address := caddytest.FreeAddress(t)
	caddyfile := caddytest.Replace(t, example(t, "systemd", "Caddyfile"),
		"hooks.example.com {", "http://"+address+" {", "127.0.0.1:9000", backend.Address(), "/var/lib/caddy/buzzbip", state)
	url := "http://" + address + "/webhooks/buzzbip"
	body, stored := caddytest.NewEvent(), caddytest.NewEvent()
	for _, result := range []string{"", "duplicate"} { // before and after a restart
		c := start(t, "", caddyfile, "CREDENTIALS_DIRECTORY="+credentials)
		if result == "" {
			check(t, url, secret)
			logsAccess(t, c)
		}
		if got := caddytest.Post(t.Context(), url, body); got.Status != 200 || got.Result != result {
			t.Errorf("answered %+v, want 200 %q", got, result)
		}
		if result == "" {
			away.Store(true)
			if got := caddytest.Post(t.Context(), url, stored); got.Status != 200 || got.Result != "stored" {
				t.Errorf("answered %+v, want 200 stored", got)
			}
		} else {
			caddytest.WaitFor(t, "the inbox to be empty", func() bool { return c.Metric(`inbox_events{state="waiting"}`) == 0 })
		}
		c.Stop()
		away.Store(false)
	}
	if n := backend.Count(body); n != 1 {
		t.Errorf("delivered %d times", n)
	}
	if n := backend.Count(stored); n < 2 {
		t.Error("the backend did not get the event that was stored before the restart")
	}
}
