package e2e

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// The page itself is tested in a browser.
func TestPageIsServedOnlyBelowItsSecretAddress(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	for name, admin := range map[string]string{"an address": "", "a socket": "unix/" + socket, "a socket with permissions": "unix/" + socket + "|0600"} {
		t.Run(name, func(t *testing.T) {
			_, c := endpoint(t, "")
			if admin == "" {
				admin = c.Admin
			} else {
				text, err := os.ReadFile(c.Config)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(c.Config, bytes.Replace(text, []byte("admin "+c.Admin), []byte("admin "+admin), 1), 0o600); err != nil {
					t.Fatal(err)
				}
				c.Reload()
			}
			page := caddytest.ServePage(t, "--config", c.Config, "--adapter", "caddyfile")
			get := func(method, url string) (int, string) {
				t.Helper()
				r, err := http.NewRequest(method, url, nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Sec-Fetch-Mode", "navigate") // as browsers do
				res, err := http.DefaultTransport.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				body, err := io.ReadAll(res.Body)
				if err != nil {
					t.Fatal(err)
				}
				return res.StatusCode, string(body)
			}
			if status, body := get(http.MethodGet, page); status != http.StatusOK || !strings.Contains(body, "<title>BuzzBip webhooks</title>") {
				t.Errorf("the page: %d %s", status, body)
			}
			if status, body := get(http.MethodGet, page+"events/evt%2F1"); status != http.StatusOK || !strings.Contains(body, `"id":"evt/1"`) {
				t.Errorf("an event: %d %s", status, body)
			}
			if status, _ := get(http.MethodPost, page+"scopes"); status != http.StatusMethodNotAllowed {
				t.Errorf("a status of the admin endpoint became %d", status)
			}
			for _, asset := range []string{"page.css", "page.js"} {
				if status, _ := get(http.MethodGet, page+asset); status != http.StatusOK {
					t.Errorf("%s: %d", asset, status)
				}
			}
			origin := page[:strings.LastIndex(strings.TrimSuffix(page, "/"), "/")]
			for _, url := range []string{origin + "/", origin + "/buzzbip_webhook/", origin + "/config/", page + "../config/", page + "..%2Fconfig/", page + "..%2f..%2fconfig/", page + "/config/"} {
				if status, body := get(http.MethodGet, url); status == http.StatusOK || strings.Contains(body, "apps") {
					t.Errorf("%s: %d %s", url, status, body)
				}
			}
		})
	}
	run(t, "", "page", "--address", caddytest.FreeAddress(t)).says(t, 1, "connection refused", "Is Caddy running")
}

// The command passes requests on without their headers, so it has to look at where
// they come from itself.
func TestOtherSitesChangeNothingThroughThePage(t *testing.T) {
	_, c := endpoint(t, "")
	page := caddytest.ServePage(t, "--address", c.Admin)
	for _, path := range []string{"inbox/pause", "inbox/discard"} {
		for name, test := range map[string]struct {
			header http.Header
			want   int
		}{
			"the page":                  {http.Header{"Sec-Fetch-Site": {"same-origin"}}, http.StatusNotFound}, // there is no inbox
			"another site":              {http.Header{"Sec-Fetch-Site": {"cross-site"}}, http.StatusForbidden},
			"another site, old browser": {http.Header{"Origin": {"https://evil.example"}}, http.StatusForbidden},
		} {
			r, err := http.NewRequest(http.MethodPost, page+path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			r.Header = test.header
			res, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != test.want {
				t.Errorf("%s from %s: %s, want %d", path, name, res.Status, test.want)
			}
		}
	}
}
