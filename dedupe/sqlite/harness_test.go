package sqlite

import (
	"context"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3"
	"go.uber.org/goleak"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/dedupe/storetest"
	"github.com/buzzbip/caddy-webhook/internal/database"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newPath(t testing.TB) string {
	// not below a path that is a symbolic link
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "webhook.db")
}

// load makes a store from its JSON configuration, as Caddy does.
func load(t testing.TB, config string) (*Store, error) {
	t.Helper()
	return storetest.Load[*Store](t, "http.buzzbip_webhook.stores.sqlite", config)
}

func at(path string) string { return fmt.Sprintf(`{"path":%q}`, path) }

// start loads and starts a store. Its file is closed when the test ends.
func start(t testing.TB, path string) *Store {
	t.Helper()
	s, err := load(t, at(path))
	if err == nil {
		err = s.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// stop closes the file, as at the end of Caddy.
func stop(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Cleanup(); err != nil {
		t.Fatal(err)
	}
	if _, open := states.References(s.path); open {
		t.Fatal("somebody still holds the file")
	}
}

// opened returns the state of a store that has started.
func opened(t testing.TB, s *Store) *state {
	t.Helper()
	st, err := s.acquire()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.release(); err != nil {
		t.Fatal(err)
	}
	return st
}

func numbered(n uint64) dedupe.Request {
	var key dedupe.Key
	binary.BigEndian.PutUint64(key[:], n*0x9e3779b97f4a7c15) // spread like a hash
	return dedupe.Request{Scope: "scope", Key: key, Digest: dedupe.Digest(n), Retention: time.Hour}
}

var (
	expect  = storetest.Expect
	settle  = storetest.Settle
	deliver = storetest.Deliver
)

// record records numbered IDs, in few transactions.
func record(t testing.TB, s *Store, first, count uint64, expires time.Time) {
	t.Helper()
	for n := first; n < first+count; {
		end := min(n+10_000, first+count)
		err := opened(t, s).db.Write(context.Background(), func(c *database.Conn) error {
			for ; n < end; n++ {
				r := numbered(n)
				if err := insert(c, id{r.Scope, r.Key}, delivery{r.Digest, expires.UnixMilli()}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// counted returns how many IDs the store says that it remembers.
func counted(t testing.TB, s *Store) (n int) {
	t.Helper()
	for _, scope := range s.Stats().Scopes {
		n += scope.Delivered
	}
	return n
}

// rows counts what is in the file.
func rows(t testing.TB, s *Store) (n int) {
	t.Helper()
	err := opened(t, s).db.Read(context.Background(), func(c *database.Conn) error {
		return c.Query("SELECT count(*) FROM delivered", func(row *sqlite3.Stmt) error { n = row.ColumnInt(0); return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
