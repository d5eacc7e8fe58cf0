package buzzbip

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// The vector is BuzzBip's documented envelope, signed with
// `openssl dgst -sha256 -hmac`, which is what their verifySignature computes.
func TestVerifyAgreesWithOpenSSL(t *testing.T) {
	const (
		secret = "whsec_4f9c2e"
		body   = `{"id":"evt_7f3a9b2c","type":"message.received","createdAt":"2026-06-01T14:32:00Z","data":{}}`
		digest = "700d048d09cd1f75ead1f44e791059cc810a722a50b1fd47c0ef0ca887f14dd5"
	)
	keys := newSecrets(t, Secret{Value: "whsec_other", Label: "other"}, Secret{Value: secret, Label: "main"})
	sum, err := hex.DecodeString(digest)
	if err != nil {
		t.Fatal(err)
	}
	if k := keys.verify([]byte(body), [sha256.Size]byte(sum)); k == nil || k.label != "main" {
		t.Errorf("verified by %v", k)
	}
	for i := range sum { // every byte counts
		forged := [sha256.Size]byte(sum)
		forged[i] ^= 1
		if keys.verify([]byte(body), forged) != nil {
			t.Errorf("a signature that differs in byte %d was accepted", i)
		}
	}
	if keys.verify([]byte(body+"\n"), [sha256.Size]byte(sum)) != nil {
		t.Error("another body was accepted")
	}
}

func newSecrets(t testing.TB, secrets ...Secret) *secrets {
	t.Helper()
	keys, err := loadSecrets(secrets, "", zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestScopeIsNoHashOfTheSecret(t *testing.T) {
	k := newKey("", []byte(caddytest.Secret), "")
	bare := sha256.Sum256([]byte(caddytest.Secret))
	if k.scope == "" || strings.HasPrefix(hex.EncodeToString(bare[:]), k.scope) {
		t.Errorf("the scope is %q", k.scope)
	}
	if k.scope != newKey("other label", []byte(caddytest.Secret), "").scope {
		t.Error("the scope depends on more than the secret")
	}
	if k.scope == newKey("", []byte(caddytest.Secret+"x"), "").scope {
		t.Error("two secrets have one scope")
	}
}

func TestTwoSecretsDuringARotation(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, "buzzbip_webhook {\n secret "+caddytest.Secret+" old\n}\nreverse_proxy "+b.address())
	client := newClient(t, "HTTP/1.1")
	withSecret := func(secret, body string) *http.Request {
		r := signed(s.url, body)
		r.Header.Set(webhook.SignatureHeader, caddytest.SignWith(secret, body))
		return r
	}
	const newSecret = "the-new-secret-of-the-same-webhook"
	before := caddytest.NewEvent()
	expect(t, send(client, withSecret(caddytest.Secret, before)), http.StatusOK, "")
	expect(t, send(client, withSecret(newSecret, before)), http.StatusUnauthorized, "")

	s.reload("buzzbip_webhook {\n secret " + newSecret + " new\n secret " + caddytest.Secret + " old\n}\nheader X-Secret {http.buzzbip_webhook.secret}\nreverse_proxy " + b.address() + " {\n header_up X-Secret {http.buzzbip_webhook.secret}\n}")
	expect(t, send(client, withSecret(caddytest.Secret, before)), http.StatusOK, webhook.ResultDuplicate)
	for secret, label := range map[string]string{caddytest.Secret: "old", newSecret: "new"} {
		body := caddytest.NewEvent()
		expect(t, send(client, withSecret(secret, body)), http.StatusOK, "")
		expect(t, send(client, withSecret(secret, body)), http.StatusOK, webhook.ResultDuplicate)
		caddytest.WaitFor(t, "the delivery", func() bool { return len(b.arrived) > 0 })
		var last received
		for len(b.arrived) > 0 {
			last = <-b.arrived
		}
		if got := last.Header.Get("X-Secret"); got != label {
			t.Errorf("the secret that matched is %q, want %q", got, label)
		}
	}
}
