// Package redis is the Caddy module for remembering event ids in Redis or
// Valkey, so that several Caddy instances act as one.
package redis

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/redis/rueidis"
	"go.uber.org/zap"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

func init() {
	caddy.RegisterModule(Store{})
}

const (
	defaultKeyPrefix = "buzzbip:"
	defaultTimeout   = time.Second
	// maxTimeout leaves most of the 15 seconds by which a lease is longer than
	// its delivery: a claim may take as long to be answered, and its end to be
	// recorded.
	maxTimeout = 5 * time.Second

	memory = "memory"
	refuse = "refuse"
)

// Store remembers event ids in Redis 7 or newer, or Valkey: one server, a
// Cluster, or one that Sentinel watches. Caddy starts and reloads whether it
// answers or not.
type Store struct {
	// Where Redis is: `redis://` or, with TLS, `rediss://`, then
	// `[[user]:password@]host[:port][/database]`. Several URLs, or several
	// `addr=host:port` parameters, are nodes of one Cluster. With the parameter
	// `master_set=<name>` they are Sentinels that watch the master of that
	// name; `sentinel_username` and `sentinel_password` are what the Sentinels
	// want to know. Global placeholders such as `{env.REDIS_URL}` are replaced
	// when the configuration is loaded.
	URLs []string `json:"urls,omitempty"`

	// What all keys begin with. Default: `buzzbip:`.
	KeyPrefix string `json:"key_prefix,omitempty"`

	// How long Redis may take for one operation, until it counts as down: at
	// most 5s. Default: 1s.
	Timeout *caddy.Duration `json:"timeout,omitempty"`

	// What to do while Redis is down: `memory` lets events pass, deduplicated
	// within this instance, and records them in Redis when it is back;
	// `refuse` answers 503. Default: `memory`.
	WhenDown string `json:"when_down,omitempty"`

	// A file with the certificates, in PEM, of the authorities that vouch for
	// the servers of `rediss://`. Default: those of the system.
	CA string `json:"ca,omitempty"`

	settings    settings
	provisioned bool
}

// settings are those of a [Store], resolved.
type settings struct {
	client  rueidis.ClientOption
	prefix  string
	timeout time.Duration
	refuse  bool   // when down
	backend string // which ids: the same whatever the credentials and timeouts are
	id      string // stands for all settings
}

// connections are shared by the stores with equal settings. Every operation
// and every claim holds one too, for requests outlive the configuration that
// they came under.
var connections = caddy.NewUsagePool()

// CaddyModule returns the Caddy module information.
func (Store) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.buzzbip_webhook.stores.redis",
		New: func() caddy.Module { return new(Store) },
	}
}

// Provision checks the settings and begins to connect, in the background.
func (s *Store) Provision(caddy.Context) error {
	if err := s.resolve(); err != nil {
		return err
	}
	if s.settings.timeout > maxTimeout { // tests of a busy machine wait longer
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

// flushAllOnExit is for all connections: one of an earlier configuration may be
// kept by what is pending, and another one may be able to tell it.
func flushAllOnExit() {
	var all sync.WaitGroup
	var mu sync.Mutex
	lost, told := 0, make(map[*instance]struct{})
	connections.Range(func(_, value any) bool {
		c := value.(*connection)
		all.Go(func() {
			if !c.flushOnExit() {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			told[c.instance] = struct{}{}
			c.mu.Lock()
			defer c.mu.Unlock()
			lost += c.dropped
		})
		return true
	})
	all.Wait()
	for in := range told {
		lost += in.pending.len()
	}
	if lost > 0 {
		logger().Error("Caddy stops before Redis was back: the ends of some deliveries are not on record, and events among them that were delivered will be delivered again if they are sent again",
			zap.Int("deliveries", lost))
	}
}

func (s *Store) acquire() *connection {
	c, _, _ := connections.LoadOrNew(s.settings.id, func() (caddy.Destructor, error) { return connect(s.settings), nil })
	return c.(*connection)
}

func (s *Store) release() { _, _ = connections.Delete(s.settings.id) }

// resolve makes the settings of the configuration.
func (s *Store) resolve() error {
	set := settings{prefix: defaultKeyPrefix, timeout: defaultTimeout}
	repl := caddy.NewReplacer()
	if s.KeyPrefix != "" {
		prefix, err := repl.ReplaceOrErr(s.KeyPrefix, true, true)
		if err != nil {
			return fmt.Errorf("key_prefix: %w", err)
		}
		if strings.ContainsAny(prefix, "{}") {
			return errors.New("key_prefix must not contain braces: they decide where a Cluster keeps a key")
		}
		set.prefix = prefix
	}
	if s.Timeout != nil {
		if *s.Timeout <= 0 {
			return errors.New("timeout must be greater than zero")
		}
		set.timeout = time.Duration(*s.Timeout)
	}
	switch s.WhenDown {
	case "", memory:
	case refuse:
		set.refuse = true
	default:
		return fmt.Errorf("when_down must be %s or %s, not %q", memory, refuse, s.WhenDown)
	}
	var err error
	if set.client, err = s.resolveURLs(repl); err != nil {
		return err
	}
	ca, err := s.addCA(&set.client, repl)
	if err != nil {
		return err
	}
	set.client.Sentinel.TLSConfig = set.client.TLSConfig
	set.client.Sentinel.TopologyRefreshInterval = 5 * time.Second
	// a slow answer fails an operation, a slower one the connection
	patience := max(set.timeout, time.Second)
	set.client.Dialer.Timeout, set.client.Sentinel.Dialer.Timeout = patience, patience
	set.client.ConnWriteTimeout = patience
	set.client.DisableCache = true
	set.client.DisableRetry = true
	set.client.ClientName = "buzzbip_webhook"

	set.backend = fmt.Sprintf("%q %q %d %q", set.client.InitAddress, set.client.Sentinel.MasterSet, set.client.SelectDB, set.prefix)
	set.id = fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%s %s %s %t %s", set.backend, identity(set.client), set.timeout, set.refuse, ca)))
	s.settings = set
	return nil
}

// resolveURLs makes one client of all URLs, with the addresses in order.
func (s *Store) resolveURLs(repl *caddy.Replacer) (client rueidis.ClientOption, err error) {
	if len(s.URLs) == 0 {
		return client, errors.New("store redis needs the URL of a server, such as redis://127.0.0.1:6379")
	}
	for i, raw := range s.URLs {
		expanded, err := repl.ReplaceOrErr(raw, true, true)
		if err != nil {
			return client, fmt.Errorf("URL %d: a placeholder in it is unknown or empty: check that the environment variable is set; braces in a password are to be percent-encoded", i+1)
		}
		option, err := parseURL(expanded)
		if err != nil {
			return client, fmt.Errorf("URL %d: %w", i+1, err)
		}
		if i == 0 {
			client = option
			continue
		}
		addresses := append(client.InitAddress, option.InitAddress...)
		client.InitAddress, option.InitAddress = nil, nil
		if identity(client) != identity(option) {
			return client, fmt.Errorf("URL %d differs from the first in more than the address: the servers of a store have scheme, user, password, database and parameters in common", i+1)
		}
		client.InitAddress = addresses
	}
	slices.Sort(client.InitAddress)
	return client, nil
}

// addCA lets a client trust the authorities of ca, whose certificates it
// returns.
func (s *Store) addCA(client *rueidis.ClientOption, repl *caddy.Replacer) (certificates []byte, err error) {
	if s.CA == "" {
		return nil, nil
	}
	path, err := repl.ReplaceOrErr(s.CA, true, true)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	if client.TLSConfig == nil {
		return nil, errors.New("ca is for rediss:// only")
	}
	if certificates, err = os.ReadFile(path); err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	client.TLSConfig.RootCAs = x509.NewCertPool()
	if !client.TLSConfig.RootCAs.AppendCertsFromPEM(certificates) {
		return nil, fmt.Errorf("ca: there is no certificate in %s", path)
	}
	return certificates, nil
}

// identity stands for what connections have to have in common, besides the
// address.
func identity(o rueidis.ClientOption) string {
	return fmt.Sprintf("%q %q %d %t %q %q %q", o.Username, o.Password, o.SelectDB, o.TLSConfig != nil, o.Sentinel.MasterSet, o.Sentinel.Username, o.Sentinel.Password)
}

// parseURL reads a URL. Its errors do not repeat any of it, for it may contain
// a password.
func parseURL(raw string) (rueidis.ClientOption, error) {
	invalid := errors.New("it is not of the form redis://[[user]:password@]host[:port][/database] (characters that are special in URLs must be percent-encoded in a password)")
	u, err := url.Parse(raw)
	if err != nil || strings.Contains(u.Hostname(), ":") && !strings.HasPrefix(u.Host, "[") {
		return rueidis.ClientOption{}, invalid
	}
	if u.Scheme != "redis" && u.Scheme != "rediss" {
		return rueidis.ClientOption{}, errors.New("its scheme must be redis:// or, with TLS, rediss://")
	}
	// hosting providers write a slash at the end
	if trimmed := strings.TrimRight(u.Path, "/"); trimmed != u.Path {
		u.Path, u.RawPath = trimmed, ""
		raw = u.String()
	}
	if database := strings.TrimPrefix(u.Path, "/"); database != "" {
		if strings.Contains(database, "@") { // the slash was that of a password
			return rueidis.ClientOption{}, invalid
		}
		if n, err := strconv.Atoi(database); err != nil || n < 0 {
			return rueidis.ClientOption{}, errors.New("what follows the port must be the number of a database, as in redis://host:6379/0")
		}
	}
	for parameter := range u.Query() {
		switch parameter {
		case "addr", "master_set", "sentinel_username", "sentinel_password":
		default:
			return rueidis.ClientOption{}, errors.New("it has a parameter other than addr, master_set, sentinel_username and sentinel_password")
		}
	}
	o, err := rueidis.ParseURL(raw)
	if err != nil {
		return rueidis.ClientOption{}, invalid
	}
	if o.TLSConfig != nil {
		o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12} // each server is to prove its own name
	}
	o.Sentinel.Username, o.Sentinel.Password = u.Query().Get("sentinel_username"), u.Query().Get("sentinel_password")
	return o, nil
}

// UnmarshalCaddyfile sets up the store from Caddyfile tokens. Syntax:
//
//	redis <url>... {
//		key_prefix <prefix>
//		timeout    <duration>
//		when_down  memory|refuse
//		ca         <file>
//	}
func (s *Store) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name of the store
	if s.URLs = d.RemainingArgs(); len(s.URLs) == 0 {
		return d.Err("store redis needs the URL of a server, such as redis://127.0.0.1:6379")
	}
	for d.NextBlock(0) {
		option := d.Val()
		var given bool
		var text *string
		switch option {
		case "key_prefix":
			text = &s.KeyPrefix
		case "timeout":
			given = s.Timeout != nil
		case "when_down":
			text = &s.WhenDown
		case "ca":
			text = &s.CA
		default:
			return d.Errf("unknown option %q of store redis: it has key_prefix, timeout, when_down and ca", option)
		}
		if given || text != nil && *text != "" {
			return d.Errf("%s is given more than once", option)
		}
		var value string
		if !d.AllArgs(&value) {
			return d.ArgErr()
		}
		if value == "" {
			return d.Errf("%s is empty", option)
		}
		if text != nil {
			*text = value
			continue
		}
		duration, err := caddy.ParseDuration(value)
		if err != nil || duration <= 0 {
			return d.Errf("%s must be a duration greater than zero such as 1s, not %s", option, strconv.Quote(value))
		}
		s.Timeout = (*caddy.Duration)(&duration)
	}
	return nil
}

// Claim implements [dedupe.Store].
func (s *Store) Claim(ctx context.Context, r dedupe.Request) (dedupe.Verdict, error) {
	c := s.acquire()
	v, err := c.claim(ctx, r)
	if err != nil || v.State != dedupe.Claimed {
		s.release()
	}
	return v, err
}

// Settle implements [dedupe.Store].
func (s *Store) Settle(ctx context.Context, claim dedupe.Claim, delivered bool) error {
	c := s.acquire()
	defer s.release()
	settled, err := c.settle(ctx, claim, delivered)
	if settled {
		s.release() // what Claim kept
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

// Stats implements [dedupe.Store]. It counts what this process delivered and
// still remembers.
func (s *Store) Stats() dedupe.Stats {
	c := s.acquire()
	defer s.release()
	return c.stats()
}

// Interface guards
var (
	_ caddy.Provisioner     = (*Store)(nil)
	_ caddy.CleanerUpper    = (*Store)(nil)
	_ caddyfile.Unmarshaler = (*Store)(nil)
	_ dedupe.Store          = (*Store)(nil)
)
