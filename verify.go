package buzzbip

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

// SignatureHeader carries the HMAC-SHA256 of the raw request body under the
// webhook's signing secret, in hex. BuzzBip signs nothing else (developer
// documentation, "Webhooks", updated 2026-06-01).
const SignatureHeader = "X-BuzzBip-Signature"

// shortSecret is the length in bytes below which a secret gets a warning.
const shortSecret = 16

// Secret is one signing secret: a value, or a file that holds it.
type Secret struct {
	// The secret as BuzzBip shows it. Global placeholders are replaced when
	// the configuration is loaded: write `{env.NAME}` or `{file./path}` to keep
	// the secret itself out of the configuration.
	Value string `json:"value,omitempty"`

	// A file that holds the secret, and is read again when it has changed,
	// within seconds. One newline at its end is not part of the secret. A file
	// that becomes empty or unreadable leaves the last secret in force. Global
	// placeholders are replaced.
	File string `json:"file,omitempty"`

	// A name for the secret in placeholders, logs and metrics. Default: its
	// place among the secrets, `1` for the first.
	Label string `json:"label,omitempty"`
}

// key verifies signatures under one secret.
type key struct {
	label       string
	scope       string
	fingerprint string        // of the secret; it is the scope unless one is configured
	macs        sync.Pool     // of hash.Hash, keyed with the secret
	last        *atomic.Int64 // when it matched
}

// onePlaceholder matches values that can be shown, as they are no secrets.
var onePlaceholder = regexp.MustCompile(`^\{(env|file)\.[^{}]+\}$`)

// newKeys resolves the secrets. No error and no log entry of it contains one.
func newKeys(secrets []Secret, scope string, logger *zap.Logger) (*keyring, error) {
	if len(secrets) == 0 {
		return nil, errors.New("no secret: give the webhook's signing secret, for example secret {env.BUZZBIP_SECRET}")
	}
	repl := caddy.NewReplacer()
	ring := &keyring{logger: logger, scope: scope}
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

		src := &source{label: label}
		var value []byte
		if s.File != "" {
			if s.Value != "" {
				return nil, fmt.Errorf("secret %s has both a value and a file: give one of them", label)
			}
			path, err := repl.ReplaceOrErr(s.File, true, true)
			if err != nil {
				return nil, fmt.Errorf("the file of secret %s: %w", label, err)
			}
			src.path = path
			if value, err = src.read(); err != nil {
				return nil, fmt.Errorf("secret %s: %w", label, err)
			}
		} else {
			expanded, err := repl.ReplaceOrErr(s.Value, true, true)
			if err != nil || strings.TrimSpace(expanded) == "" {
				name := ""
				if onePlaceholder.MatchString(s.Value) {
					name = " " + s.Value
				}
				return nil, fmt.Errorf("secret %s%s is empty, or a placeholder in it is unknown or empty: check that the environment variable is set, or that the file exists, can be read and is not empty", label, name)
			}
			value = []byte(expanded)
		}
		ring.set(src, value)
		ring.sources = append(ring.sources, src)
	}
	return ring, nil
}

// keyring holds the keys of one handler.
type keyring struct {
	sources []*source
	scope   string // "": that of the secret
	logger  *zap.Logger
}

// source is where a key comes from.
type source struct {
	label string
	path  string // "": it never changes
	value []byte // as it was read last
	key   atomic.Pointer[key]
}

// set puts a secret into force.
func (ring *keyring) set(src *source, value []byte) {
	if len(value) < shortSecret {
		ring.logger.Warn("the secret is short enough to be guessed", zap.String("secret", src.label), zap.Int("recommended_minimum_bytes", shortSecret))
	}
	k := newKey(src.label, value)
	if ring.scope != "" {
		k.scope = ring.scope
	}
	src.value = value
	src.key.Store(k)
}

// maxSecretFile is the size of the largest file that can be a secret.
const maxSecretFile = 64 << 10

// read returns the secret in the file.
func (src *source) read() ([]byte, error) {
	file, err := os.Open(src.path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return readSecret(file, src.path)
}

// readSecret reads a secret, without the newline at its end.
func readSecret(from io.Reader, name string) ([]byte, error) {
	value, err := io.ReadAll(io.LimitReader(from, maxSecretFile+1))
	if err != nil {
		return nil, err
	}
	if len(value) > maxSecretFile {
		return nil, fmt.Errorf("%s is too large for a secret", name)
	}
	value = bytes.TrimSuffix(bytes.TrimSuffix(value, []byte("\n")), []byte("\r"))
	if len(bytes.TrimSpace(value)) == 0 {
		return nil, fmt.Errorf("%s is empty", name)
	}
	return value, nil
}

// watchInterval is how often the files are read. Reading sees every kind of
// change, also of what a path leads to by symbolic links or mounts.
const watchInterval = 2 * time.Second

// watch reads the files again and again until ctx is done.
func (ring *keyring) watch(ctx context.Context) {
	var files []*source
	for _, src := range ring.sources {
		if src.path != "" {
			files = append(files, src)
		}
	}
	if len(files) == 0 {
		return
	}
	go func() {
		failing := make(map[*source]string) // what was logged
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(watchInterval):
			}
			for _, src := range files {
				value, err := src.read()
				if err != nil {
					if failing[src] != err.Error() {
						ring.logger.Error("the file of a secret cannot be read again: the last secret stays in force", zap.String("secret", src.label), zap.Error(err))
						failing[src] = err.Error()
					}
					continue
				}
				if failing[src] != "" {
					ring.logger.Info("the file of a secret can be read again", zap.String("secret", src.label))
					delete(failing, src)
				}
				if !bytes.Equal(value, src.value) {
					ring.set(src, value)
					ring.logger.Info("the secret has changed", zap.String("secret", src.label))
				}
			}
		}
	}()
}

// all returns the keys that are in force now.
func (ring *keyring) all() iter.Seq[*key] {
	return func(yield func(*key) bool) {
		for _, src := range ring.sources {
			if !yield(src.key.Load()) {
				return
			}
		}
	}
}

func newKey(label string, secret []byte) *key {
	k := &key{label: label}
	k.macs.New = func() any { return hmac.New(sha256.New, secret) }
	sum := k.sign([]byte("buzzbip_webhook scope"))
	k.fingerprint = hex.EncodeToString(sum[:8])
	k.scope = k.fingerprint
	last, _ := lastMatched.LoadOrStore([2]string{label, k.fingerprint}, new(atomic.Int64))
	k.last = last.(*atomic.Int64)
	return k
}

// lastMatched holds when each secret last matched, as a Unix time in
// nanoseconds, by label and fingerprint: it is told also after a reload.
var lastMatched sync.Map

// matched notes that the secret is in use.
func (k *key) matched() {
	metrics.signatureMatches.WithLabelValues(k.label).Inc()
	k.last.Store(time.Now().UnixNano())
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
func (ring *keyring) verify(body []byte, signature [sha256.Size]byte) *key {
	for k := range ring.all() {
		expected := k.sign(body)
		if hmac.Equal(expected[:], signature[:]) {
			return k
		}
	}
	return nil
}

// Sign returns the signature of a body under a secret, as BuzzBip sends it in
// [SignatureHeader].
func Sign(secret, body []byte) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
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
