// Package memory is the Caddy module that remembers event IDs in the memory of
// one process.
package memory

import (
	"context"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/option"
)

func init() {
	caddy.RegisterModule(Store{})
}

const (
	defaultCapacity = 1_000_000

	forgetOldest = "forget_oldest"
	refuse       = "refuse"
)

// Store remembers event IDs in the memory of this process: across reloads of the
// configuration, but not across a restart. It takes about 52 bytes for each ID.
type Store struct {
	// The greatest number of delivered IDs to remember for each scope. Default:
	// 1000000.
	Capacity *int `json:"capacity,omitempty"`

	// What to do when capacity is reached: `forget_oldest` forgets the oldest
	// IDs, so that a very late duplicate of one of them is delivered; `refuse`
	// answers new events with 503 until IDs have expired. Default:
	// `forget_oldest`.
	WhenFull string `json:"when_full,omitempty"`

	limits dedupe.Limits
}

// ledger is shared by all stores of the process, so that the IDs outlive the
// configuration that they were delivered under.
var ledger dedupe.Ledger

// CaddyModule returns the Caddy module information.
func (Store) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.buzzbip_webhook.stores.memory",
		New: func() caddy.Module { return new(Store) },
	}
}

// Provision checks the settings.
func (s *Store) Provision(caddy.Context) error {
	var err error
	if s.limits.Capacity, err = option.Resolve("capacity", s.Capacity, defaultCapacity); err != nil {
		return err
	}
	s.limits.RefuseWhenFull, err = option.Choice("when_full", s.WhenFull, forgetOldest, refuse)
	return err
}

// UnmarshalCaddyfile sets up the store from Caddyfile tokens. Syntax:
//
//	memory {
//		capacity  <n>
//		when_full forget_oldest|refuse
//	}
func (s *Store) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name of the store
	if d.NextArg() {
		return d.ArgErr()
	}
	for d.NextBlock(0) {
		switch name := d.Val(); name {
		case "capacity":
			if err := option.Once(d, s.Capacity != nil); err != nil {
				return err
			}
			var err error
			if s.Capacity, err = option.Count(d); err != nil {
				return err
			}
		case "when_full":
			if err := option.Once(d, s.WhenFull != ""); err != nil {
				return err
			}
			value, err := option.Word(d)
			if err != nil {
				return err
			}
			s.WhenFull = value
		default:
			return d.Errf("unknown option %q of store memory: it has capacity and when_full", name)
		}
	}
	return nil
}

// Claim implements [dedupe.Store].
func (s *Store) Claim(ctx context.Context, r dedupe.Request) (dedupe.Verdict, error) {
	return ledger.Claim(ctx, r, s.limits)
}

// Settle implements [dedupe.Store]. It never fails.
func (s *Store) Settle(_ context.Context, c dedupe.Claim, delivered bool) error {
	ledger.Settle(c, delivered, time.Now(), s.limits)
	return nil
}

// Lookup implements [dedupe.Store]. It never fails.
func (s *Store) Lookup(_ context.Context, scope string, key dedupe.Key) (dedupe.Status, error) {
	return ledger.Lookup(scope, key), nil
}

// Forget implements [dedupe.Store]. It never fails.
func (s *Store) Forget(_ context.Context, scope string, key dedupe.Key) (bool, error) {
	return ledger.Forget(scope, key).Delivered, nil
}

// Stats implements [dedupe.Store].
func (s *Store) Stats() dedupe.Stats {
	stats := ledger.Stats(s.limits)
	stats.Backing = "this process"
	return stats
}

// Interface guards
var (
	_ caddy.Provisioner     = (*Store)(nil)
	_ caddyfile.Unmarshaler = (*Store)(nil)
	_ dedupe.Store          = (*Store)(nil)
)
