package sqlite

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

func TestRestartForgetsNoDeliveredIDAndFreesThoseInFlight(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	deliver(t, s, numbered(1))
	settle(t, s, expect(t, s, numbered(2), dedupe.Claimed), false)
	other := numbered(1)
	other.Scope, other.Digest = "other", 7
	deliver(t, s, other)
	settle(t, s, expect(t, s, numbered(3), dedupe.Claimed), false)
	stop(t, s)

	s = start(t, path)
	expect(t, s, numbered(1), dedupe.Delivered)
	changed := numbered(1)
	changed.Digest++
	expect(t, s, changed, dedupe.Conflicting)
	expect(t, s, other, dedupe.Delivered)
	for n := range uint64(2) {
		deliver(t, s, numbered(n+2))
	}
	stop(t, s)
}

func TestRetentionContinuesAcrossARestart(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	short := numbered(1)
	short.Retention = 200 * time.Millisecond
	began := time.Now()
	deliver(t, s, short)
	before, err := s.Lookup(t.Context(), short.Scope, short.Key)
	if err != nil {
		t.Fatal(err)
	}
	deliver(t, s, numbered(2))
	stop(t, s)
	s = start(t, path)
	after, err := s.Lookup(t.Context(), short.Scope, short.Key)
	if err != nil || time.Since(began) < short.Retention && !after.Expires.Equal(before.Expires) {
		t.Errorf("it expires at %v, and after the restart at %v (error %v)", before.Expires, after.Expires, err)
	}
	for end := time.Now().Add(caddytest.Patience); ; time.Sleep(time.Millisecond) {
		v, err := s.Claim(t.Context(), short)
		if err != nil || time.Now().After(end) {
			t.Fatal("it is never forgotten", err)
		}
		if v.State == dedupe.Claimed {
			settle(t, s, v.Claim, false)
			break
		}
	}
	expect(t, s, numbered(2), dedupe.Delivered)
	stop(t, s)
}

func TestRedeliveryReplacesTheRecord(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	deliver(t, s, numbered(1))
	again := numbered(1)
	again.Digest, again.Redeliver, again.Retention = 99, true, time.Minute
	deliver(t, s, again)
	if n, counted := rows(t, s), counted(t, s); n != 1 || counted != 1 {
		t.Errorf("the file has %d records of one ID, and counts %d", n, counted)
	}
	stop(t, s)
	s = start(t, path)
	expect(t, s, again, dedupe.Delivered)
	stop(t, s)
}

func TestForgottenIDStaysForgottenAfterARestart(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	deliver(t, s, numbered(1))
	for _, want := range []bool{true, false} {
		if got, err := s.Forget(t.Context(), "scope", numbered(1).Key); err != nil || got != want {
			t.Errorf("forgotten: %v, error %v", got, err)
		}
	}
	if n := counted(t, s); n != 0 {
		t.Errorf("%d IDs are counted", n)
	}
	stop(t, s)
	s = start(t, path)
	deliver(t, s, numbered(1))
	stop(t, s)
}

// A late success with an old token is written, unless the ID was delivered
// since; a late failure changes nothing.
func TestLateSettlements(t *testing.T) {
	s := start(t, newPath(t))
	c := expect(t, s, numbered(1), dedupe.Claimed)
	settle(t, s, c, false)
	for range 2 {
		settle(t, s, c, true)
		if n := rows(t, s); n != 1 {
			t.Errorf("the file has %d records", n)
		}
	}
	settle(t, s, c, false)
	expect(t, s, numbered(1), dedupe.Delivered)
	stop(t, s)
}

// Requests outlive the configuration, and come late.
func TestFileStaysOpenUntilTheLastClaimIsSettled(t *testing.T) {
	s := start(t, newPath(t))
	delivered, failed := expect(t, s, numbered(1), dedupe.Claimed), expect(t, s, numbered(2), dedupe.Claimed)
	if err := s.Cleanup(); err != nil {
		t.Fatal(err)
	}
	reloaded := start(t, s.path)
	if _, err := reloaded.Claim(t.Context(), numbered(1)); !errors.Is(err, dedupe.ErrInFlight) {
		t.Errorf("a delivery in flight across a reload is not known: %v", err)
	}
	for range 2 { // the second changes nothing
		settle(t, s, delivered, true)
		settle(t, s, failed, false)
	}
	expect(t, reloaded, numbered(1), dedupe.Delivered)
	stop(t, reloaded)
	expect(t, s, numbered(1), dedupe.Delivered) // opens and closes it
	if _, open := states.References(s.path); open {
		t.Error("a request that came late holds the file")
	}
}

func TestAllSpellingsOfAPathAreOneFile(t *testing.T) {
	path := newPath(t)
	link := filepath.Join(filepath.Dir(path), "link")
	if err := os.Symlink(filepath.Dir(path), link); err != nil {
		t.Fatal(err)
	}
	a := start(t, path)
	b := start(t, filepath.Join(link, ".", "webhook.db"))
	deliver(t, a, numbered(1))
	expect(t, b, numbered(1), dedupe.Delivered)
	for _, s := range []*Store{a, b} {
		if err := s.Cleanup(); err != nil {
			t.Fatal(err)
		}
	}
}

// A configuration that is loaded again finds the file that it has created.
func TestAPathIsTheSameFileBeforeAndAfterItIsCreated(t *testing.T) {
	for name, links := range map[string][][2]string{ // link and its target, below a new directory
		"a directory above that is a link": {{"link", "real"}},
		"a relative link from a link":      {{"link", "real"}, {"real/link", "../real"}},
		"the file is a link":               {{"link/new/webhook.db", "../../real/made.db"}},
		"a link to a link":                 {{"link/new/webhook.db", "other.db"}, {"link/new/other.db", "{dir}/real/deep/made.db"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Dir(newPath(t))
			if err := os.Mkdir(filepath.Join(dir, "real"), 0o700); err != nil {
				t.Fatal(err)
			}
			for _, l := range links {
				link := filepath.Join(dir, l[0])
				if err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o700), os.Symlink(strings.Replace(l[1], "{dir}", dir, 1), link)); err != nil {
					t.Fatal(err)
				}
			}
			path := filepath.Join(dir, "link", "new", "webhook.db")
			first := start(t, path)
			deliver(t, first, numbered(1))
			again := start(t, path)
			expect(t, again, numbered(1), dedupe.Delivered)
			if again.path != first.path {
				t.Errorf("%s was %s before it was created", again.path, first.path)
			}
			if err := first.Cleanup(); err != nil {
				t.Error(err)
			}
			stop(t, again)
		})
	}
	circle := newPath(t)
	if err := os.Symlink(filepath.Base(circle), circle); err != nil {
		t.Fatal(err)
	}
	if _, err := load(t, at(circle)); err == nil || !strings.Contains(err.Error(), circle+": too many symbolic links") {
		t.Errorf("got %v", err)
	}
}

func TestProvisionAndCaddyfile(t *testing.T) {
	t.Setenv("BUZZBIP_TEST_DIR", t.TempDir())
	for input, want := range map[string]string{
		"sqlite":                             `{}`,
		"sqlite /tmp/webhook.db":             `{"path":"/tmp/webhook.db"}`,
		"sqlite {env.BUZZBIP_TEST_DIR}/x.db": `{"path":"{env.BUZZBIP_TEST_DIR}/x.db"}`,
	} {
		s := new(Store)
		if err := s.UnmarshalCaddyfile(caddyfile.NewTestDispenser(input)); err != nil {
			t.Errorf("%s: %v", input, err)
		}
		if got, err := json.Marshal(s); err != nil || string(got) != want {
			t.Errorf("%s gives %s, want %s", input, got, want)
		}
	}
	for input, want := range map[string]string{
		`sqlite ""`:                "the path is empty",
		"sqlite a b":               "wrong argument count",
		"sqlite {\n capacity 5\n}": `store sqlite has no option "capacity"`,
	} {
		if err := new(Store).UnmarshalCaddyfile(caddyfile.NewTestDispenser(input)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", input, err)
		}
	}
	for config, want := range map[string]string{
		`{"path":"{env.BUZZBIP_TEST_UNSET}"}`: "path: ",
		`{"path":" "}`:                        "path is empty",
		`{"file":"x"}`:                        "unknown field",
	} {
		if _, err := load(t, config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", config, err)
		}
	}
	s, err := load(t, `{}`)
	if err != nil || !strings.HasPrefix(s.path, caddy.AppDataDir()) || !strings.HasSuffix(s.path, filepath.Join("buzzbip", "webhook.db")) {
		t.Errorf("the default path is %v, error %v", s, err)
	}
}
