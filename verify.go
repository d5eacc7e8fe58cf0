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
	"iter"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
	"go.uber.org/zap"
)

// Secret is one signing secret: a value, or a file that holds it.
type Secret struct {
	// The secret as BuzzBip shows it. Global placeholders are replaced when
	// the configuration is loaded: write `{env.NAME}` or `{file./path}` to keep
	// the secret itself out of the configuration.
	Value string `json:"value,omitempty"`

	// A file that holds the secret, and is read again when it has changed,
	// within seconds. One newline at its end is not part of the secret. A file
	// that becomes empty or unreadable, or holds what cannot be a secret, leaves
	// the last secret active. Global placeholders are replaced.
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

// newKeys resolves the secrets. No error and no log entry of it contains one.
func newKeys(secrets []Secret, scope string, logger *zap.Logger) (*keyring, error) {
	if len(secrets) == 0 {
		return nil, errors.New("no secret: give the webhook's signing secret, for example secret {env.BUZZBIP_SECRET}")
	}
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

		src := newSource(label, "")
		var value []byte
		if s.File != "" {
			if s.Value != "" {
				return nil, fmt.Errorf("secret %s has both a value and a file: give one of them", label)
			}
			path, err := expandSecret(s.File)
			if err != nil {
				return nil, fmt.Errorf("the file of secret %s %w", label, err)
			}
			src.path = path
			if value, err = src.load(); err != nil {
				return nil, fmt.Errorf("secret %s cannot be read: %w", label, err)
			}
		} else {
			expanded, err := expandSecret(s.Value)
			if err != nil {
				return nil, fmt.Errorf("secret %s %w", label, err)
			}
			value = []byte(expanded)
			if !onlyPlaceholders.MatchString(s.Value) && !webhook.LooksUnexpanded(expanded) {
				logger.Warn("the secret is in the configuration in clear text, so it shows in GET /config/ and in the autosave: write {env.NAME} (not {$NAME}) or {file./path}, or use secret_file", zap.String("secret", label))
			}
		}
		if err := ring.set(src, value); err != nil {
			return nil, fmt.Errorf("secret %s %w", label, err)
		}
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
	value []byte // that is active
	key   atomic.Pointer[key]

	readFile func(path string) ([]byte, error)
	latest   []byte      // as the file was read last
	pending  chan loaded // of a read that has not ended
}

func newSource(label, path string) *source {
	return &source{label: label, path: path, readFile: webhook.ReadSecretFile}
}

// set makes a secret active, unless it cannot be one.
func (ring *keyring) set(src *source, value []byte) error {
	warnings, reject := webhook.CheckSecret(value)
	if reject != nil {
		return reject
	}
	for _, warning := range warnings {
		ring.logger.Warn("the secret "+warning, zap.String("secret", src.label))
	}
	k := newKey(src.label, value)
	if ring.scope != "" {
		k.scope = ring.scope
	}
	src.value = value
	src.key.Store(k)
	return nil
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
				changed, err := ring.reload(src)
				if err != nil {
					if failing[src] != err.Error() {
						ring.logger.Error("failed to reload secret file; keeping the current secret", zap.String("secret", src.label), zap.Error(err))
						failing[src] = err.Error()
					}
					continue
				}
				if failing[src] != "" {
					ring.logger.Info("secret file can be read again", zap.String("secret", src.label))
					delete(failing, src)
				}
				if changed {
					ring.logger.Info("the secret has changed", zap.String("secret", src.label))
				}
			}
		}
	}()
}

// reload reads a file and makes a change active that the last read has seen as
// well: one read alone can see a file that is half-written.
func (ring *keyring) reload(src *source) (changed bool, err error) {
	value, err := src.load()
	if err != nil {
		src.latest = nil
		return false, err
	}
	settled := bytes.Equal(value, src.latest)
	src.latest = value
	if !settled || bytes.Equal(value, src.value) {
		return false, nil
	}
	if err := ring.set(src, value); err != nil {
		return false, fmt.Errorf("the secret in %s %w", src.path, err)
	}
	return true, nil
}

// all returns the keys that are active now.
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
