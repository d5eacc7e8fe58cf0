package buzzbip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// Secret is one signing secret: a value, or a file that holds it.
type Secret struct {
	// The secret as BuzzBip shows it. Global placeholders are replaced when
	// the configuration is loaded: write `{env.NAME}` or `{file./path}` to keep
	// the secret itself out of the configuration.
	Value string `json:"value,omitempty"`

	// A file that holds the secret. Changes of the file become active within
	// seconds, without a reload. One newline at its end is not part of the
	// secret. If the file becomes empty or unreadable, or holds what cannot be
	// a secret, the current secret stays active. Global placeholders are
	// replaced.
	File string `json:"file,omitempty"`

	// A name for the secret in placeholders, logs and metrics. Default: its
	// place among the secrets, `1` for the first.
	Label string `json:"label,omitempty"`
}

// secrets are those of one handler.
type secrets struct {
	list   []*secret
	scope  string // configured; "": each key has its own
	logger *zap.Logger
}

// secret is one of them, with the key of its current value.
type secret struct {
	label string
	key   atomic.Pointer[key]

	// The rest is for secrets from files, and used by one goroutine at a time.
	path     string // "": the secret never changes
	value    []byte // current
	lastRead []byte // of the file
	readFile func(path string) ([]byte, error)
	reading  chan readResult // a read that has not returned; nil: none
}

type readResult struct {
	value []byte
	err   error
}

func newSecret(label, path string) *secret {
	return &secret{label: label, path: path, readFile: webhook.ReadSecretFile}
}

const (
	// secretFileTimeout bounds one read of a file: network file systems can
	// block forever.
	secretFileTimeout = 5 * time.Second

	// watchInterval is how often files are read. Reading notices every kind of
	// change, also of what symbolic links and mounts lead to.
	watchInterval = 2 * time.Second
)

var (
	// onlyPlaceholders matches values that contain no secret themselves.
	onlyPlaceholders = regexp.MustCompile(`^(\{[^{}]+\})+$`)
	// onePlaceholder matches values that errors may show.
	onePlaceholder = regexp.MustCompile(`^\{(env|file)\.[^{}]+\}$`)
)

// loadSecrets resolves the configured secrets. Neither its errors nor what it
// logs contain one.
func loadSecrets(configured []Secret, scope string, logger *zap.Logger) (*secrets, error) {
	if len(configured) == 0 {
		return nil, errors.New("no secret: give the webhook's signing secret, for example secret {env.BUZZBIP_SECRET}")
	}
	all := &secrets{scope: scope, logger: logger}
	labels := make(map[string]struct{})
	for i, c := range configured {
		if c.Label == "" {
			c.Label = strconv.Itoa(i + 1)
		}
		if _, repeated := labels[c.Label]; repeated {
			return nil, fmt.Errorf("two secrets have the label %q: give each its own", c.Label)
		}
		labels[c.Label] = struct{}{}
		s := newSecret(c.Label, "")
		value, err := all.resolve(s, c)
		if err != nil {
			return nil, err
		}
		if err := all.activate(s, value); err != nil {
			return nil, fmt.Errorf("secret %s %w", c.Label, err)
		}
		all.list = append(all.list, s)
	}
	return all, nil
}

// resolve returns the value of a configured secret, and sets the path of s if
// it is in a file.
func (all *secrets) resolve(s *secret, configured Secret) ([]byte, error) {
	if configured.File != "" {
		if configured.Value != "" {
			return nil, fmt.Errorf("secret %s has both a value and a file: give one of them", s.label)
		}
		path, err := expandSecret(configured.File)
		if err != nil {
			return nil, fmt.Errorf("the file of secret %s %w", s.label, err)
		}
		s.path = path
		value, err := s.read()
		if err != nil {
			return nil, fmt.Errorf("secret %s cannot be read: %w", s.label, err)
		}
		return value, nil
	}
	value, err := expandSecret(configured.Value)
	if err != nil {
		return nil, fmt.Errorf("secret %s %w", s.label, err)
	}
	if !onlyPlaceholders.MatchString(configured.Value) && !webhook.LooksUnexpanded(value) {
		all.logger.Warn("the secret is in the configuration in clear text, so it shows in GET /config/ and in the autosave: write {env.NAME} (not {$NAME}) or {file./path}, or use secret_file", zap.String("secret", s.label))
	}
	return []byte(value), nil
}

// expandSecret replaces global placeholders. It reads files as secret_file does,
// because Caddy's own placeholder waits forever for the other end of a pipe.
// Its errors, as those of [webhook.CheckSecret], continue a sentence.
func expandSecret(text string) (string, error) {
	global, repl := caddy.NewReplacer(), caddy.NewEmptyReplacer()
	var fileErr error
	repl.Map(func(name string) (any, bool) {
		path, isFile := strings.CutPrefix(name, "file.")
		if !isFile {
			return global.Get(name)
		}
		value, err := newSecret("", path).read()
		if err != nil {
			fileErr = err
		}
		return value, true
	})
	expanded, err := repl.ReplaceOrErr(text, true, true)
	if fileErr != nil {
		return "", fmt.Errorf("cannot be read: %w", fileErr)
	}
	if err != nil || strings.TrimSpace(expanded) == "" {
		name := ""
		if onePlaceholder.MatchString(text) {
			name = text + " "
		}
		return "", fmt.Errorf("%sis empty, or a placeholder in it is unknown or empty: check that the environment variable is set", name)
	}
	return expanded, nil
}

// activate makes a value the current one of s, unless it cannot be a secret.
func (all *secrets) activate(s *secret, value []byte) error {
	warnings, err := webhook.CheckSecret(value)
	if err != nil {
		return err
	}
	for _, warning := range warnings {
		all.logger.Warn("the secret "+warning, zap.String("secret", s.label))
	}
	s.value = value
	s.key.Store(newKey(s.label, value, all.scope))
	return nil
}

// keys returns the current keys.
func (all *secrets) keys() iter.Seq[*key] {
	return func(yield func(*key) bool) {
		for _, s := range all.list {
			if !yield(s.key.Load()) {
				return
			}
		}
	}
}

// read returns the secret in the file. If an earlier read has not returned yet,
// it waits for that one, so that reads that block do not pile up.
func (s *secret) read() ([]byte, error) {
	if s.reading == nil {
		s.reading = make(chan readResult, 1)
		go func(result chan<- readResult) {
			value, err := s.readFile(s.path)
			result <- readResult{value, err}
		}(s.reading)
	}
	select {
	case result := <-s.reading:
		s.reading = nil
		return result.value, result.err
	case <-time.After(secretFileTimeout):
		return nil, fmt.Errorf("%s does not answer within %s: is its file system still there?", s.path, secretFileTimeout)
	}
}

// watch reads the files periodically until ctx is done, and calls rotated with the
// label of a secret that has changed.
func (all *secrets) watch(ctx context.Context, rotated func(label string)) {
	var files []*secret
	for _, s := range all.list {
		if s.path != "" {
			files = append(files, s)
		}
	}
	if len(files) == 0 {
		return
	}
	go func() {
		logged := make(map[*secret]string) // the error of files that cannot be read now
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(watchInterval):
			}
			for _, s := range files {
				changed, err := all.reload(s)
				switch {
				case err != nil:
					if logged[s] != err.Error() {
						all.logger.Error("failed to reload secret file; keeping the current secret", zap.String("secret", s.label), zap.Error(err))
						logged[s] = err.Error()
					}
					continue
				case logged[s] != "":
					all.logger.Info("secret file can be read again", zap.String("secret", s.label))
					delete(logged, s)
				}
				if changed {
					all.logger.Info("the secret has changed", zap.String("secret", s.label))
					rotated(s.label)
				}
			}
		}
	}()
}

// reload reads the file of s and activates a change once two reads in a row
// agree on it: one read alone may see a half-written file.
func (all *secrets) reload(s *secret) (changed bool, err error) {
	value, err := s.read()
	if err != nil {
		s.lastRead = nil
		return false, err
	}
	stable := bytes.Equal(value, s.lastRead)
	s.lastRead = value
	if !stable || bytes.Equal(value, s.value) {
		return false, nil
	}
	if err := all.activate(s, value); err != nil {
		return false, fmt.Errorf("the secret in %s %w", s.path, err)
	}
	return true, nil
}
