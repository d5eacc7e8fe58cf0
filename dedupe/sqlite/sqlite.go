// Package sqlite is the Caddy module that remembers event IDs in an SQLite
// database, so that a restart or a crash forgets nothing.
package sqlite

import (
	"context"
	"errors"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/database"
)

func init() {
	caddy.RegisterModule(Store{})
}

// Store remembers event IDs in an SQLite database: 70 to 110 bytes of disk for
// each ID. A delivered ID is on the disk before the sender is answered. IDs are
// looked up in the file, so memory and the time to start do not depend on their
// number. Only one process can use the file, with any number of handlers and
// scopes.
type Store struct {
	// The path of the file, which is created if it does not exist. Global
	// placeholders are expanded. Default: `buzzbip/webhook.db` in Caddy's data directory.
	Path string `json:"path,omitempty"`

	path    string
	started bool
}

// states are those of open files, by path. They are referenced by each store that
// has started, by each operation while it runs, and by each claim until it is
// settled: requests can outlive the configuration that they arrived under.
var states = caddy.NewUsagePool()

// CaddyModule returns the Caddy module information.
func (Store) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.buzzbip_webhook.stores.sqlite",
		New: func() caddy.Module { return new(Store) },
	}
}

// Provision resolves the path. It does not open the file: `caddy validate` runs
// while another Caddy uses it.
func (s *Store) Provision(caddy.Context) error {
	var err error
	s.path, err = database.Resolve(s.Path)
	return err
}

// Start opens the file.
func (s *Store) Start() error {
	_, err := s.acquire()
	s.started = err == nil
	return err
}

// Cleanup releases the file.
func (s *Store) Cleanup() error {
	if !s.started {
		return nil
	}
	s.started = false
	return s.release()
}

// UnmarshalCaddyfile sets up the store from Caddyfile tokens. Syntax:
//
//	sqlite [<path>]
func (s *Store) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name of the store
	var err error
	if s.Path, err = database.PathArg(d); err != nil {
		return err
	}
	if d.NextBlock(0) {
		return d.Errf("store sqlite has no option %q: it takes a path only", d.Val())
	}
	return nil
}

// acquire returns the state of the file and adds a reference to it.
func (s *Store) acquire() (*state, error) {
	st, _, err := states.LoadOrNew(s.path, func() (caddy.Destructor, error) { return open(s.path) })
	if err != nil {
		return nil, err
	}
	return st.(*state), nil
}

func (s *Store) release() error {
	_, err := states.Delete(s.path)
	return err
}

// Claim implements [dedupe.Store].
func (s *Store) Claim(ctx context.Context, r dedupe.Request) (dedupe.Verdict, error) {
	st, err := s.acquire()
	if err != nil {
		return dedupe.Verdict{}, err
	}
	v, err := st.claim(ctx, r)
	if err != nil || v.State != dedupe.Claimed {
		_ = s.release() // the answer is right whether the file closes or not
	}
	return v, err
}

// Settle implements [dedupe.Store].
func (s *Store) Settle(ctx context.Context, c dedupe.Claim, delivered bool) error {
	st, err := s.acquire()
	if err != nil {
		return err // then there is no claim either
	}
	current, err := st.settle(ctx, c, delivered)
	if current {
		err = errors.Join(err, s.release()) // the reference of the claim
	}
	return errors.Join(err, s.release())
}

// Lookup implements [dedupe.Store].
func (s *Store) Lookup(ctx context.Context, scope string, key dedupe.Key) (dedupe.Status, error) {
	st, err := s.acquire()
	if err != nil {
		return dedupe.Status{}, err
	}
	status, err := st.lookup(ctx, id{scope, key})
	return status, errors.Join(err, s.release())
}

// Forget implements [dedupe.Store].
func (s *Store) Forget(ctx context.Context, scope string, key dedupe.Key) (bool, error) {
	st, err := s.acquire()
	if err != nil {
		return false, err
	}
	forgotten, err := st.forget(ctx, id{scope, key})
	return forgotten, errors.Join(err, s.release())
}

// Stats implements [dedupe.Store].
func (s *Store) Stats() dedupe.Stats {
	st, err := s.acquire()
	if err != nil {
		return dedupe.Stats{Backing: s.path, Err: err}
	}
	stats := st.stats()
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
