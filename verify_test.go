package buzzbip

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"

	"go.uber.org/zap"
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
	k := newKey("", []byte(testSecret), "")
	bare := sha256.Sum256([]byte(testSecret))
	if k.scope == "" || strings.HasPrefix(hex.EncodeToString(bare[:]), k.scope) {
		t.Errorf("the scope is %q", k.scope)
	}
	if k.scope != newKey("other label", []byte(testSecret), "").scope {
		t.Error("the scope depends on more than the secret")
	}
	if k.scope == newKey("", []byte(testSecret+"x"), "").scope {
		t.Error("two secrets have one scope")
	}
}
