package buzzbip

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// SignatureHeader carries the HMAC-SHA256 of the raw request body under the
// webhook's signing secret, in hex. BuzzBip signs nothing else (developer
// documentation, "Webhooks", updated 2026-06-01).
const SignatureHeader = webhook.SignatureHeader

// Sign returns the signature of a body under a secret, as BuzzBip sends it in
// [SignatureHeader]. Tests of a backend can use it to play BuzzBip.
func Sign(secret, body []byte) string { return webhook.Sign(secret, body) }

// key verifies signatures under one value of a secret. It is safe for
// concurrent use.
type key struct {
	label     string
	scope     string
	macs      sync.Pool // of *mac
	matches   func() prometheus.Counter
	lastMatch *atomic.Int64 // Unix time in nanoseconds; 0: never
}

// mac is an HMAC that is keyed with a secret, and room for its result.
type mac struct {
	hash.Hash
	sum [sha256.Size]byte
}

// newKey returns the key of a secret. Its scope is derived from the secret,
// unless one is configured.
func newKey(label string, secret []byte, scope string) *key {
	k := &key{label: label, scope: scope}
	k.matches = sync.OnceValue(func() prometheus.Counter { return metrics.signatureMatches.WithLabelValues(label) })
	k.macs.New = func() any { return &mac{Hash: hmac.New(sha256.New, secret)} }
	sum := k.sign([]byte("buzzbip_webhook scope"))
	fingerprint := hex.EncodeToString(sum[:8])
	if scope == "" {
		k.scope = fingerprint
	}
	last, _ := lastMatches.LoadOrStore([2]string{label, fingerprint}, new(atomic.Int64))
	k.lastMatch = last.(*atomic.Int64)
	return k
}

// lastMatches holds when each secret last matched, by label and fingerprint. It
// outlives the configuration.
var lastMatches sync.Map

// matched records that the secret is in use.
func (k *key) matched(now time.Time) {
	k.matches().Inc()
	k.lastMatch.Store(now.UnixNano())
}

func (k *key) sign(body []byte) [sha256.Size]byte {
	m := k.macs.Get().(*mac)
	defer k.macs.Put(m)
	m.Reset()
	m.Write(body)
	m.Sum(m.sum[:0])
	return m.sum
}

// verify returns the first key under which the signature is that of the body,
// or nil.
func (s *secrets) verify(body []byte, signature [sha256.Size]byte) *key {
	for k := range s.keys() {
		expected := k.sign(body)
		if hmac.Equal(expected[:], signature[:]) {
			return k
		}
	}
	return nil
}
