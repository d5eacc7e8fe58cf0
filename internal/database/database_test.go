package database

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/ncruces/go-sqlite3"
)

func newPath(t testing.TB) string {
	path, err := Canonical(filepath.Join(t.TempDir(), "new", "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func start(t testing.TB, path string) *DB {
	t.Helper()
	db, err := Open(path)
	if err == nil {
		err = db.Use(numbers)
	}
	if err != nil {
		t.Fatal(err)
	}
	return db
}

var numbers = Tables{Name: "test", Migrations: []string{"CREATE TABLE numbers(n INTEGER PRIMARY KEY, text TEXT)"}}

func insert(n int) func(*Conn) error {
	return func(c *Conn) error { return c.Exec("INSERT INTO numbers(n, text) VALUES(?, ?)", n, fmt.Sprint(n)) }
}

func count(t testing.TB, db *DB) (n int) {
	t.Helper()
	err := db.Read(t.Context(), func(c *Conn) error {
		return c.Query("SELECT count(*) FROM numbers", func(row *sqlite3.Stmt) error { n = row.ColumnInt(0); return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestChangeThatFailsFailsAlone(t *testing.T) {
	db := start(t, newPath(t))
	defer db.Close()
	own := errors.New("own")
	hold, held := make(chan struct{}), make(chan struct{})
	go func() {
		_ = db.Write(context.Background(), func(*Conn) error { close(held); <-hold; return nil })
	}()
	<-held
	var all sync.WaitGroup
	for n := range 100 {
		all.Go(func() {
			err := db.Write(t.Context(), func(c *Conn) error {
				if err := insert(n)(c); err != nil || n%10 != 0 {
					return err
				}
				return own
			})
			if want := n%10 == 0; errors.Is(err, own) != want || err != nil && !want {
				t.Errorf("%d: got %v", n, err)
			}
		})
	}
	close(hold)
	all.Wait()
	if got := count(t, db); got != 90 {
		t.Errorf("%d rows are there, want 90", got)
	}
	if err := db.Write(t.Context(), insert(1)); !errors.Is(err, sqlite3.CONSTRAINT) {
		t.Errorf("got %v", err)
	}
	if err := db.Err(); err != nil {
		t.Errorf("a change that failed counts as a failure of the database: %v", err)
	}
}

func TestUsersOfOnePathShareADatabase(t *testing.T) {
	path := newPath(t)
	a, b := start(t, path), start(t, path)
	if a != b {
		t.Error("they are two")
	}
	if err := a.Write(t.Context(), insert(1)); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Write(t.Context(), insert(2)); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	c := start(t, path)
	defer c.Close()
	if got := count(t, c); got != 2 {
		t.Errorf("%d rows are there, want 2", got)
	}
}
