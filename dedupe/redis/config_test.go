package redis

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/redis/rueidis"

	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

func parse(input string) (*Store, error) {
	s := new(Store)
	return s, s.UnmarshalCaddyfile(caddyfile.NewTestDispenser(input))
}

func TestCaddyfile(t *testing.T) {
	for input, want := range map[string]string{
		"redis redis://a": `{"urls":["redis://a"]}`,
		"redis {env.A} {env.B} {\n key_prefix x:\n timeout 2s\n when_down refuse\n ca /ca.pem\n}": `{"urls":["{env.A}","{env.B}"],"key_prefix":"x:","timeout":2000000000,"when_down":"refuse","ca":"/ca.pem"}`,
	} {
		s, err := parse(input)
		if err != nil {
			t.Errorf("%s: %v", input, err)
			continue
		}
		if got, err := json.Marshal(s); err != nil || string(got) != want {
			t.Errorf("%s gives %s, want %s", input, got, want)
		}
	}
	for input, want := range map[string]string{
		"redis":                                          "needs the URL of a server",
		"redis redis://a {\n key_prefix\n}":              "wrong argument count",
		"redis redis://a {\n key_prefix \"\"\n}":         "key_prefix is empty",
		"redis redis://a {\n ca a\n ca b\n}":             "ca is given more than once",
		"redis redis://a {\n timeout 1s\n timeout 1s\n}": "timeout is given more than once",
		"redis redis://a {\n timeout 0\n}":               "timeout must be greater than zero",
		"redis redis://a {\n timeout -1s\n}":             "timeout must be greater than zero",
		"redis redis://a {\n timeout soon\n}":            `timeout must be a duration such as 30s or 24h: time: invalid duration "soon"`,
		"redis redis://a {\n capacity 5\n}":              `unknown option "capacity" of store redis`,
	} {
		if _, err := parse(input); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", input, err, want)
		}
	}
}

func TestRejectedAtLoad(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	const secret = "s3cret"
	one := []string{"redis://a"}
	for want, config := range map[string]map[string]any{
		"needs the URL of a server":                    {},
		"URL 1: its scheme must be redis://":           {"urls": []string{"http://user:s3cret@a"}},
		"URL 1: it does not have the form":             {"urls": []string{"redis://user:s3cret/x@a"}},
		"percent-encode special characters in a":       {"urls": []string{"redis://:1234/s3cret@a"}},
		"URL 2: it does not have the form":             {"urls": []string{"redis://a", "redis://a:s3cret:1"}},
		"URL 1: it has a parameter other than":         {"urls": []string{"redis://a?master=x"}},
		"URL 2 differs from the first in more than":    {"urls": []string{"redis://user:s3cret@a", "redis://b"}},
		"differs from the first":                       {"urls": []string{"redis://a/1", "redis://b/2"}},
		"a Cluster has only database 0":                {"urls": []string{"redis://a/1?addr=b:1"}},
		"URL 1: a placeholder is unknown":              {"urls": []string{"{env.BUZZBIP_TEST_UNSET}"}},
		"braces in a password":                         {"urls": []string{"redis://:x{s3cret}x@a"}},
		"key_prefix must not contain braces":           {"urls": one, "key_prefix": "x}"},
		"timeout must be greater than zero":            {"urls": one, "timeout": 0},
		"timeout must be at most 5s, not 5.1s":         {"urls": one, "timeout": "5100ms"},
		"must be the number of a database":             {"urls": []string{"redis://a/s3cret"}},
		"its path must be the":                         {"urls": []string{"redis://a/1/2"}},
		`when_down must be memory or refuse, not "no"`: {"urls": one, "when_down": "no"},
		"ca is for rediss:// only":                     {"urls": one, "ca": empty},
		"ca: open ":                                    {"urls": []string{"rediss://a"}, "ca": empty + ".not"},
		"ca: there is no certificate in ":              {"urls": []string{"rediss://a"}, "ca": empty},
	} {
		_, err := load(t, config)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, want %q", config, err, want)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%v: the error shows the password: %v", config, err)
		}
	}
}

func TestParametersThatWouldBeIgnoredAreRejectedAtLoad(t *testing.T) {
	for parameters, want := range map[string]string{
		"master_set=m&sentinel_password=s3;cret":  "its parameters cannot be read: percent-encode",
		"master_set=m&sentinel_password=s3%cret":  "its parameters cannot be read: percent-encode",
		"addr=b":                                  "addr must have the form host:port",
		"addr=b:1&addr=":                          "addr must have the form host:port",
		"addr=:1":                                 "addr must have the form host:port",
		"addr=b:1&addr=c:&master_set=m":           "addr must have the form host:port",
		"addr=[::1]:1&addr=b:2&sentinel_username": "",
	} {
		err := (&Store{URLs: []string{"redis://a?" + parameters}}).resolve()
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3")) {
			t.Errorf("%s: got %v, want %q", parameters, err, want)
		}
	}
}

// Otherwise the part of the password before the number sign would be an address, and logged.
func TestPasswordWithANumberSignIsRejectedAtLoad(t *testing.T) {
	for _, url := range []string{"redis://:1234#x@host:6379", "redis://caddy:1234#x@host/0", "rediss://1234#x@host"} {
		err := (&Store{URLs: []string{url}}).resolve()
		if err == nil || !strings.Contains(err.Error(), "percent-encode special characters in a password") || strings.Contains(err.Error(), "1234") {
			t.Errorf("%s: got %v", url, err)
		}
	}
}

func TestURLsAreExpandedWhenLoadedAndNotInTheConfiguration(t *testing.T) {
	server := redistest.Start(t)
	t.Setenv("BUZZBIP_TEST_REDIS", server.URL())
	s := mustLoad(t, map[string]any{"urls": []string{"{env.BUZZBIP_TEST_REDIS}"}})
	deliver(t, s, arrival("a", 1))
	if shown := fmt.Sprint(json.Marshal(s)); strings.Contains(shown, server.Addr()) {
		t.Errorf("the configuration shows the URL: %s", shown)
	}
}

func TestDefaults(t *testing.T) {
	s := &Store{URLs: []string{"redis://a"}}
	if err := s.resolve(); err != nil {
		t.Fatal(err)
	}
	if s.settings.prefix != "buzzbip:" || s.settings.timeout != time.Second || s.settings.refuse {
		t.Errorf("the defaults are %+v", s.settings)
	}
}

// Some hosting providers add a slash to the end of their URLs.
func TestURLMayEndWithASlash(t *testing.T) {
	for url, want := range map[string]string{
		"redis://host:6379/":                       "redis://host:6379",
		"redis://host:6379/3/":                     "redis://host:6379/3",
		"rediss://u:p%2Fw%40:%3A@host/":            "rediss://u:p%2Fw%40:%3A@host",
		"redis://:p@host/?addr=b:1&master_set=m":   "redis://:p@host?addr=b:1&master_set=m",
		"redis://:p@host/7/?addr=b:1&master_set=m": "redis://:p@host/7?addr=b:1&master_set=m",
		"redis://[::1]:6379/":                      "redis://[::1]:6379",
	} {
		s, without := &Store{URLs: []string{url}}, &Store{URLs: []string{want}}
		if err := errors.Join(s.resolve(), without.resolve()); err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		if s.settings.fingerprint != without.settings.fingerprint {
			t.Errorf("%s gives %+v, and without the slash %+v", url, s.settings.client, without.settings.client)
		}
	}
}

func TestAddressesOfAClusterAndOfSentinels(t *testing.T) {
	for urls, want := range map[string]func(rueidis.ClientOption) bool{
		"redis://b redis://a:1":       func(o rueidis.ClientOption) bool { return fmt.Sprint(o.InitAddress) == "[a:1 b:6379]" },
		"redis://a?addr=b:2&addr=c:3": func(o rueidis.ClientOption) bool { return fmt.Sprint(o.InitAddress) == "[a:6379 b:2 c:3]" },
		"redis://u:p@a/7?master_set=m": func(o rueidis.ClientOption) bool {
			return o.Sentinel.MasterSet == "m" && o.SelectDB == 7 && o.Password == "p"
		},
		"rediss://a?master_set=m&sentinel_username=x&sentinel_password=y": func(o rueidis.ClientOption) bool {
			return o.Sentinel.Username == "x" && o.Sentinel.Password == "y" && o.Sentinel.TLSConfig != nil && o.TLSConfig.ServerName == ""
		},
	} {
		s := &Store{URLs: strings.Fields(urls)}
		if err := s.resolve(); err != nil || !want(s.settings.client) {
			t.Errorf("%s gives %+v, error %v", urls, s.settings.client, err)
		}
	}
}
