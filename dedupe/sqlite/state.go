package sqlite

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/database"
)

const (
	// readTimeout bounds how long an event waits for a disk that does not
	// respond. For writing, callers set a bound.
	readTimeout = 2 * time.Second
	// retryInterval is how often changes that could not be written are tried
	// again.
	retryInterval = time.Second
	// retryBatch bounds the changes that are tried again in one transaction.
	retryBatch = 1000
)

// state is what this process knows of the IDs in one file.
type state struct {
	db *database.DB
	// local lets one request at a time through for each ID. It remembers
	// nothing, because its claims have no retention.
	local dedupe.Ledger
	// pending has the changes that are not in the file yet.
	pending pending

	stop  chan struct{}
	ended chan struct{}

	mu     sync.Mutex
	counts map[string]int // of delivered IDs, when they were read last
}

func open(path string) (*state, error) {
	db, err := database.Open(path)
	if err != nil {
		return nil, err
	}
	if err := db.Use(tables); err != nil {
		_ = db.Close()
		return nil, err
	}
	st := &state{db: db, stop: make(chan struct{}), ended: make(chan struct{})}
	go st.run()
	return st, nil
}

// Destruct implements [caddy.Destructor].
func (st *state) Destruct() error {
	close(st.stop)
	<-st.ended
	return st.db.Close()
}

// claim implements Claim of [dedupe.Store].
func (st *state) claim(ctx context.Context, r dedupe.Request) (dedupe.Verdict, error) {
	return st.local.ClaimFrom(ctx, r, func() (dedupe.Status, error) { return st.recall(ctx, id{r.Scope, r.Key}) })
}

// recall returns what is remembered of an ID that is not in flight.
func (st *state) recall(ctx context.Context, event id) (dedupe.Status, error) {
	var d delivery
	var found bool
	if ch, ok := st.pending.get(event); ok {
		d, found = ch.delivery, true
	} else {
		// not the context of the request: the answer is the same if that has ended
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout)
		defer cancel()
		var read delivery // the function may run on after Read has returned
		var known bool
		err := st.db.Read(ctx, func(c *database.Conn) (err error) {
			read, known, err = find(c, event)
			return err
		})
		if err != nil {
			return dedupe.Status{}, err
		}
		d, found = read, known
	}
	if !found || !d.valid() {
		return dedupe.Status{}, nil
	}
	return dedupe.Status{Delivered: true, Digest: d.digest, Expires: time.UnixMilli(d.expires)}, nil
}

// settle implements Settle of [dedupe.Store]. It reports whether the claim was
// the current one.
func (st *state) settle(ctx context.Context, claim dedupe.Claim, success bool) (current bool, err error) {
	owned := st.local.Owns(claim)
	ended := claim
	if owned { // then the file answers; but what is late may concern a delivery in flight
		ended.Retention = 0
	}
	end := func() {
		st.local.Settle(ended, success, time.Now(), dedupe.Limits{})
		if !st.local.Lookup(claim.Scope, claim.Key).InFlight {
			st.local.Forget(claim.Scope, claim.Key) // the file has what is remembered
		}
	}
	if !success {
		end()
		return owned, nil
	}
	return owned, st.apply(ctx, id{claim.Scope, claim.Key}, change{
		delivery: delivery{claim.Digest, expiryAfter(claim.Retention)},
		late:     !owned,
		replaces: claim.Replaces,
	}, end)
}

// apply writes a change, and then calls shown, which shows it to others. If the
// change cannot be written, it is pending. Shown is not called if the change
// does not count, unless it ends a delivery.
func (st *state) apply(ctx context.Context, event id, ch change, shown func()) error {
	ch.number = st.pending.next()
	superseded := false
	err := st.db.Write(ctx, func(c *database.Conn) error {
		counts, err := st.write(c, event, ch)
		if counts {
			c.OnCommit(shown)
		}
		superseded = !counts
		return err
	})
	if err == nil {
		if superseded && ch.expires != 0 && !ch.late {
			shown() // a later change is pending, but the delivery has ended
		}
		return nil
	}
	if !st.pending.add(event, ch) {
		logger().Error("no room in memory for a delivered ID that cannot be written; its event may be delivered again", zap.String("path", st.db.Path()))
	}
	shown()
	return err
}

// write makes a change in the file, and reports whether it counts. One change is
// made after the other, so what is pending in the meantime is up to date.
func (st *state) write(c *database.Conn, event id, ch change) (counts bool, err error) {
	forget := ch.expires == 0
	if ch.late || forget {
		d, known, err := find(c, event)
		if p, ok := st.pending.get(event); ok && p.number < ch.number {
			d, known = p.delivery, true
		}
		if err != nil {
			return false, err
		}
		counts = known && d.valid()
		if ch.late && counts && (ch.replaces == 0 || d.digest != ch.replaces) {
			return false, nil // it was delivered after the claim was made
		}
	}
	if !st.pending.supersede(event, ch.number) {
		return false, nil
	}
	if forget {
		return counts, remove(c, event)
	}
	return true, insert(c, event, ch.delivery)
}

// lookup implements Lookup of [dedupe.Store].
func (st *state) lookup(ctx context.Context, event id) (dedupe.Status, error) {
	if status := st.local.Lookup(event.scope, event.key); status != (dedupe.Status{}) {
		return status, nil
	}
	status, err := st.recall(ctx, event)
	if now := st.local.Lookup(event.scope, event.key); now.InFlight { // since then
		return now, nil
	}
	return status, err
}

// forget implements Forget of [dedupe.Store].
func (st *state) forget(ctx context.Context, event id) (bool, error) {
	var forgotten atomic.Bool
	err := st.apply(ctx, event, change{}, func() {
		st.local.Forget(event.scope, event.key)
		forgotten.Store(true)
	})
	return forgotten.Load(), err
}

func (st *state) stats() dedupe.Stats {
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	var delivered map[string]int
	err := st.db.Read(ctx, func(c *database.Conn) (err error) {
		delivered, err = counts(c)
		return err
	})
	st.mu.Lock()
	defer st.mu.Unlock()
	if err == nil {
		st.counts = delivered
	}
	stats := st.local.Stats(dedupe.Limits{})
	stats.Backing = st.db.Path()
	add := func(scope string, n int) {
		s := stats.Scopes[scope]
		s.Delivered += n
		if s != (dedupe.ScopeStats{}) {
			stats.Scopes[scope] = s
		}
	}
	for scope, n := range st.counts {
		add(scope, n)
	}
	for scope, n := range st.pending.deliveries() {
		add(scope, n)
	}
	stats.Evicted = st.pending.evictions()
	if stats.Err = st.db.Err(); stats.Err == nil {
		stats.Err = err
	}
	return stats
}

// run writes what is pending, until Destruct.
func (st *state) run() {
	defer close(st.ended)
	tick := time.NewTicker(retryInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			st.writePending()
		case <-st.stop:
			if !st.writePending() {
				logger().Error("closing the database without some delivered IDs; their events may be delivered again",
					zap.String("path", st.db.Path()), zap.Int("events", st.pending.len()), zap.Error(st.db.Err()))
			}
			return
		}
	}
}

// writePending reports whether everything is in the file.
func (st *state) writePending() bool {
	for {
		changes := st.pending.first(retryBatch)
		if len(changes) == 0 {
			return true
		}
		if err := st.writeChanges(changes); err != nil {
			return false
		}
	}
}

func (st *state) writeChanges(changes map[id]change) error {
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	err := st.db.Write(ctx, func(c *database.Conn) error {
		for event, ch := range changes {
			if now, _ := st.pending.get(event); now.number != ch.number {
				continue // a later change was made in the meantime
			}
			if _, err := st.write(c, event, ch); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		st.pending.written(changes)
	}
	return err
}

// logger returns the logger of the active configuration.
func logger() *zap.Logger { return caddy.Log().Named("http.buzzbip_webhook.stores.sqlite") }
