package sqlite

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/buzzbip/caddy-webhook/dedupe/storetest"
	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/inbox/inboxtest"
	"github.com/buzzbip/caddy-webhook/internal/database"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// noLimit is more than any test adds.
const noLimit = 1 << 40

func newPath(t testing.TB) string {
	t.Helper()
	path, err := database.Canonical(filepath.Join(t.TempDir(), "webhook.db"))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// load makes a store from its JSON configuration, as Caddy does.
func load(t testing.TB, config string) (*Store, error) {
	t.Helper()
	return storetest.Load[*Store](t, "http.buzzbip_webhook.inboxes.sqlite", config)
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

// numbered returns an event with a body of a size.
func numbered(n, size int) inbox.Event {
	e := inboxtest.NewEvent(fmt.Sprintf("evt_%08d", n), time.Now())
	e.Body = append(make([]byte, 0, size), e.Body...)[:size]
	return e
}

func add(t testing.TB, s *Store, e inbox.Event) int64 {
	t.Helper()
	number, err := s.Add(context.Background(), e, noLimit)
	if err != nil {
		t.Fatal(err)
	}
	return number
}

// fill adds events from number first on, in few transactions, as if each had
// been due a millisecond after the one before it.
func fill(t testing.TB, s *Store, first, count, size int) {
	t.Helper()
	fillWith(t, s, first, count, size, func(*inbox.Event) {})
}

// fillLane is fill with the events of one lane, after 1,000,000 others.
func fillLane(t testing.TB, s *Store, count, size int) {
	t.Helper()
	fillWith(t, s, 1_000_000, count, size, func(e *inbox.Event) { e.OrderKey, e.Sequence = "hot", s.Arrival() })
}

func fillWith(t testing.TB, s *Store, first, count, size int, change func(*inbox.Event)) {
	t.Helper()
	base := time.Now().Add(-time.Hour)
	for n := first; n < first+count; {
		end := min(n+5000, first+count)
		err := s.state.write(context.Background(), func(c *database.Conn) error {
			for ; n < end; n++ {
				e := numbered(n, size)
				e.Arrived = base.Add(time.Duration(n) * time.Millisecond)
				e.Due = e.Arrived.Add(5 * time.Second)
				e.Attempts, e.First = 1, inbox.Attempt{Time: e.Arrived, Duration: 0.01, Status: 503, Cause: "status", Error: "the backend answered 503"}
				e.Last = e.First
				change(&e)
				if _, err := insert(c, &e); err != nil {
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

// consistent checks that the tables agree, and with what the process knows.
func consistent(t testing.TB, s *Store) {
	t.Helper()
	err := do(s, func(st *state) error {
		return st.db.Read(context.Background(), func(c *database.Conn) error {
			inFile, err := count(c)
			if known := st.counts.Load(); err == nil && inFile != *known {
				err = fmt.Errorf("the process knows of %+v, the file has %+v", *known, inFile)
			}
			return errors.Join(err, check(c))
		})
	})
	if err != nil {
		t.Error(err)
	}
}
