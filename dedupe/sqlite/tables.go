package sqlite

import (
	"fmt"
	"math"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/database"
)

// tables keep the delivered IDs, and how many each scope has. Times are Unix
// times in milliseconds.
var tables = database.Tables{
	Name: "store",
	Migrations: []string{`
		CREATE TABLE scopes(
			id        INTEGER PRIMARY KEY,
			name      TEXT NOT NULL UNIQUE,
			delivered INTEGER NOT NULL
		) STRICT;
		CREATE TABLE delivered(
			key     BLOB NOT NULL,
			scope   INTEGER NOT NULL,
			digest  INTEGER NOT NULL,
			expires INTEGER NOT NULL,
			PRIMARY KEY(key, scope)
		) STRICT, WITHOUT ROWID;
		CREATE INDEX expiry ON delivered(expires)`},
	Check:  check,
	Expire: expire,
}

// id is an event ID within its scope.
type id struct {
	scope string
	key   dedupe.Key
}

// delivery is what is remembered of an ID.
type delivery struct {
	digest  dedupe.Digest
	expires int64
}

func (d delivery) valid() bool { return d.expires > time.Now().UnixMilli() }

// expiryAfter returns the time after a retention from now.
func expiryAfter(retention time.Duration) int64 {
	now := time.Now().UnixNano()
	return (now+min(int64(retention), math.MaxInt64-now)-1)/int64(time.Millisecond) + 1
}

// find returns the delivery of an ID, which may have expired, and whether there
// is one.
func find(c *database.Conn, event id) (d delivery, found bool, err error) {
	err = c.Query("SELECT digest, expires FROM delivered WHERE key = ? AND scope = (SELECT id FROM scopes WHERE name = ?)",
		func(row *sqlite3.Stmt) error {
			d, found = delivery{dedupe.Digest(row.ColumnInt64(0)), row.ColumnInt64(1)}, true
			return nil
		}, event.key[:], event.scope)
	return d, found, err
}

// insert records a delivery. It may be repeated.
func insert(c *database.Conn, event id, d delivery) error {
	_, known, err := find(c, event)
	if err != nil {
		return err
	}
	added := 1
	if known {
		added = 0
	}
	err = c.Exec("INSERT INTO scopes(name, delivered) VALUES(?, ?) ON CONFLICT DO UPDATE SET delivered = delivered + excluded.delivered", event.scope, added)
	if err != nil {
		return err
	}
	return c.Exec(`INSERT INTO delivered(key, scope, digest, expires) VALUES(?, (SELECT id FROM scopes WHERE name = ?), ?, ?)
		ON CONFLICT DO UPDATE SET digest = excluded.digest, expires = excluded.expires`,
		event.key[:], event.scope, int64(d.digest), d.expires)
}

// remove removes a delivery, if there is one.
func remove(c *database.Conn, event id) error {
	err := c.Exec("DELETE FROM delivered WHERE key = ? AND scope = (SELECT id FROM scopes WHERE name = ?)", event.key[:], event.scope)
	if err != nil || c.Changes() == 0 {
		return err
	}
	return c.Exec("UPDATE scopes SET delivered = delivered - 1 WHERE name = ?", event.scope)
}

// expire removes up to limit deliveries that have expired, and scopes that have
// none left.
func expire(c *database.Conn, limit int) (removed int, err error) {
	scopes := make(map[int64]int)
	err = c.Query(`DELETE FROM delivered WHERE (key, scope) IN
		(SELECT key, scope FROM delivered INDEXED BY expiry WHERE expires <= ? ORDER BY expires LIMIT ?) RETURNING scope`,
		func(row *sqlite3.Stmt) error {
			scopes[row.ColumnInt64(0)]++
			removed++
			return nil
		}, time.Now().UnixMilli(), limit)
	if err != nil {
		return removed, err
	}
	for scope, n := range scopes {
		if err := c.Exec("UPDATE scopes SET delivered = delivered - ? WHERE id = ?", n, scope); err != nil {
			return removed, err
		}
	}
	return removed, c.Exec("DELETE FROM scopes WHERE delivered = 0")
}

// counts returns how many IDs each scope has.
func counts(c *database.Conn) (map[string]int, error) {
	scopes := make(map[string]int)
	err := c.Query("SELECT name, delivered FROM scopes", func(row *sqlite3.Stmt) error {
		scopes[row.ColumnText(0)] = row.ColumnInt(1)
		return nil
	})
	return scopes, err
}

// check counts the deliveries in three places. They differ if a part of the file
// is older than the rest.
func check(c *database.Conn) error {
	return c.Query(`SELECT (SELECT count(*) FROM delivered NOT INDEXED), (SELECT count(*) FROM delivered INDEXED BY expiry),
		(SELECT coalesce(sum(delivered), 0) FROM scopes)`, func(row *sqlite3.Stmt) error {
		if rows, indexed, counted := row.ColumnInt64(0), row.ColumnInt64(1), row.ColumnInt64(2); rows != indexed || rows != counted {
			return fmt.Errorf("%w: it has %d of %d IDs, and an index of %d", database.ErrDamaged, rows, counted, indexed)
		}
		return nil
	})
}
