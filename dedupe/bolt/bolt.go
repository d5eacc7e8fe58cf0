// Package bolt is the Caddy module that remembers event IDs in a file, so that a
// restart or a crash forgets nothing.
package bolt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

func init() {
	caddy.RegisterModule(Store{})
}

// Store remembers event IDs in a bbolt file, with an index in memory: about 52
// bytes of memory and 60 bytes of disk for each ID. A delivered ID is on the
// disk before the sender is answered. Only one process can use the file, with
// any number of handlers and scopes.
type Store struct {
	// The path of the file, which is created if it does not exist. Global
	// placeholders are expanded. Default: `buzzbip_webhook/events.db` in Caddy's data directory.
	Path string `json:"path,omitempty"`

	path string
	held bool // by Start
}

// files are open, by path. Stores, operations and claims hold them, for
// requests outlive the configuration that they came under.
var files = caddy.NewUsagePool()

// CaddyModule returns the Caddy module information.
func (Store) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.buzzbip_webhook.stores.bolt",
		New: func() caddy.Module { return new(Store) },
	}
}

// Provision resolves the path. It does not open the file: `caddy validate` does
// not either, while a running Caddy has it.
func (s *Store) Provision(caddy.Context) error {
	path := filepath.Join(caddy.AppDataDir(), "buzzbip_webhook", "events.db")
	if s.Path != "" {
		var err error
		if path, err = caddy.NewReplacer().ReplaceOrErr(s.Path, true, true); err != nil {
			return fmt.Errorf("path: %w", err)
		}
		if strings.TrimSpace(path) == "" {
			return errors.New("path is empty")
		}
	}
	var err error
	s.path, err = canonical(path)
	return err
}

// canonical returns one path for all spellings of it, the same before and after
// the file and the directories that it is in have been made.
func canonical(path string) (string, error) {
	existing, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	missing := ""
	for links := 0; links < 40; { // more lead in a circle
		real, err := filepath.EvalSymlinks(existing)
		if err == nil {
			return filepath.Join(real, missing), nil
		}
		dir := filepath.Dir(existing)
		target, err := os.Readlink(existing)
		if err != nil {
			if dir == existing { // a drive that is not there
				return "", err
			}
			missing = filepath.Join(filepath.Base(existing), missing)
			existing = dir
			continue
		}
		links++
		if !filepath.IsAbs(target) { // it counts from where the directory really is
			if dir, err = filepath.EvalSymlinks(dir); err != nil {
				return "", err
			}
			target = filepath.Join(dir, target)
		}
		existing = target
	}
	return "", fmt.Errorf("%s: too many symbolic links", path)
}

// Start opens the file, when the configuration comes into force.
func (s *Store) Start() error {
	_, err := s.acquire()
	s.held = err == nil
	return err
}

// Cleanup lets go of the file.
func (s *Store) Cleanup() error {
	if !s.held {
		return nil
	}
	return s.release()
}

// UnmarshalCaddyfile sets up the store from Caddyfile tokens. Syntax:
//
//	bolt [<path>]
func (s *Store) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name of the store
	if d.NextArg() {
		if s.Path = d.Val(); s.Path == "" {
			return d.Err("the path is empty")
		}
	}
	if d.NextArg() {
		return d.ArgErr()
	}
	if d.NextBlock(0) {
		return d.Errf("store bolt has no option %q: it takes a path only", d.Val())
	}
	return nil
}

func (s *Store) acquire() (*file, error) {
	f, _, err := files.LoadOrNew(s.path, func() (caddy.Destructor, error) { return open(s.path) })
	if err != nil {
		return nil, err
	}
	return f.(*file), nil
}

func (s *Store) release() error {
	_, err := files.Delete(s.path)
	return err
}

// Claim implements [dedupe.Store].
func (s *Store) Claim(ctx context.Context, r dedupe.Request) (dedupe.Verdict, error) {
	f, err := s.acquire()
	if err != nil {
		return dedupe.Verdict{}, err
	}
	v, err := f.ledger.Claim(ctx, r, dedupe.Limits{})
	if err != nil || v.State != dedupe.Claimed {
		_ = s.release() // the file has closed or not: the answer is right
	}
	return v, err
}

// Settle implements [dedupe.Store].
func (s *Store) Settle(ctx context.Context, c dedupe.Claim, delivered bool) error {
	f, err := s.acquire()
	if err != nil {
		return err // there is no claim either, then
	}
	settled, err := f.settle(ctx, c, delivered)
	if settled {
		err = errors.Join(err, s.release()) // what Claim kept
	}
	return errors.Join(err, s.release())
}

// Lookup implements [dedupe.Store].
func (s *Store) Lookup(_ context.Context, scope string, key dedupe.Key) (dedupe.Status, error) {
	f, err := s.acquire()
	if err != nil {
		return dedupe.Status{}, err
	}
	return f.ledger.Lookup(scope, key), s.release()
}

// Forget implements [dedupe.Store].
func (s *Store) Forget(ctx context.Context, scope string, key dedupe.Key) (bool, error) {
	f, err := s.acquire()
	if err != nil {
		return false, err
	}
	forgotten, err := f.forget(ctx, scope, key)
	return forgotten, errors.Join(err, s.release())
}

// Stats implements [dedupe.Store].
func (s *Store) Stats() dedupe.Stats {
	f, err := s.acquire()
	if err != nil {
		return dedupe.Stats{Backing: s.path, Err: err}
	}
	stats := f.stats()
	if err := s.release(); err != nil {
		stats.Err = err
	}
	return stats
}

// Interface guards
var (
	_ caddy.Provisioner     = (*Store)(nil)
	_ caddy.CleanerUpper    = (*Store)(nil)
	_ caddyfile.Unmarshaler = (*Store)(nil)
	_ dedupe.Store          = (*Store)(nil)
	_ dedupe.Starter        = (*Store)(nil)
)
