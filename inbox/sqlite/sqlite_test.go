package sqlite

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/ncruces/go-sqlite3"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/dedupe/storetest"
	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/database"

	storesqlite "github.com/buzzbip/caddy-webhook/dedupe/sqlite"
)

func TestCaddyfile(t *testing.T) {
	for input, want := range map[string]string{
		"sqlite":                         `{}`,
		"sqlite /tmp/inbox.db":           `{"path":"/tmp/inbox.db"}`,
		"sqlite {env.DIR}/x.db":          `{"path":"{env.DIR}/x.db"}`,
		"sqlite x.db {\n retry 1s 2s\n}": `{"path":"x.db","first_retry":1000000000,"longest_retry":2000000000}`,
		"sqlite {\n dead_on 4xx\n}":      `{"dead_on":[4]}`,
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
		"sqlite a b":               "rong argument count",
		"sqlite {\n capacity 5\n}": `unknown option "capacity" of inbox sqlite`,
	} {
		if err := new(Store).UnmarshalCaddyfile(caddyfile.NewTestDispenser(input)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", input, err)
		}
	}
}

func TestProvision(t *testing.T) {
	for config, want := range map[string]string{
		`{"path":"{env.BUZZBIP_TEST_UNSET}"}`: "path: ",
		`{"path":" "}`:                        "path is empty",
		`{"rate":0}`:                          "rate must be greater than zero",
		`{"file":"x"}`:                        "unknown field",
	} {
		if _, err := load(t, config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", config, err)
		}
	}
	s, err := load(t, `{}`)
	if err != nil || s.path != filepath.Join(caddy.AppDataDir(), "buzzbip", "webhook.db") || s.Policy().Concurrency != 8 {
		t.Errorf("the default is %+v, error %v", s, err)
	}
}

// Validating a configuration must not disturb the Caddy that runs.
func TestFileIsNotOpenedBeforeStart(t *testing.T) {
	path := newPath(t)
	s, err := load(t, at(path))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Cleanup(); err != nil {
		t.Error(err)
	}
	if files, err := os.ReadDir(filepath.Dir(path)); len(files) > 0 || err != nil {
		t.Errorf("there are %v, error %v", files, err)
	}
}

func TestOnlyTheOwnerCanReadTheFiles(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("modes do not exist")
	}
	s := start(t, newPath(t))
	add(t, s, numbered(1, 100))
	for _, name := range []string{s.path, s.path + "-wal", s.path + "-shm"} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, error %v", name, info.Mode(), err)
		}
	}
}

func TestLookingForAnEventCostsNothingWhileNothingIsKept(t *testing.T) {
	s := start(t, newPath(t))
	key := dedupe.KeyOf("evt_1")
	find := func() {
		if _, err := s.Find(t.Context(), "scope", key); !errors.Is(err, inbox.ErrNotFound) {
			t.Error(err)
		}
	}
	waits := func() {
		if waits, err := s.Waits(t.Context(), 1); waits || err != nil {
			t.Error(waits, err)
		}
	}
	check := func() {
		t.Helper()
		if n := testing.AllocsPerRun(100, find); n > 0 {
			t.Errorf("%v allocations", n)
		}
		if n := testing.AllocsPerRun(100, waits); n > 0 {
			t.Errorf("%v allocations to see whether something of a lane waits", n)
		}
	}
	check()
	n := add(t, s, numbered(1, 100))
	if testing.AllocsPerRun(10, find) == 0 {
		t.Error("it did not look in the file") // or the test is wrong
	}
	stop(t, s)
	s = start(t, s.path) // it is known after a restart, too
	if e, err := s.Find(t.Context(), "scope", dedupe.KeyOf("evt_00000001")); err != nil || e.Number != n {
		t.Errorf("found %d, error %v", e.Number, err)
	}
	if err := errors.Join(s.Accepted(t.Context(), n, inbox.Attempt{Time: time.Now()}, false), s.Remembered(t.Context(), n)); err != nil {
		t.Fatal(err)
	}
	check()
	stop(t, s)
	s = start(t, s.path)
	check()
}

// A scrape of the metrics is answered although the disk does not respond.
func TestStatsDoNotWaitForTheDisk(t *testing.T) {
	s := start(t, newPath(t))
	e := numbered(1, 100)
	add(t, s, e)
	want := s.Stats()
	if want.Waiting != 1 || !want.Oldest.Equal(e.Arrived.Round(0)) || want.Err != nil {
		t.Errorf("got %+v", want)
	}
	release := make(chan struct{})
	var held, ended sync.WaitGroup
	hold := func(call func(context.Context, func(*database.Conn) error) error) {
		held.Add(1)
		ended.Go(func() {
			if err := call(context.Background(), func(*database.Conn) error { held.Done(); <-release; return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	hold(s.state.db.Write)
	for range 2 { // there are two connections for reading
		hold(s.state.db.Read)
	}
	held.Wait()
	if got := s.Stats(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	close(release)
	ended.Wait()
	stop(t, s)
	if got := s.Stats(); got.Backing != want.Backing || got.Err == nil {
		t.Errorf("once it is closed, it is %+v", got)
	}
}

// A request may come late, when another configuration has opened the file anew.
func TestLateRequestFindsWhatAnotherConfigurationKeeps(t *testing.T) {
	late := start(t, newPath(t))
	stop(t, late)
	if _, err := late.Add(t.Context(), numbered(1, 10), noLimit); err == nil || !strings.Contains(err.Error(), "removed from the configuration") {
		t.Errorf("an event that nobody delivers is added: %v", err)
	}
	s := start(t, late.path)
	n := add(t, s, numbered(1, 100))
	if e, err := late.Find(t.Context(), "scope", dedupe.KeyOf("evt_00000001")); err != nil || e.Number != n {
		t.Errorf("found %d, error %v", e.Number, err)
	}
	stop(t, s)
	if err := late.Accepted(t.Context(), n, inbox.Attempt{Time: time.Now()}, true); err != nil {
		t.Errorf("a late acceptance is lost: %v", err)
	}
	if _, open := states.References(s.path); open {
		t.Error("a request that came late holds the file")
	}
	s = start(t, s.path)
	if e, err := s.Load(t.Context(), n); err != nil || e.State != inbox.Accepted {
		t.Errorf("it is %s, error %v", e.State, err)
	}
}

func TestInboxAndStoreShareAFile(t *testing.T) {
	path := newPath(t)
	store, err := storetest.Load[*storesqlite.Store](t, "http.buzzbip_webhook.stores.sqlite", at(path))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Start(); err != nil {
		t.Fatal(err)
	}
	s := start(t, path)
	n := add(t, s, numbered(1, 100))
	request := dedupe.Request{Scope: "scope", Key: dedupe.KeyOf("a"), Digest: 1, Retention: time.Hour}
	storetest.Deliver(t, store, request)
	stop(t, s) // the store goes on
	s = start(t, path)
	storetest.Expect(t, store, request, dedupe.Delivered)
	if got := s.Stats(); got.Backing != store.Stats().Backing || got.Waiting != 1 {
		t.Errorf("got %+v", got)
	}
	if e, err := s.Load(t.Context(), n); err != nil || len(e.Body) != 100 {
		t.Errorf("got %+v, error %v", e, err)
	}
}

func TestNewerFormatIsNotUsed(t *testing.T) {
	s := start(t, newPath(t))
	err := s.state.db.Write(t.Context(), func(c *database.Conn) error {
		return c.Exec("UPDATE formats SET version = 99 WHERE name = 'inbox'")
	})
	if err != nil {
		t.Fatal(err)
	}
	stop(t, s)
	again, err := load(t, at(s.path))
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Start(); err == nil || !strings.Contains(err.Error(), "written by a newer version of this plugin (inbox has format 99, known is 1): use that version") {
		t.Errorf("got %v", err)
	}
}

// A part of the file may be older than the rest, as after an incomplete restore.
func TestTablesThatDisagreeAreDamage(t *testing.T) {
	for name, change := range map[string]string{
		"a body is missing":                   "DELETE FROM bodies WHERE number = 2",
		"a body has no event":                 "INSERT INTO bodies(number, request, body) VALUES(99, '{}', x'')",
		"a count is wrong":                    "UPDATE event_counts SET events = events + 1 WHERE state = 'dead'",
		"the first of a lane is blocked":      "UPDATE events SET blocked = 1 WHERE lane IS NOT NULL",
		"the second of a lane is not blocked": "UPDATE events SET blocked = 0",
		"two counts are wrong":                "UPDATE event_counts SET events = events + CASE state WHEN 'dead' THEN 1 WHEN 'waiting' THEN -1 ELSE 0 END",
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, newPath(t))
			for n := range 3 {
				add(t, s, numbered(n, 10))
			}
			fillLane(t, s, 2, 10)
			if err := s.state.db.Write(t.Context(), func(c *database.Conn) error { return c.Exec(change) }); err != nil {
				t.Fatal(err)
			}
			stop(t, s)
			again, err := load(t, at(s.path))
			if err != nil {
				t.Fatal(err)
			}
			if err := again.Start(); !errors.Is(err, database.ErrDamaged) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Privacy: payloads are on the disk only as long as they are needed.
func TestPayloadsThatAreGoneAreNotReadable(t *testing.T) {
	ctx := t.Context()
	for name, end := range map[string]func(s *Store, n int64) error{
		"accepted": func(s *Store, n int64) error { return s.Accepted(ctx, n, inbox.Attempt{Time: time.Now()}, false) },
		"discarded": func(s *Store, n int64) error {
			_, err := s.Discard(ctx, inbox.Filter{Number: []int64{n}}, func(inbox.Event) {})
			return err
		},
		"dead too long": func(s *Store, n int64) error {
			_, err := s.Expire(ctx, time.Now(), time.Time{}, time.Now().Add(time.Hour), time.Time{}, 10)
			return err
		},
		"delivered too long": func(s *Store, n int64) error {
			err := errors.Join(s.Accepted(ctx, n, inbox.Attempt{Time: time.Now()}, true), s.Remembered(ctx, n))
			_, expireErr := s.Expire(ctx, time.Now(), time.Time{}, time.Time{}, time.Now().Add(time.Hour), 10)
			return errors.Join(err, expireErr)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, newPath(t))
			e := numbered(1, 10)
			e.Body, e.Request.Header = bytes.Repeat([]byte("private body"), 1000), http.Header{"X-Test": {"private header"}}
			n := add(t, s, e)
			add(t, s, numbered(2, 10)) // its pages stay in use
			if name == "dead too long" {
				if err := s.Attempted(ctx, n, inbox.Attempt{Time: time.Now()}, time.Now(), time.Now()); err != nil {
					t.Fatal(err)
				}
			}
			readable := func() bool {
				for _, suffix := range []string{"", "-wal"} {
					content, err := os.ReadFile(s.path + suffix)
					if err != nil {
						t.Fatal(err)
					}
					if bytes.Contains(content, []byte("private")) {
						return true
					}
				}
				return false
			}
			if !readable() {
				t.Error("it is not readable before, or the test is wrong")
			}
			if err := end(s, n); err != nil {
				t.Fatal(err)
			}
			caddytest.WaitFor(t, "the payload to be gone", func() bool { return !readable() })
			stop(t, s)
		})
	}
}

// Accepting an event removes its body at once, and the file shrinks.
func TestRoomOfAcceptedEventsIsGivenBack(t *testing.T) {
	s := start(t, newPath(t))
	const events, size = 200, 100_000
	for n := range events {
		add(t, s, numbered(n, size))
	}
	pages := func() (n int) {
		err := s.state.db.Read(t.Context(), func(c *database.Conn) error {
			return c.Query("SELECT page_count FROM pragma_page_count", func(row *sqlite3.Stmt) error { n = row.ColumnInt(0); return nil })
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	full := pages()
	for n := range events {
		if err := s.Accepted(t.Context(), int64(n+1), inbox.Attempt{Time: time.Now()}, false); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(time.Minute); pages() > full/4; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of %d pages are left", pages(), full)
		}
	}
}
