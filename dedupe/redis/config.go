package redis

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/redis/rueidis"

	"github.com/buzzbip/caddy-webhook/internal/option"
)

const (
	defaultKeyPrefix = "buzzbip:"
	defaultTimeout   = time.Second

	// maxTimeout leaves most of the 15 seconds by which a lease is longer than
	// a delivery may take: claiming and settling can each take a timeout.
	maxTimeout = 5 * time.Second

	memory = "memory"
	refuse = "refuse"
)

// settings are those of a [Store], with defaults and placeholders resolved.
type settings struct {
	client  rueidis.ClientOption
	prefix  string
	timeout time.Duration
	refuse  bool // while Redis is down

	// backing names the IDs in Redis, whatever the credentials and timeouts.
	backing string
	// fingerprint is the same for equal settings.
	fingerprint string
}

var errNoURL = errors.New("store redis needs the URL of a server, such as redis://127.0.0.1:6379")

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
		return d.WrapErr(errNoURL)
	}
	for d.NextBlock(0) {
		var err error
		switch name := d.Val(); name {
		case "key_prefix":
			err = setWord(d, &s.KeyPrefix)
		case "timeout":
			if err = option.Once(d, s.Timeout != nil); err == nil {
				s.Timeout, err = option.Duration(d)
			}
		case "when_down":
			err = setWord(d, &s.WhenDown)
		case "ca":
			err = setWord(d, &s.CA)
		default:
			err = d.Errf("unknown option %q of store redis: it has key_prefix, timeout, when_down and ca", name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func setWord(d *caddyfile.Dispenser, value *string) (err error) {
	if err := option.Once(d, *value != ""); err != nil {
		return err
	}
	*value, err = option.Word(d)
	return err
}

// resolve sets the settings from the configuration.
func (s *Store) resolve() (err error) {
	repl := caddy.NewReplacer()
	set := settings{prefix: defaultKeyPrefix}
	if s.KeyPrefix != "" {
		if set.prefix, err = resolvePrefix(s.KeyPrefix, repl); err != nil {
			return err
		}
	}
	timeout, err := option.Resolve("timeout", s.Timeout, caddy.Duration(defaultTimeout))
	if err != nil {
		return err
	}
	set.timeout = time.Duration(timeout)
	if set.refuse, err = option.Choice("when_down", s.WhenDown, memory, refuse); err != nil {
		return err
	}
	if set.client, err = resolveURLs(s.URLs, repl); err != nil {
		return err
	}
	ca, err := addCA(&set.client, s.CA, repl)
	if err != nil {
		return err
	}
	setClientDefaults(&set.client, set.timeout)
	set.backing = fmt.Sprintf("%q %q %d %q", set.client.InitAddress, set.client.Sentinel.MasterSet, set.client.SelectDB, set.prefix)
	set.fingerprint = fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%s %s %s %t %s", set.backing, identity(set.client), set.timeout, set.refuse, ca)))
	s.settings = set
	return nil
}

func resolvePrefix(text string, repl *caddy.Replacer) (string, error) {
	prefix, err := repl.ReplaceOrErr(text, true, true)
	if err != nil {
		return "", fmt.Errorf("key_prefix: %w", err)
	}
	if strings.ContainsAny(prefix, "{}") {
		return "", errors.New("key_prefix must not contain braces: they decide on which node of a Cluster a key is")
	}
	return prefix, nil
}

func setClientDefaults(client *rueidis.ClientOption, timeout time.Duration) {
	client.Sentinel.TLSConfig = client.TLSConfig
	client.Sentinel.TopologyRefreshInterval = 5 * time.Second
	// an answer that takes longer than timeout fails the operation, one that
	// takes longer than this the connection
	patience := max(timeout, time.Second)
	client.Dialer.Timeout, client.Sentinel.Dialer.Timeout = patience, patience
	client.ConnWriteTimeout = patience
	client.DisableCache = true
	client.DisableRetry = true
	client.ClientName = "buzzbip_webhook"
}

// resolveURLs combines all URLs into the options of one client, with the
// addresses sorted.
func resolveURLs(urls []string, repl *caddy.Replacer) (client rueidis.ClientOption, err error) {
	if len(urls) == 0 {
		return client, errNoURL
	}
	for i, raw := range urls {
		expanded, err := repl.ReplaceOrErr(raw, true, true)
		if err != nil {
			return client, fmt.Errorf("URL %d: a placeholder is unknown or empty: check that the environment variable is set, and percent-encode braces in a password", i+1)
		}
		parsed, err := parseURL(expanded)
		if err != nil {
			return client, fmt.Errorf("URL %d: %w", i+1, err)
		}
		if i == 0 {
			client = parsed
			continue
		}
		addresses := append(client.InitAddress, parsed.InitAddress...)
		client.InitAddress, parsed.InitAddress = nil, nil
		if identity(client) != identity(parsed) {
			return client, fmt.Errorf("URL %d differs from the first in more than the address: use the same scheme, user, password, database and parameters in all URLs of a store", i+1)
		}
		client.InitAddress = addresses
	}
	if len(client.InitAddress) > 1 && client.Sentinel.MasterSet == "" && client.SelectDB != 0 {
		return client, errors.New("several addresses are nodes of a Cluster, and a Cluster has only database 0: remove the number from the URLs, or add master_set if they are Sentinels")
	}
	slices.Sort(client.InitAddress)
	return client, nil
}

// addCA makes a client trust the CA certificates of a file, and returns them.
func addCA(client *rueidis.ClientOption, file string, repl *caddy.Replacer) (certificates []byte, err error) {
	if file == "" {
		return nil, nil
	}
	path, err := repl.ReplaceOrErr(file, true, true)
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

// identity returns what the servers of a store must have in common, besides the
// address.
func identity(o rueidis.ClientOption) string {
	return fmt.Sprintf("%q %q %d %t %q %q %q", o.Username, o.Password, o.SelectDB, o.TLSConfig != nil, o.Sentinel.MasterSet, o.Sentinel.Username, o.Sentinel.Password)
}

var errURLForm = errors.New("it does not have the form redis://[[user]:password@]host[:port][/database]: percent-encode special characters in a password")

// parseURL reads a URL. Its errors never repeat any part of it, because it may
// contain a password.
func parseURL(raw string) (rueidis.ClientOption, error) {
	u, err := url.Parse(raw)
	// A number sign is part of a password: what is before it would be an address.
	if err != nil || u.Fragment != "" || strings.Contains(u.Hostname(), ":") && !strings.HasPrefix(u.Host, "[") {
		return rueidis.ClientOption{}, errURLForm
	}
	if u.Scheme != "redis" && u.Scheme != "rediss" {
		return rueidis.ClientOption{}, errors.New("its scheme must be redis:// or, with TLS, rediss://")
	}
	// some hosting providers add a slash to the end
	if trimmed := strings.TrimRight(u.Path, "/"); trimmed != u.Path {
		u.Path, u.RawPath = trimmed, ""
		raw = u.String()
	}
	if database := strings.TrimPrefix(u.Path, "/"); database != "" {
		if strings.Contains(database, "@") { // the slash was part of a password
			return rueidis.ClientOption{}, errURLForm
		}
		if n, err := strconv.Atoi(database); err != nil || n < 0 {
			return rueidis.ClientOption{}, errors.New("its path must be the number of a database, as in redis://host:6379/0")
		}
	}
	parameters, err := url.ParseQuery(u.RawQuery)
	if err != nil { // rueidis would ignore the parameter
		return rueidis.ClientOption{}, errors.New("its parameters cannot be read: percent-encode special characters in their values")
	}
	for parameter := range parameters {
		switch parameter {
		case "addr", "master_set", "sentinel_username", "sentinel_password":
		default:
			return rueidis.ClientOption{}, errors.New("it has a parameter other than addr, master_set, sentinel_username and sentinel_password")
		}
	}
	for _, address := range parameters["addr"] {
		if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" { // rueidis would use the host of the URL
			return rueidis.ClientOption{}, errors.New("its parameter addr must have the form host:port")
		}
	}
	o, err := rueidis.ParseURL(raw)
	if err != nil {
		return rueidis.ClientOption{}, errURLForm
	}
	if o.TLSConfig != nil {
		// without the ServerName that ParseURL sets: each server proves its own
		o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	o.Sentinel.Username, o.Sentinel.Password = parameters.Get("sentinel_username"), parameters.Get("sentinel_password")
	return o, nil
}
