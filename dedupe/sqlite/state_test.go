package sqlite

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/database"
)

// occupy keeps the disk busy until the function that it returns is called.
func occupy(t *testing.T, s *Store) (release func()) {
	t.Helper()
	held, ended, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	db := opened(t, s).db
	go func() {
		defer close(done)
		_ = db.Write(context.Background(), func(*database.Conn) error { close(held); <-ended; return nil })
	}()
	<-held
	return func() { close(ended); <-done }
}

// A sender is not kept waiting for a disk that hangs, and nothing is lost by it.
func TestSuccessThatTheDiskIsTooSlowForIsWrittenLater(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	release := occupy(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 1200*time.Millisecond)
	defer cancel()
	c := expect(t, s, numbered(1), dedupe.Claimed)
	if err := s.Settle(ctx, c, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if opened(t, s).db.Err() == nil {
		t.Error("the store does not say that the disk hangs")
	}
	expect(t, s, numbered(1), dedupe.Delivered)
	release()
	for end := time.Now().Add(caddytest.Patience); s.Stats().Err != nil || opened(t, s).pending.len() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("writing does not resume")
		}
	}
	deliver(t, s, numbered(3))
	stop(t, s)
	s = start(t, path)
	for _, n := range []uint64{1, 3} {
		expect(t, s, numbered(n), dedupe.Delivered)
	}
	stop(t, s)
}

// Nothing shows that an event was delivered before that is on the disk.
func TestDuplicateWaitsUntilTheDeliveryIsOnTheDisk(t *testing.T) {
	s := start(t, newPath(t))
	c := expect(t, s, numbered(1), dedupe.Claimed)
	release := occupy(t, s)
	settled := make(chan error, 1)
	go func() { settled <- s.Settle(context.Background(), c, true) }()
	expect(t, s, numbered(1), dedupe.ErrInFlight)
	select {
	case <-settled:
		t.Error("it is settled before it is on the disk")
	case <-time.After(20 * time.Millisecond):
	}
	release()
	if err := <-settled; err != nil {
		t.Error(err)
	}
	expect(t, s, numbered(1), dedupe.Delivered)
	stop(t, s)
}

// What is in the file takes no memory, and is counted once.
func TestLateSuccessIsInTheFileOnly(t *testing.T) {
	s := start(t, newPath(t))
	settle(t, s, dedupe.Claim{Request: numbered(1), Replaces: numbered(1).Digest}, true)
	if n := counted(t, s); n != 1 {
		t.Errorf("%d IDs are counted, want 1", n)
	}
	expect(t, s, numbered(1), dedupe.Delivered)
	stop(t, s)
}

func TestRemovedFileIsAnErrorAndEventsPass(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	deliver(t, s, numbered(1))
	if err := os.Remove(path); err != nil {
		t.Skip("this system does not let go of files in use:", err)
	}
	for end := time.Now().Add(caddytest.Patience); s.Stats().Err == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody notices")
		}
	}
	if err := s.Settle(t.Context(), expect(t, s, numbered(2), dedupe.Claimed), true); err == nil || !strings.Contains(err.Error(), "was removed or replaced") {
		t.Errorf("got %v", err)
	}
	for n := range uint64(2) {
		expect(t, s, numbered(n+1), dedupe.Delivered)
	}
	if n := counted(t, s); n != 2 {
		t.Errorf("%d IDs are counted", n)
	}
	stop(t, s)
	// what is missing is not taken for new
	s, err := load(t, at(path))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err == nil || !strings.Contains(err.Error(), "is missing, but not") {
		t.Errorf("got %v", err)
	}
}

func TestExpiredIDsLeaveTheFileAndItShrinks(t *testing.T) {
	path := newPath(t)
	s := start(t, path)
	record(t, s, 0, 20_000, time.Now().Add(time.Hour))
	stop(t, s)
	full, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	s = start(t, path)
	record(t, s, 0, 20_000, time.Now())
	live := numbered(1 << 40)
	live.Scope = "other"
	deliver(t, s, live)
	for end := time.Now().Add(caddytest.Patience); rows(t, s) > 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d rows are left", rows(t, s))
		}
	}
	if stats := s.Stats(); len(stats.Scopes) != 1 || stats.Scopes["other"].Delivered != 1 {
		t.Errorf("got %+v", stats.Scopes)
	}
	for end := time.Now().Add(caddytest.Patience); ; time.Sleep(10 * time.Millisecond) {
		if info, err := os.Stat(path); err == nil && info.Size() < full.Size()/2 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the file does not shrink")
		}
	}
	expect(t, s, live, dedupe.Delivered)
	stop(t, s)
	left, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes with 20,000 IDs (%d each), %d without", full.Size(), full.Size()/20_000, left.Size())
}

// Whatever happens first, the last change of an ID counts.
func TestPendingChanges(t *testing.T) {
	var p pending
	event := id{"scope", numbered(1).Key}
	valid := delivery{1, time.Now().Add(time.Hour).UnixMilli()}
	first, second, third := p.next(), p.next(), p.next()
	p.add(event, change{delivery: valid, number: second})
	p.add(event, change{number: first})
	if ch, ok := p.get(event); !ok || ch.number != second {
		t.Errorf("an earlier change replaced a later one: %+v", ch)
	}
	p.add(event, change{delivery: delivery{2, valid.expires}, late: true, number: third})
	if ch, _ := p.get(event); ch.digest != 1 {
		t.Error("a late success replaced a delivery since")
	}
	if p.supersede(event, first) || !p.supersede(event, third) || p.len() != 0 {
		t.Error("it does not know which change is the last")
	}
	pendingCapacity = 2
	defer func() { pendingCapacity = 1_000_000 }()
	for n := range uint64(5) {
		p.add(id{"scope", numbered(n).Key}, change{delivery: valid, number: p.next()})
	}
	if p.len() != 2 || p.evictions() != 3 {
		t.Errorf("%d changes are kept, %d evicted", p.len(), p.evictions())
	}
}

// alone runs a test in a process of its own, because what it limits applies to
// all of a process, and returns its output.
func alone(t *testing.T, path string) []byte {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("caddytest.LimitFiles is for Linux only")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "BUZZBIP_TEST_ALONE="+path)
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

func TestFullDisk(t *testing.T) {
	if path := os.Getenv("BUZZBIP_TEST_ALONE"); path != "" {
		fullDisk(t, path)
		return
	}
	path := newPath(t)
	out := alone(t, path)
	for _, said := range []string{"failed to write to the database", "the database can be written to again"} {
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
	info, err := os.Stat(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	lift := caddytest.LimitFiles(t, info.Size())
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
	if err := s.Stats().Err; !strings.Contains(err.Error(), "check whether the disk is full") {
		t.Errorf("got %v", err)
	}
	if n := counted(t, s); n != 1000 {
		t.Errorf("%d IDs are counted", n)
	}
	lift()
	for end := time.Now().Add(caddytest.Patience); s.Stats().Err != nil || opened(t, s).pending.len() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("writing does not resume")
		}
	}
	if n := rows(t, s); n != 1000 {
		t.Errorf("%d of 1000 IDs are in the file", n)
	}
	deliver(t, s, numbered(1000))
	stop(t, s)
}

// What is pending is read before it is written. What is changed in between counts.
func TestPendingChangeDoesNotUndoALaterOne(t *testing.T) {
	s := start(t, newPath(t))
	st := opened(t, s)
	forgotten, again := numbered(1), numbered(2)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	release := occupy(t, s)
	for _, r := range []dedupe.Request{forgotten, again} {
		if err := s.Settle(canceled, expect(t, s, r, dedupe.Claimed), true); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	}
	again.Digest++
	again.Redeliver = true
	changes := st.pending.first(retryBatch)
	release()
	if _, err := s.Forget(t.Context(), forgotten.Scope, forgotten.Key); err != nil {
		t.Fatal(err)
	}
	deliver(t, s, again)
	if err := st.writeChanges(changes); err != nil {
		t.Fatal(err)
	}
	settle(t, s, expect(t, s, forgotten, dedupe.Claimed), false)
	expect(t, s, again, dedupe.Delivered)
	stop(t, s)
}

// A success that is written after its ID was forgotten ends its delivery nevertheless.
func TestIDThatIsForgottenWhileItsSuccessIsWrittenIsNotInFlightForever(t *testing.T) {
	s := start(t, newPath(t))
	st := opened(t, s)
	c := expect(t, s, numbered(1), dedupe.Claimed)
	release := occupy(t, s)
	settled := make(chan error, 1)
	go func() { settled <- s.Settle(context.Background(), c, true) }()
	caddytest.WaitFor(t, "the success to be written", func() bool {
		st.pending.mu.Lock()
		defer st.pending.mu.Unlock()
		return st.pending.last == 1
	})
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Forget(canceled, c.Scope, c.Key); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	release()
	if err := <-settled; err != nil {
		t.Error(err)
	}
	settle(t, s, expect(t, s, numbered(1), dedupe.Claimed), false)
	stop(t, s)
}

// What an ID was delivered with is in memory only while it is delivered again.
func TestRedeliveryThatFailsLeavesNothingInMemory(t *testing.T) {
	s := start(t, newPath(t))
	deliver(t, s, numbered(1))
	other := numbered(1)
	other.Digest++
	other.Redeliver = true
	settle(t, s, expect(t, s, other, dedupe.Claimed), false)
	if n := counted(t, s); n != 1 {
		t.Errorf("%d IDs are counted, want 1", n)
	}
	expect(t, s, numbered(1), dedupe.Delivered)
	stop(t, s)
}
