// Package sqlite is the Caddy module that keeps events in an SQLite database.
package sqlite

import (
	"context"
	"errors"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/database"
)

func init() {
	caddy.RegisterModule(Store{})
}

// Store keeps events in an SQLite database, with mode 0600, until the backend has
// accepted them. It takes about 1 KiB of disk for each event, besides its body and its
// headers, and overwrites those once they are not needed any more.
// Memory and the time to start do not depend on the number of events. Only one
// process can use the file, which the module `sqlite` of stores may share.
type Store struct {
	// The path of the file, which is created if it does not exist. Global
	// placeholders are expanded. Default: `buzzbip/webhook.db` in Caddy's data directory.
	Path string `json:"path,omitempty"`

	inbox.Options

	path    string
	started bool
	state   *state // as it was when the store started
}

// states are those of open files, by path. They are referenced by each store that
// has started, and by each operation while it runs: requests can outlive the
// configuration that they arrived under.
var states = caddy.NewUsagePool()

// CaddyModule returns the Caddy module information.
func (Store) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.buzzbip_webhook.inboxes.sqlite",
		New: func() caddy.Module { return new(Store) },
	}
}

// Provision checks the options and resolves the path. It does not open the file:
// `caddy validate` runs while another Caddy uses it.
func (s *Store) Provision(caddy.Context) (err error) {
	if err := s.Resolve(); err != nil {
		return err
	}
	s.path, err = database.Resolve(s.Path)
	return err
}

// Start opens the file.
func (s *Store) Start() (err error) {
	s.state, err = s.acquire()
	s.started = err == nil
	return err
}

// Cleanup releases the file.
func (s *Store) Cleanup() error {
	if !s.started {
		return nil
	}
	s.started = false
	return s.release()
}

// UnmarshalCaddyfile sets up the store from Caddyfile tokens. Syntax:
//
//	sqlite [<path>] {
//		<option> ...
//	}
//
// The options are those of [inbox.Options].
func (s *Store) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name of the inbox
	var err error
	if s.Path, err = database.PathArg(d); err != nil {
		return err
	}
	for d.NextBlock(0) {
		if err := s.UnmarshalCaddyfileOption(d, "sqlite"); err != nil {
			return err
		}
	}
	return nil
}

// acquire returns the state of the file and adds a reference to it.
func (s *Store) acquire() (*state, error) {
	st, _, err := states.LoadOrNew(s.path, func() (caddy.Destructor, error) { return open(s.path) })
	if err != nil {
		return nil, err
	}
	return st.(*state), nil
}

func (s *Store) release() error {
	_, err := states.Delete(s.path)
	return err
}

// with calls f with the state of the file, which is opened if need be.
func with[T any](s *Store, f func(*state) (T, error)) (T, error) {
	st, err := s.acquire()
	if err != nil {
		var none T
		return none, err
	}
	result, err := f(st)
	return result, errors.Join(err, s.release())
}

func do(s *Store, f func(*state) error) error {
	_, err := with(s, func(st *state) (struct{}, error) { return struct{}{}, f(st) })
	return err
}

// Add implements [inbox.Store].
func (s *Store) Add(ctx context.Context, e inbox.Event, maxSize int64) (int64, error) {
	if _, used := states.References(s.path); !used {
		return 0, errors.New("the inbox was removed from the configuration")
	}
	return with(s, func(st *state) (int64, error) { return st.add(ctx, e, maxSize) })
}

// Find implements [inbox.Store].
func (s *Store) Find(ctx context.Context, scope string, key dedupe.Key) (inbox.Event, error) {
	if s.state != nil {
		if n := s.state.counts.Load(); n != nil && n.events() == 0 {
			return inbox.Event{}, inbox.ErrNotFound
		}
	}
	return with(s, func(st *state) (inbox.Event, error) { return st.find(ctx, scope, key) })
}

// Load implements [inbox.Store].
func (s *Store) Load(ctx context.Context, number int64) (inbox.Event, error) {
	return with(s, func(st *state) (inbox.Event, error) { return st.load(ctx, number) })
}

// Targets implements [inbox.Store].
func (s *Store) Targets(ctx context.Context) ([]string, error) {
	return with(s, func(st *state) ([]string, error) { return st.targets(ctx) })
}

// Arrival implements [inbox.Store].
func (s *Store) Arrival() int64 { return s.state.arrivals.Add(1) }

// Waits implements [inbox.Store].
func (s *Store) Waits(ctx context.Context, lane inbox.Lane) (bool, error) {
	if s.state != nil {
		if n := s.state.counts.Load(); n != nil && n.waiting == 0 {
			return false, nil
		}
	}
	return with(s, func(st *state) (bool, error) { return st.waits(ctx, lane) })
}

// Due implements [inbox.Store].
func (s *Store) Due(ctx context.Context, target string, now time.Time, limit int, skip func(number int64) bool) ([]inbox.Event, error) {
	return with(s, func(st *state) ([]inbox.Event, error) { return st.due(ctx, target, now, limit, skip) })
}

// NextDue implements [inbox.Store].
func (s *Store) NextDue(ctx context.Context, target string, skip func(number int64) bool) (time.Time, error) {
	return with(s, func(st *state) (time.Time, error) { return st.nextDue(ctx, target, skip) })
}

// Advance implements [inbox.Store].
func (s *Store) Advance(ctx context.Context, latest time.Time, limit int) (int, error) {
	return with(s, func(st *state) (int, error) { return st.advance(ctx, latest, limit) })
}

// Attempted implements [inbox.Store].
func (s *Store) Attempted(ctx context.Context, number int64, a inbox.Attempt, due, dead time.Time) error {
	return do(s, func(st *state) error { return st.attempted(ctx, number, a, due, dead) })
}

// Accepted implements [inbox.Store].
func (s *Store) Accepted(ctx context.Context, number int64, a inbox.Attempt, keepBody bool) error {
	return do(s, func(st *state) error { return st.accepted(ctx, number, a, keepBody) })
}

// Remembered implements [inbox.Store].
func (s *Store) Remembered(ctx context.Context, number int64) error {
	return do(s, func(st *state) error { return st.remembered(ctx, number) })
}

// Expire implements [inbox.Store].
func (s *Store) Expire(ctx context.Context, now, waitingBefore, diedBefore, deliveredBefore time.Time, limit int) (inbox.Expired, error) {
	return with(s, func(st *state) (inbox.Expired, error) {
		return st.expire(ctx, now, waitingBefore, diedBefore, deliveredBefore, limit)
	})
}

// Oldest implements [inbox.Store].
func (s *Store) Oldest(ctx context.Context) (waiting, dead, delivered time.Time, err error) {
	err = do(s, func(st *state) (err error) {
		waiting, dead, delivered, err = st.oldestOfEach(ctx)
		return err
	})
	return waiting, dead, delivered, err
}

// List implements [inbox.Store].
func (s *Store) List(ctx context.Context, f inbox.Filter, after int64, limit int) ([]inbox.Event, error) {
	return with(s, func(st *state) ([]inbox.Event, error) { return st.list(ctx, f, after, limit) })
}

// Count implements [inbox.Store].
func (s *Store) Count(ctx context.Context, f inbox.Filter) (int, error) {
	return with(s, func(st *state) (int, error) { return st.count(ctx, f) })
}

// Groups implements [inbox.Store].
func (s *Store) Groups(ctx context.Context, limit int) ([]inbox.Group, error) {
	return with(s, func(st *state) ([]inbox.Group, error) { return st.groups(ctx, limit) })
}

// Retry implements [inbox.Store].
func (s *Store) Retry(ctx context.Context, f inbox.Filter, now time.Time) (int, error) {
	return with(s, func(st *state) (int, error) { return st.retry(ctx, f, now) })
}

// Discard implements [inbox.Store].
func (s *Store) Discard(ctx context.Context, f inbox.Filter, discarded func(inbox.Event)) (int, error) {
	return with(s, func(st *state) (int, error) { return st.discard(ctx, f, discarded) })
}

// SetPaused implements [inbox.Store].
func (s *Store) SetPaused(ctx context.Context, paused bool) error {
	return do(s, func(st *state) error { return st.setPaused(ctx, paused) })
}

// Stats implements [inbox.Store].
func (s *Store) Stats() inbox.Stats {
	if s.state == nil {
		return inbox.Stats{Backing: s.path, Err: errNotOpen}
	}
	return s.state.stats()
}

// Interface guards
var (
	_ caddy.Provisioner     = (*Store)(nil)
	_ caddy.CleanerUpper    = (*Store)(nil)
	_ caddyfile.Unmarshaler = (*Store)(nil)
	_ inbox.Module          = (*Store)(nil)
	_ inbox.Starter         = (*Store)(nil)
)
