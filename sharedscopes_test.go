package buzzbip

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// One workspace may have several webhooks, so the same ID can arrive at two of
// them.
func TestScopes(t *testing.T) {
	const otherSecret = "the-secret-of-another-webhook-entirely"
	b := newBackend(t, nil)
	client := newClient(t, "HTTP/1.1")
	sites := func(options, otherOptions string) string {
		return "handle /webhooks/buzzbip {\n" + proxied(b, options) + "\n}\n" +
			"handle /other {\n" + strings.Replace(proxied(b, otherOptions), caddytest.Secret, otherSecret, 1) + "\n}"
	}
	sendToOther := func(s *site, body string) response {
		r := signed(strings.Replace(s.url, "/webhooks/buzzbip", "/other", 1), body)
		r.Header.Set(webhook.SignatureHeader, caddytest.SignWith(otherSecret, body))
		return send(client, r)
	}
	t.Run("different secrets are apart", func(t *testing.T) {
		s := start(t, sites("", ""))
		body := caddytest.NewEvent()
		expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
		expect(t, sendToOther(s, body), http.StatusOK, "")
		if strings.Contains(s.logs(), "scope") {
			t.Errorf("a needless warning: %s", s.logs())
		}
	})
	t.Run("the same scope is shared, with a warning", func(t *testing.T) {
		name := caddytest.NewID()
		s := start(t, sites("scope "+name, "scope "+name))
		body := caddytest.NewEvent()
		expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
		expect(t, sendToOther(s, body), http.StatusOK, webhook.ResultDuplicate)
		for _, want := range []string{"sites share a scope", `"sites":["localhost/webhooks/buzzbip","localhost/other"]`, name} {
			if !strings.Contains(s.logs(), want) {
				t.Errorf("no %q in the log: %s", want, s.logs())
			}
		}

	})
	t.Run("different stores share nothing", func(t *testing.T) {
		name := caddytest.NewID()
		s := start(t, sites("scope "+name, "scope "+name+"\nstore sqlite "+filepath.Join(t.TempDir(), "webhook.db")))
		if strings.Contains(s.logs(), "scope") {
			t.Errorf("a needless warning: %s", s.logs())
		}
	})
	t.Run("a named route names the sites that invoke it", func(t *testing.T) {
		s := start(t, "respond gone 404")
		s.named = "&(hook) {\nroute {\n" + proxied(b, "") + "\n}\n}"
		s.reload("handle /a/* {\ninvoke hook\n}\nhandle /b/* {\nroute {\n" + proxied(b, "") + "\ninvoke hook\n}\n}")
		if want := `"sites":["localhost/b/*","localhost/a/*","localhost/b/*"]`; !strings.Contains(s.logs(), want) {
			t.Errorf("no %s in the log: %s", want, s.logs())
		}
	})
	t.Run("the same secret shares, with a warning, without showing the scope", func(t *testing.T) {
		s := start(t, "handle /webhooks/buzzbip {\n"+proxied(b, "")+"\n}\nhandle /other {\n"+proxied(b, "")+"\n}")
		body := caddytest.NewEvent()
		expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
		expect(t, send(client, signed(strings.Replace(s.url, "/webhooks/buzzbip", "/other", 1), body)), http.StatusOK, webhook.ResultDuplicate)
		if !strings.Contains(s.logs(), "sites share a scope") || strings.Contains(s.logs(), newKey("", []byte(caddytest.Secret), "").scope) {
			t.Errorf("no warning, or too much: %s", s.logs())
		}
	})
	t.Run("two secrets with one scope are one handler", func(t *testing.T) {
		s := start(t, proxied(b, "secret "+otherSecret+"\nscope "+caddytest.NewID()))
		if strings.Contains(s.logs(), "scope") {
			t.Errorf("a needless warning: %s", s.logs())
		}
	})
	t.Run("a reload is no second handler", func(t *testing.T) {
		s := start(t, proxied(b, ""))
		s.reload(proxied(b, ""))
		if strings.Contains(s.logs(), "scope") {
			t.Errorf("a needless warning: %s", s.logs())
		}
	})
}
