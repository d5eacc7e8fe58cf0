package e2e

import (
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// Caddy starts the apps of a configuration in any order, and stops those that
// have started when another fails.
func TestOperatorsSeeTheOldConfigurationAfterAReloadThatFails(t *testing.T) {
	b := caddytest.NewBackend(t, nil)
	address := caddytest.FreeAddress(t)
	site := func(address, scope, path string) string {
		return strings.Replace(onSQLite(address, path, b), "store sqlite", "scope "+scope+"\n\t\tstore sqlite", 1)
	}
	first := t.TempDir()
	c := caddytest.Start(t, "", "", site(address, "first", first))
	body := caddytest.NewEvent()
	if got := caddytest.Post(t.Context(), "http://"+address, body); got.Status != http.StatusOK {
		t.Fatal(got)
	}
	config, err := os.ReadFile(c.Config)
	if err != nil {
		t.Fatal(err)
	}

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	inUse := t.TempDir()
	caddytest.Start(t, "", "", site(caddytest.FreeAddress(t), "other", inUse))
	for why, attempt := range map[string]struct {
		sites string
		times int
	}{
		"address already in use":    {site(address, "second", t.TempDir()) + site(taken.Addr().String(), "second", t.TempDir()), 12},
		"in use by another process": {site(address, "second", inUse), 1},
	} {
		head, _, _ := strings.Cut(string(config), "\nhttp://")
		if err := os.WriteFile(c.Config, []byte(head+attempt.sites), 0o600); err != nil {
			t.Fatal(err)
		}
		for range attempt.times {
			if err := c.TryReload(); err == nil || !strings.Contains(err.Error(), why) {
				t.Fatalf("got %v, want %s", err, why)
			}
			if status, text := c.Ask(http.MethodGet, "/buzzbip_webhook/scopes"); status != http.StatusOK || !strings.Contains(text, `"first"`) || strings.Contains(text, `"second"`) {
				t.Fatalf("%s: the scopes are answered %d %s", why, status, text)
			}
			if remembered := c.Metric(`remembered_events{store="sqlite"}`); remembered != 1 {
				t.Fatalf("%s: %v events are remembered", why, remembered)
			}
		}
		if got := caddytest.Post(t.Context(), "http://"+address, body); got.Status != http.StatusOK || got.Result != "duplicate" {
			t.Errorf("%s: the event is answered %d %s", why, got.Status, got.Result)
		}
	}
	if err := os.WriteFile(c.Config, config, 0o600); err != nil {
		t.Fatal(err)
	}
	c.Reload()
	if status, text := c.Ask(http.MethodGet, "/buzzbip_webhook/scopes"); status != http.StatusOK || !strings.Contains(text, `"first"`) {
		t.Errorf("the scopes are answered %d %s", status, text)
	}
}
