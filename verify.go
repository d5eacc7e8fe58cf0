package buzzbip

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

// SignatureHeader carries the HMAC-SHA256 of the raw request body under the
// webhook's signing secret, in hex. BuzzBip signs nothing else (developer
// documentation, "Webhooks", updated 2026-06-01).
const SignatureHeader = "X-BuzzBip-Signature"

// shortSecret is the length in bytes below which a secret gets a warning.
const shortSecret = 16

// Secret is one signing secret.
type Secret struct {
	// The secret as BuzzBip shows it. Global placeholders are replaced when
	// the configuration is loaded: write `{env.NAME}` or `{file./path}` to keep
	// the secret itself out of the configuration.
	Value string `json:"value,omitempty"`

	// A name for the secret in placeholders, logs and metrics. Default: its
	// place among the secrets, `1` for the first.
	Label string `json:"label,omitempty"`
}

// key verifies signatures under one secret.
type key struct {
	label string
	scope string
	macs  sync.Pool // of hash.Hash, keyed with the secret
}

// onePlaceholder matches values that can be shown, as they are no secrets.
var onePlaceholder = regexp.MustCompile(`^\{(env|file)\.[^{}]+\}$`)

// newKeys resolves the secrets. No error and no log entry of it contains one.
func newKeys(secrets []Secret, scope string, logger *zap.Logger) ([]*key, error) {
	if len(secrets) == 0 {
		return nil, errors.New("no secret: give the webhook's signing secret, for example secret {env.BUZZBIP_SECRET}")
	}
	repl := caddy.NewReplacer()
	keys := make([]*key, 0, len(secrets))
	labels := make(map[string]struct{})
	for i, s := range secrets {
		label := s.Label
		if label == "" {
			label = strconv.Itoa(i + 1)
		}
		if _, repeated := labels[label]; repeated {
			return nil, fmt.Errorf("two secrets are labelled %q: give each a label of its own", label)
		}
		labels[label] = struct{}{}

		value, err := repl.ReplaceOrErr(s.Value, true, true)
		if err != nil || strings.TrimSpace(value) == "" {
			source := ""
			if onePlaceholder.MatchString(s.Value) {
				source = " " + s.Value
			}
			return nil, fmt.Errorf("secret %s%s is empty, or a placeholder in it is unknown or empty: check that the environment variable is set, or that the file exists, can be read and is not empty", label, source)
		}
		if len(value) < shortSecret {
			logger.Warn("the secret is short enough to be guessed", zap.String("secret", label), zap.Int("recommended_minimum_bytes", shortSecret))
		}
		k := newKey(label, []byte(value))
		if scope != "" {
			k.scope = scope
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func newKey(label string, secret []byte) *key {
	k := &key{label: label}
	k.macs.New = func() any { return hmac.New(sha256.New, secret) }
	fingerprint := k.sign([]byte("buzzbip_webhook scope"))
	k.scope = hex.EncodeToString(fingerprint[:8])
	return k
}

func (k *key) sign(body []byte) (sum [sha256.Size]byte) {
	mac := k.macs.Get().(hash.Hash)
	mac.Reset()
	mac.Write(body)
	mac.Sum(sum[:0])
	k.macs.Put(mac)
	return sum
}

// verify returns the first key under which signature is that of body, or nil.
func verify(keys []*key, body []byte, signature [sha256.Size]byte) *key {
	for _, k := range keys {
		expected := k.sign(body)
		if hmac.Equal(expected[:], signature[:]) {
			return k
		}
	}
	return nil
}

// signatureHeaderKey is SignatureHeader as net/http spells it in a header map.
var signatureHeaderKey = http.CanonicalHeaderKey(SignatureHeader)

// parseSignature reads the signature from the headers of a request.
func parseSignature(header http.Header) (signature [sha256.Size]byte, reason Reason, err error) {
	values := header[signatureHeaderKey]
	switch {
	case len(values) == 0:
		return signature, ReasonSignatureMissing, errors.New("the request has no " + SignatureHeader + " header")
	case len(values) > 1:
		return signature, ReasonSignatureMalformed, errors.New("the request has more than one " + SignatureHeader + " header")
	}
	if len(values[0]) != hex.EncodedLen(len(signature)) {
		return signature, ReasonSignatureMalformed, fmt.Errorf("the %s header must be %d hex digits, not %d characters",
			SignatureHeader, hex.EncodedLen(len(signature)), len(values[0]))
	}
	var digits [2 * sha256.Size]byte
	copy(digits[:], values[0])
	if _, err := hex.Decode(signature[:], digits[:]); err != nil {
		return signature, ReasonSignatureMalformed, errors.New("the " + SignatureHeader + " header must be hex digits")
	}
	return signature, "", nil
}
