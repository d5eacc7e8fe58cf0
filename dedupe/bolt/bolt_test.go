package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/dedupe/storetest"
)

// patience is how long a test waits for what must happen; it never decides
// whether a test passes on a slow machine.
const patience = 30 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newPath(t testing.TB) string {
	// not below a path that is a symbolic link
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "events.db")
}

// load makes a store from its JSON configuration, as Caddy does.
func load(t testing.TB, config string) (*Store, error) {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	t.Cleanup(cancel)
	module, err := ctx.LoadModuleByID("http.buzzbip_webhook.stores.bolt", json.RawMessage(config))
	if err != nil {
		return nil, err
	}
	return module.(*Store), nil
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
	s.held = false // Caddy cleans up once
	if _, open := files.References(s.path); open {
		t.Fatal("somebody still holds the file")
	}
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

// opened returns the file of a store that has started.
func opened(t testing.TB, s *Store) *file {
	t.Helper()
	f, err := s.acquire()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.release(); err != nil {
		t.Fatal(err)
	}
	return f
}

// records counts what is in a file, whose own count must be right.
func records(t testing.TB, f *file) (n int) {
	t.Helper()
	err := f.db.View(func(tx *bbolt.Tx) error {
		scopes := tx.Bucket(format)
		err := scopes.ForEachBucket(func(name []byte) error {
			return scopes.Bucket(name).ForEach(func(_, _ []byte) error { n++; return nil })
		})
		if count := scopes.Sequence(); count != uint64(n) {
			t.Errorf("the file says that it has %d records, and has %d", count, n)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestRestartForgetsNoDeliveredIDAndFreesThoseInFlight(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	deliver(t, s, numbered(1))
	settle(t, s, expect(t, s, numbered(2), dedupe.Claimed), false)
	other := numbered(1)
	other.Scope, other.Digest = "other", 7
	deliver(t, s, other)
	inFlight := expect(t, s, numbered(3), dedupe.Claimed)
	settle(t, s, inFlight, false)
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

// What a crash leaves behind is what is on the disk when Settle returns.
func TestSuccessIsOnTheDiskWhenSettleReturns(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	deliver(t, s, numbered(1))
	crashed := newPath(t)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(crashed, content, 0o600); err != nil {
		t.Fatal(err)
	}
	after := start(t, crashed)
	expect(t, after, numbered(1), dedupe.Delivered)
	stop(t, after)
	stop(t, s)
}

func TestRetentionGoesOnAcrossARestart(t *testing.T) {
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
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
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
	again.Digest, again.Redeliver, again.Retention = 99, true, time.Minute // forgotten before the first would be
	deliver(t, s, again)
	if n := records(t, opened(t, s)); n != 1 {
		t.Errorf("the file has %d records of one id", n)
	}
	// what is to be written again may be there already
	expires := time.Now().Add(time.Hour).UnixNano()
	twice := change{record: record{"scope", numbered(2).Key, 2, expires}, remove: expires - 1}
	for range 2 {
		if err := commit(opened(t, s).db, []change{twice}, time.Now().UnixNano()); err != nil {
			t.Fatal(err)
		}
	}
	if n := records(t, opened(t, s)); n != 2 {
		t.Errorf("the file has %d records of two ids", n)
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
		if n := records(t, opened(t, s)); n != 1 {
			t.Errorf("the file has %d records", n)
		}
	}
	settle(t, s, c, false)
	expect(t, s, numbered(1), dedupe.Delivered)
	stop(t, s)
}

func TestExpiredIDsLeaveTheFileAndItStopsGrowing(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	f := opened(t, s)
	size := func() int64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	const perCommit, live = 500, 5000
	var sizes []int64
	ids := uint64(0)
	for round := range 100 {
		// a time of its own: those of ten rounds ago have expired
		now := time.Now().Add(time.Duration(round-1000) * time.Hour)
		changes := make([]change, perCommit)
		for i := range changes {
			ids++
			r := numbered(ids)
			changes[i].record = record{fmt.Sprint("scope ", i%2), r.Key, r.Digest, now.Add(live/perCommit*time.Hour + time.Duration(i)).UnixNano()}
		}
		if err := commit(f.db, changes, now.UnixNano()); err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, size())
	}
	if n := records(t, opened(t, s)); n < live/2 || n > live+2*perCommit {
		t.Errorf("the file has %d records, of which about %d are alive", n, live)
	}
	t.Logf("%d bytes after 20 rounds, %d after 100: %d for each of %d ids", sizes[19], sizes[99], sizes[99]/live, live)
	if sizes[99] > sizes[19] {
		t.Errorf("the file grew from %d to %d bytes although no more ids were alive", sizes[19], sizes[99])
	}
	// and when all have expired, the scopes go too
	for range 10 {
		if err := commit(f.db, nil, time.Now().UnixNano()); err != nil {
			t.Fatal(err)
		}
	}
	err := f.db.View(func(tx *bbolt.Tx) error {
		if key, _ := tx.Bucket(format).Cursor().First(); key != nil {
			t.Errorf("the scope %q is still there", key)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	stop(t, s)
}

// Each sync of the disk takes as long for many ids as for one.
func TestConcurrentDeliveriesShareATransaction(t *testing.T) {
	s := start(t, newPath(t))
	f := opened(t, s)
	txid := func() (id int) {
		_ = f.db.View(func(tx *bbolt.Tx) error { id = tx.ID(); return nil })
		return id
	}
	// while this transaction runs, the disk is busy
	tx, err := f.db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	first := txid()
	const deliveries = 100
	var all sync.WaitGroup
	for n := range uint64(deliveries) {
		c := expect(t, s, numbered(n), dedupe.Claimed)
		all.Go(func() { settle(t, s, c, true) })
	}
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		f.mu.Lock()
		waiting := len(f.changes)
		f.mu.Unlock()
		if waiting >= deliveries-10 { // some may be in the transaction that waits for ours
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d wait", waiting)
		}
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	if took := txid() - first; took > 5 {
		t.Errorf("%d deliveries took %d transactions", deliveries, took)
	}
	stop(t, s)
}

// A sender is not kept waiting for a disk that hangs, and nothing is lost by it.
func TestSuccessThatTheDiskIsTooSlowForIsWrittenLater(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	tx, err := opened(t, s).db.Begin(true) // keeps the disk busy
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := expect(t, s, numbered(1), dedupe.Claimed)
	if err := s.Settle(ctx, c, true); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	expect(t, s, numbered(1), dedupe.Delivered)
	if s.Stats().Err == nil {
		t.Error("the store does not say that the disk hangs")
	}
	// nobody else waits for it
	if err := s.Settle(context.Background(), expect(t, s, numbered(2), dedupe.Claimed), true); err == nil {
		t.Error("a success that is not on the disk was reported as recorded")
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	for s.Stats().Err != nil { // until the test times out
		time.Sleep(time.Millisecond)
	}
	deliver(t, s, numbered(3))
	stop(t, s)
	s = start(t, path)
	for n := range uint64(3) {
		expect(t, s, numbered(n+1), dedupe.Delivered)
	}
	stop(t, s)
}

// bbolt reads the file as memory, where what is not there is a fault that ends
// the process.
func TestFileThatCannotBeReadAnyMoreDoesNotEndTheProcess(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	deliver(t, s, numbered(1))
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	for n := range uint64(2) {
		err := s.Settle(context.Background(), expect(t, s, numbered(n+2), dedupe.Claimed), true)
		if err == nil || !strings.Contains(err.Error(), "can no longer be read") {
			t.Errorf("got %v", err)
		}
	}
	for n := range uint64(3) {
		expect(t, s, numbered(n+1), dedupe.Delivered)
	}
	if err := s.Cleanup(); err == nil || !strings.Contains(err.Error(), "can no longer be read") {
		t.Errorf("at the end it says %v", err)
	}
}

func TestWhoWaitsForAChangeThatHasExpiredIsAnswered(t *testing.T) {
	f := broken(t, expiring(2, time.Now().Add(-time.Hour)))
	written := make(chan error, 1)
	f.changes[0].written = written
	f.next()
	select {
	case err := <-written:
		if err != nil {
			t.Error(err)
		}
	default:
		t.Error("nobody answers any more")
	}
}

// Under steady traffic there is always something left to write.
func TestDiskCountsAsWorkingOnceTheRestFitsInATransaction(t *testing.T) {
	f := broken(t, expiring(2*maxCommit+5, time.Now().Add(time.Hour)))
	for _, works := range []bool{false, true} {
		f.tried(f.next(), nil)
		if got := f.stats().Err == nil; got != works {
			t.Errorf("with %d changes left the disk works: %v", len(f.changes), got)
		}
	}
}

// Requests outlive the configuration, and come late.
func TestFileStaysOpenUntilTheLastClaimIsSettled(t *testing.T) {
	s := start(t, newPath(t))
	delivered, failed := expect(t, s, numbered(1), dedupe.Claimed), expect(t, s, numbered(2), dedupe.Claimed)
	if err := s.Cleanup(); err != nil {
		t.Fatal(err)
	}
	s.held = false // Caddy cleans up once
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
	if _, open := files.References(s.path); open {
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
	b := start(t, filepath.Join(link, ".", "events.db"))
	deliver(t, a, numbered(1))
	expect(t, b, numbered(1), dedupe.Delivered)
	for _, s := range []*Store{a, b} {
		if err := s.Cleanup(); err != nil {
			t.Fatal(err)
		}
		s.held = false
	}
}

// A configuration that is loaded again finds the file that it has made.
func TestAPathIsTheSameFileBeforeAndAfterItIsMade(t *testing.T) {
	for name, links := range map[string][][2]string{ // link and its target, below a new directory
		"a directory above that is a link": {{"link", "real"}},
		"a relative link from a link":      {{"link", "real"}, {"real/link", "../real"}},
		"the file is a link":               {{"link/new/events.db", "../../real/made.db"}},
		"a link to a link":                 {{"link/new/events.db", "other.db"}, {"link/new/other.db", "{dir}/real/deep/made.db"}},
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
			path := filepath.Join(dir, "link", "new", "events.db")
			first := start(t, path)
			deliver(t, first, numbered(1))
			again := start(t, path)
			expect(t, again, numbered(1), dedupe.Delivered)
			if again.path != first.path {
				t.Errorf("%s was %s before it was made", again.path, first.path)
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

func TestFileInUseIsAClearError(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	_, err := open(path) // as from another process: it is not in our pool
	if err == nil || !strings.Contains(err.Error(), path+" is in use by another process") {
		t.Errorf("got %v", err)
	}
	// to check a configuration takes no lock
	if _, err := load(t, at(path)); err != nil {
		t.Error(err)
	}
	stop(t, s)
}

// filled makes a closed file with some thousand ids.
func filled(t *testing.T) (path string, content []byte) {
	t.Helper()
	path = newPath(t)
	s := start(t, path)
	changes := make([]change, 5000)
	for i := range changes {
		r := numbered(uint64(i))
		changes[i].record = record{"scope", r.Key, r.Digest, time.Now().Add(time.Hour + time.Duration(i)).UnixNano()}
	}
	if err := commit(opened(t, s).db, changes, time.Now().UnixNano()); err != nil {
		t.Fatal(err)
	}
	stop(t, s)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, content
}

func TestDamagedFileIsAClearErrorAndNeverAStartFromNothing(t *testing.T) {
	path, good := filled(t)
	page := os.Getpagesize()
	damages := map[string][]byte{
		"empty":               {},
		"one byte":            good[:1],
		"cut within a page":   good[:len(good)/2+100],
		"cut after the metas": good[:2*page],
		"cut after a page":    good[:len(good)-page*10],
		"no bbolt file":       bytes.Repeat([]byte("something else\n"), 5000),
		"both metas zeroed":   append(make([]byte, 2*page), good[2*page:]...),
	}
	m, err := (&reader{file: bytes.NewReader(good), pageSize: uint64(page)}).meta()
	if err != nil {
		t.Fatal(err)
	}
	inUse := bytes.Clone(good) // and would be overwritten
	binary.NativeEndian.PutUint64(inUse[int(m.freelist)*page+pageHeader:], m.root)
	damages["a page in use is listed as free"] = inUse
	for i := 2; i < len(good)/page; i++ {
		if bytes.Equal(good[i*page:(i+1)*page], make([]byte, page)) {
			continue // never used
		}
		zeroed := bytes.Clone(good)
		clear(zeroed[i*page : (i+1)*page])
		damages[fmt.Sprint("page ", i, " zeroed")] = zeroed
		noise := bytes.Clone(good)
		for j := range 64 {
			noise[i*page+j] = 0xff
		}
		damages[fmt.Sprint("page ", i, " overwritten at its start")] = noise
	}
	for name, content := range damages {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := open(path)
			if err == nil {
				if name == "a page in use is listed as free" {
					t.Error("it is opened")
				}
				// a page that is free may hold anything
				if n := records(t, f); n != 5000 {
					t.Errorf("%d of 5000 ids are there, and nobody says so", n)
				}
				if err := f.Destruct(); err != nil {
					t.Error(err)
				}
				return
			}
			if !strings.Contains(err.Error(), path+" is damaged") || !strings.Contains(err.Error(), "restore a backup, or move it away") {
				t.Errorf("got %v", err)
			}
		})
	}
	// and after all of that, a good file can be opened
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	stop(t, start(t, path))
}

// Wherever a file is damaged, nobody is told less than all that was in it: each
// byte that bbolt goes by is changed, and some of all others.
func TestByteThatChangedAnywhereLosesNothingSilently(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	const perScope = 200
	later := time.Now().Add(time.Hour)
	ids := 0
	add := func(scope string, n int) {
		changes := make([]change, n)
		for i := range changes {
			ids++
			r := numbered(uint64(ids))
			changes[i].record = record{scope, r.Key, r.Digest, later.Add(time.Duration(ids)).UnixNano()}
		}
		if err := commit(opened(t, s).db, changes, time.Now().UnixNano()); err != nil {
			t.Fatal(err)
		}
	}
	add("large", perScope)
	for n := range 5 { // inside of the page of their parent
		add(fmt.Sprint("small ", n), 3)
	}
	add("large", perScope)
	stop(t, s)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}

	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	write := func(b []byte, at int) {
		if _, err := file.WriteAt(b, int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	silent, refused := 0, 0
	page := os.Getpagesize()
	for at := range good {
		unused := bytes.Count(good[at/page*page:][:page], []byte{0}) == page
		if inPage := at % page; unused || inPage >= 80 && at%61 != 0 {
			continue
		}
		for _, bits := range []byte{1, 0x80, good[at]} { // the last makes it zero
			if bits == 0 {
				continue
			}
			write([]byte{good[at] ^ bits}, at)
			f, err := open(path)
			if err != nil {
				refused++
				if !strings.Contains(err.Error(), path+" is damaged") && !strings.Contains(err.Error(), "not one of this store") {
					t.Errorf("byte %d: %v", at, err)
				}
			} else {
				silent++
				known := 0
				for _, scope := range f.stats().Scopes {
					known += scope.Delivered
				}
				if inFile := records(t, f); known != ids || inFile != ids {
					t.Errorf("byte %d of page %d, changed by %#x: %d of %d ids are known, %d in the file", at%page, at/page, bits, known, ids, inFile)
				}
				if err := f.Destruct(); err != nil {
					t.Error(err)
				}
			}
		}
		write(good[at:at+1], at)
	}
	t.Logf("%d bytes in %d pages: %d changes refused, %d without effect", len(good), len(good)/page, refused, silent)
	if refused < 1000 || silent == 0 {
		t.Error("too few to prove anything")
	}
	stop(t, start(t, path))
}

// When the power fails during a transaction, any of its pages may be on the disk
// and others not; what says that it is done comes after all of them.
func TestPowerLossIsNoDamage(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	page := os.Getpagesize()
	random := rand.New(rand.NewPCG(1, 2))
	before, ids := []byte(nil), 0
	for range 20 {
		was := ids
		changes := make([]change, 1+random.IntN(400))
		for i := range changes {
			ids++
			r := numbered(uint64(ids))
			changes[i].record = record{"scope", r.Key, r.Digest, time.Now().Add(time.Hour + time.Duration(random.IntN(1e9))).UnixNano()}
		}
		if err := commit(opened(t, s).db, changes, time.Now().UnixNano()); err != nil {
			t.Fatal(err)
		}
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for attempt := range 5 {
			if before == nil {
				break
			}
			crashed := make([]byte, len(after)) // it has grown or not
			copy(crashed, before)
			for at := 2 * page; at < len(after); at += page {
				if random.IntN(4) < attempt { // in the last attempt, all
					copy(crashed[at:at+page], after[at:])
				}
			}
			left := newPath(t)
			for done, want := range []int{was, ids} {
				if done == 1 {
					if attempt < 4 {
						break
					}
					copy(crashed, after[:2*page])
				}
				if err := os.WriteFile(left, crashed, 0o600); err != nil {
					t.Fatal(err)
				}
				f, err := open(left)
				if err != nil {
					t.Fatal(err)
				}
				if n := records(t, f); n != want {
					t.Errorf("%d ids are there, want %d", n, want)
				}
				if err := f.Destruct(); err != nil {
					t.Error(err)
				}
			}
		}
		before = after
	}
	stop(t, s)
}

// What docs/STORES.md recommends for making the file smaller.
func TestCompactedFileIsNoDamage(t *testing.T) {
	path, _ := filled(t)
	src, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	compacted := newPath(t)
	dst, err := bbolt.Open(compacted, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(bbolt.Compact(dst, src, 65536), src.Close(), dst.Close()); err != nil {
		t.Fatal(err)
	}
	s := start(t, compacted)
	if n := records(t, opened(t, s)); n != 5000 {
		t.Errorf("%d of 5000 ids are there", n)
	}
	deliver(t, s, numbered(9999))
	stop(t, s)
	stop(t, start(t, compacted))
}

func TestFileOfAnotherProgramIsLeftAlone(t *testing.T) {
	path := newPath(t)
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("theirs")); return err })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := open(path); err == nil || !strings.Contains(err.Error(), "not one of this store") {
		t.Errorf("got %v", err)
	}
}

func TestPathThatCannotBeWrittenIsAClearError(t *testing.T) {
	for _, path := range []string{"/proc/events.db", "/dev/null/events.db", "/proc/sys/new/events.db"} {
		if _, err := open(path); err == nil || !strings.Contains(err.Error(), "/proc") && !strings.Contains(err.Error(), "/dev/null") {
			t.Errorf("%s: got %v", path, err)
		}
	}
}

// alone runs a test in a process of its own, because what it limits applies to
// all of a process, and returns its output.
func alone(t *testing.T, path string) []byte {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("limitFiles is for Linux only")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "BUZZBIP_TEST_ALONE="+path)
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

func TestNewFileIsThereWholeOrNotAtAll(t *testing.T) {
	path := os.Getenv("BUZZBIP_TEST_ALONE")
	if path == "" {
		alone(t, newPath(t))
		return
	}
	stop(t, start(t, path))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	left := func() (names []string) {
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	page := os.Getpagesize()
	for size := 0; size < len(whole); size += page / 2 {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		lift := limitFiles(t, int64(size))
		_, err := open(path)
		lift()
		if err == nil || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "damaged") {
			t.Errorf("on a disk with room for %d bytes: got %v", size, err)
		}
		if names := left(); len(names) > 0 {
			t.Errorf("on a disk with room for %d bytes, %q are left", size, names)
		}
		// a crash cannot clean up
		dir, prefix := unfinished(path)
		if err := os.WriteFile(filepath.Join(dir, prefix+"1"), whole[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		s := start(t, path)
		deliver(t, s, numbered(1))
		stop(t, s)
		if names := left(); len(names) != 1 {
			t.Errorf("%q are there", names)
		}
	}
}

func TestNewFileReplacesNone(t *testing.T) {
	path, content := filled(t)
	if err := create(path); err != nil { // it came after the look whether there is one
		t.Error(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Error("the file has changed", err)
	}
	// and one that is moved away while it is opened stays away
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := openDB(path, bbolt.Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestFullDisk(t *testing.T) {
	if path := os.Getenv("BUZZBIP_TEST_ALONE"); path != "" {
		fullDisk(t, path)
		return
	}
	path := newPath(t)
	out := alone(t, path)
	for _, said := range []string{"failed to write delivered IDs to the disk", "the disk works again"} {
		if !bytes.Contains(out, []byte(said)) {
			t.Errorf("the log does not say %q:\n%s", said, out)
		}
	}
	// all is there for the next process
	s := start(t, path)
	for n := range uint64(1000) {
		expect(t, s, numbered(n), dedupe.Delivered)
	}
	stop(t, s)
}

func fullDisk(t *testing.T, path string) {
	s := start(t, path)
	deliver(t, s, numbered(0))
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	lift := limitFiles(t, info.Size())
	failed := 0
	for n := uint64(1); n < 1000; n++ {
		c := expect(t, s, numbered(n), dedupe.Claimed)
		if err := s.Settle(context.Background(), c, true); err != nil {
			failed++
		}
		expect(t, s, numbered(n), dedupe.Delivered)
	}
	if failed == 0 || s.Stats().Err == nil {
		t.Fatalf("%d settlements failed, and the store says %v", failed, s.Stats().Err)
	}
	lift()
	for end := time.Now().Add(patience); s.Stats().Err != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("writing does not resume")
		}
	}
	if n := records(t, opened(t, s)); n != 1000 {
		t.Errorf("%d of 1000 ids are in the file", n)
	}
	deliver(t, s, numbered(1000))
	stop(t, s)
}

// broken is a file on a disk that does not work, with changes that are to be
// written. Nobody writes them but the test.
func broken(t *testing.T, changes []change) *file {
	t.Helper()
	path := newPath(t)
	stop(t, start(t, path))
	db, err := openDB(path, bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	f := &file{path: path, db: db, err: errors.New("full")}
	for _, c := range changes {
		if err := f.write(t.Context(), c); err == nil {
			t.Fatal("it is written")
		}
	}
	return f
}

func expiring(n int, at time.Time) []change {
	changes := make([]change, n)
	for i := range changes {
		r := numbered(uint64(i))
		changes[i].record = record{r.Scope, r.Key, r.Digest, at.Add(time.Duration(i)).UnixNano()}
	}
	return changes
}

func TestTryingADiskThatStaysFullTakesAsLongHoweverMuchIsToBeWritten(t *testing.T) {
	const million = 1_000_000
	f := broken(t, expiring(million, time.Now().Add(time.Hour)))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 10 {
		if f.writeAll() {
			t.Fatal("it is written")
		}
	}
	runtime.ReadMemStats(&after)
	if allocated := after.TotalAlloc - before.TotalAlloc; allocated > million {
		t.Errorf("to try it ten times takes %d bytes", allocated)
	}
	if len(f.changes) != million {
		t.Errorf("%d changes of %d are left", len(f.changes), million)
	}
}

func TestNobodyWaitsForADiskThatDoesNotWork(t *testing.T) {
	const n = maxCommit + 5
	f := broken(t, nil)
	f.err = nil
	written := make(chan error, n)
	for _, c := range expiring(n, time.Now().Add(time.Hour)) {
		c.written = written
		f.changes = append(f.changes, c)
	}
	if f.writeAll() || len(written) != n || len(f.changes) != n {
		t.Errorf("%d of %d are told, and %d changes are left", len(written), n, len(f.changes))
	}
	for len(written) > 0 {
		if <-written == nil {
			t.Fatal("it is said to be written")
		}
	}
}

func TestAllThatADiskDidNotTakeIsWrittenWhenItWorks(t *testing.T) {
	const n = 2*maxCommit + 5
	f := broken(t, expiring(n, time.Now().Add(time.Hour)))
	if f.writeAll() || f.stats().Err == nil {
		t.Fatal("it is written")
	}
	if err := f.db.Close(); err != nil {
		t.Fatal(err)
	}
	var err error
	if f.db, err = openDB(f.path, bbolt.Options{}); err != nil {
		t.Fatal(err)
	}
	if !f.writeAll() || f.stats().Err != nil {
		t.Fatal("it is not written", f.stats().Err)
	}
	if got := records(t, f); got != n {
		t.Errorf("%d ids of %d are in the file", got, n)
	}
	if err := f.db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestExpiredIDsDoNotWaitForTheDiskNorMakeItWork(t *testing.T) {
	f := broken(t, append(expiring(100, time.Now().Add(-time.Hour)), expiring(10, time.Now().Add(time.Hour))...))
	if f.writeAll() || len(f.changes) != 10 {
		t.Errorf("%d changes are left", len(f.changes))
	}
	f = broken(t, expiring(100, time.Now().Add(-time.Hour)))
	for range 3 {
		if f.writeAll() || len(f.changes) != 1 || f.stats().Err == nil {
			t.Errorf("%d changes are left, and the disk is said to work (%v) although it does not", len(f.changes), f.stats().Err)
		}
	}
}

func TestProvisionAndCaddyfile(t *testing.T) {
	t.Setenv("BUZZBIP_TEST_DIR", t.TempDir())
	for input, want := range map[string]string{
		"bolt":                             `{}`,
		"bolt /tmp/events.db":              `{"path":"/tmp/events.db"}`,
		"bolt {env.BUZZBIP_TEST_DIR}/x.db": `{"path":"{env.BUZZBIP_TEST_DIR}/x.db"}`,
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
		`bolt ""`:                "the path is empty",
		"bolt a b":               "wrong argument count",
		"bolt {\n capacity 5\n}": `store bolt has no option "capacity"`,
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
	if err != nil || !strings.HasPrefix(s.path, caddy.AppDataDir()) {
		t.Errorf("the default path is %v, error %v", s, err)
	}
}
