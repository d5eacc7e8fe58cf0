// Package redis is the Caddy module that remembers event IDs in Redis or
// Valkey, so that several Caddy instances act as one.
package redis

import (
	"context"
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

func init() {
	caddy.RegisterModule(Store{})
}

// Store remembers event IDs in Redis 7 or newer, or Valkey: one server, a
// Cluster, or a server that Sentinel monitors. Caddy starts and reloads even
// while Redis is down.
type Store struct {
	// The URL of Redis: `redis://` or, with TLS, `rediss://`, then
	// `[[user]:password@]host[:port][/database]`. Several URLs, or several
	// `addr=host:port` parameters, are nodes of one Cluster. With the parameter
	// `master_set=<name>` they are Sentinels that monitor the master of that
	// name; `sentinel_username` and `sentinel_password` are the credentials for
	// the Sentinels. Global placeholders such as `{env.REDIS_URL}` are expanded
	// when the configuration is loaded.
	URLs []string `json:"urls,omitempty"`

	// The prefix of all keys. Default: `buzzbip:`.
	KeyPrefix string `json:"key_prefix,omitempty"`

	// How long one operation may take before Redis counts as down: at most 5s.
	// Default: 1s.
	Timeout *caddy.Duration `json:"timeout,omitempty"`

	// What to do while Redis is down: `memory` lets events pass, deduplicates
	// them within this instance, and records them in Redis when it is back;
	// `refuse` answers 503. Default: `memory`.
	WhenDown string `json:"when_down,omitempty"`

	// A PEM file with the CA certificates to trust for `rediss://`. Default:
	// those of the system.
	CA string `json:"ca,omitempty"`

	settings    settings
	provisioned bool
}

// connections are shared by the stores with equal settings, by fingerprint.
//
// A connection is referenced by each provisioned store, by each operation while
// it runs, by each claim until it is settled, and by itself while outcomes are
// pending: requests can outlive the configuration that they arrived under.
var connections = caddy.NewUsagePool()

// CaddyModule returns the Caddy module information.
func (Store) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.buzzbip_webhook.stores.redis",
		New: func() caddy.Module { return new(Store) },
	}
}

// Provision checks the settings and starts to connect, in the background.
func (s *Store) Provision(caddy.Context) error {
	if err := s.resolve(); err != nil {
		return err
	}
	// not in resolve, because tests on a busy machine wait longer
	if s.settings.timeout > maxTimeout {
		return fmt.Errorf("timeout must be at most %s, not %s: a claim could end before its delivery is recorded", maxTimeout, s.settings.timeout)
	}
	s.provisioned = true
	s.acquire()
	return nil
}

// Cleanup releases the connection.
func (s *Store) Cleanup() error {
	if !s.provisioned {
		return nil
	}
	if caddy.Exiting() {
		flushAllOnExit()
	}
	s.release()
	return nil
}

// acquire returns the connection and adds a reference to it.
func (s *Store) acquire() *connection {
	c, _, _ := connections.LoadOrNew(s.settings.fingerprint, func() (caddy.Destructor, error) { return connect(s.settings), nil })
	return c.(*connection)
}

// release removes a reference to the connection.
func (s *Store) release() { _, _ = connections.Delete(s.settings.fingerprint) }

// acquireForClaim adds the reference of a claim that was granted.
func (s *Store) acquireForClaim() { s.acquire() }

// releaseForClaim removes the reference of a claim that was settled.
func (s *Store) releaseForClaim() { s.release() }

// Claim implements [dedupe.Store].
func (s *Store) Claim(ctx context.Context, r dedupe.Request) (dedupe.Verdict, error) {
	c := s.acquire()
	defer s.release()
	v, err := c.claim(ctx, r)
	if err == nil && v.State == dedupe.Claimed {
		s.acquireForClaim()
	}
	return v, err
}

// Settle implements [dedupe.Store].
func (s *Store) Settle(ctx context.Context, claim dedupe.Claim, delivered bool) error {
	c := s.acquire()
	defer s.release()
	current, err := c.settle(ctx, claim, delivered)
	if current {
		s.releaseForClaim()
	}
	return err
}

// Lookup implements [dedupe.Store].
func (s *Store) Lookup(ctx context.Context, scope string, key dedupe.Key) (dedupe.Status, error) {
	c := s.acquire()
	defer s.release()
	return c.lookup(ctx, id{scope, key})
}

// Forget implements [dedupe.Store].
func (s *Store) Forget(ctx context.Context, scope string, key dedupe.Key) (bool, error) {
	c := s.acquire()
	defer s.release()
	return c.forget(ctx, id{scope, key})
}

// Stats implements [dedupe.Store]. It counts the IDs that this process
// delivered and still remembers.
func (s *Store) Stats() dedupe.Stats {
	c := s.acquire()
	defer s.release()
	return c.stats()
}

// logger returns the logger of the active configuration.
func logger() *zap.Logger { return caddy.Log().Named("http.buzzbip_webhook.stores.redis") }

// Interface guards
var (
	_ caddy.Provisioner     = (*Store)(nil)
	_ caddy.CleanerUpper    = (*Store)(nil)
	_ caddyfile.Unmarshaler = (*Store)(nil)
	_ dedupe.Store          = (*Store)(nil)
)
