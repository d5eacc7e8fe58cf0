package buzzbip

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// secretFileTimeout is how long a file may take to be read: network file systems
// can block forever.
const secretFileTimeout = 5 * time.Second

var (
	// onlyPlaceholders matches values that are no secrets themselves.
	onlyPlaceholders = regexp.MustCompile(`^(\{[^{}]+\})+$`)
	// onePlaceholder matches values that errors may show.
	onePlaceholder = regexp.MustCompile(`^\{(env|file)\.[^{}]+\}$`)
)

// expandSecret replaces global placeholders. A file is read as that of
// secret_file is: Caddy would wait for the other end of a pipe. Its errors, as
// those of [webhook.CheckSecret], continue a sentence.
func expandSecret(text string) (string, error) {
	global, repl := caddy.NewReplacer(), caddy.NewEmptyReplacer()
	var fileErr error
	repl.Map(func(name string) (any, bool) {
		path, isFile := strings.CutPrefix(name, "file.")
		if !isFile {
			return global.Get(name)
		}
		value, err := newSource("", path).load()
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

// load returns the secret in a regular file, which must answer in time. A read
// that does not end is waited for again by the next call, so that they do not
// pile up.
func (src *source) load() ([]byte, error) {
	if src.pending == nil {
		src.pending = make(chan loaded, 1)
		go func(done chan<- loaded) {
			value, err := src.readFile(src.path)
			done <- loaded{value, err}
		}(src.pending)
	}
	select {
	case got := <-src.pending:
		src.pending = nil
		return got.value, got.err
	case <-time.After(secretFileTimeout):
		return nil, fmt.Errorf("%s does not answer within %s: is its file system still there?", src.path, secretFileTimeout)
	}
}

// loaded is what reading a file has given.
type loaded struct {
	value []byte
	err   error
}
