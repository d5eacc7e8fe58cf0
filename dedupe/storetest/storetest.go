// Package storetest is the test suite that every [dedupe.Store] must pass. A
// store runs it from a test of its own:
//
//	func TestStore(t *testing.T) {
//		storetest.Test(t, storetest.Config{
//			Open: func(t testing.TB) dedupe.Store { return open(t) },
//		})
//	}
//
// The suite tests the behaviors that [dedupe.Store] describes by name, compares
// random sequences of operations with a model, and checks that concurrent
// operations are linearizable. It runs in real time, because stores may use a
// network, but no test depends on the speed of the machine.
//
// [Expect], [Settle] and [Deliver] are for other tests of stores, too.
package storetest

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// Config describes the store to test.
type Config struct {
	// Open returns a store that shares what it remembers with those opened
	// before. It must release the store in a cleanup of t.
	Open func(t testing.TB) dedupe.Store
	// Shared means that each store stands for a process of its own, which may
	// die: then its claims end with their leases.
	Shared bool
}

// Test runs the suite.
func Test(t *testing.T, c Config) {
	for _, test := range []struct {
		name string
		run  func(*suite)
	}{
		{"an unseen ID is claimed", unseen},
		{"a delivered ID is answered by its body", delivered},
		{"a failed ID is unseen again", failed},
		{"redelivery", redelivery},
		{"a duplicate waits no longer than its request says", waitEnds},
		{"a waiter leaves when its context is done", contextEnds},
		{"waiters are answered after success", waitersSucceed},
		{"exactly one waiter takes over after a failure", waiterTakesOver},
		{"only the current owner ends its claim", oldTokens},
		{"a late success is recorded unless the ID was delivered since", lateTokens},
		{"a success without a claim is like a late one", withoutClaim},
		{"scopes are separate", scopes},
		{"retention counts from the success", retention},
		{"each ID keeps its own retention", retentions},
		{"an expired ID leaves no trace", expired},
		{"concurrent duplicates are delivered once", storm},
		{"lookup", lookup},
		{"forget", forget},
		{"stats", stats},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(newSuite(t, c)) })
	}
	if c.Shared {
		t.Run("a claim ends with its lease", func(t *testing.T) { leaseEnds(newSuite(t, c)) })
		t.Run("a late settlement does not end the claim of another owner", func(t *testing.T) { lateEnd(newSuite(t, c)) })
		t.Run("a late success counts although its lease has ended", func(t *testing.T) { lateSuccess(newSuite(t, c)) })
		t.Run("a late redelivery replaces what was delivered before it", func(t *testing.T) { lateRedelivery(newSuite(t, c)) })
	}
	t.Run("sequences agree with a model", func(t *testing.T) { testSequences(t, c) })
	t.Run("histories are linearizable", func(t *testing.T) { testHistories(t, c) })
}

// patience is how long a test waits for what must happen. It is longer than any
// store needs.
var patience = 30 * time.Second

// soon is a lease or a retention whose end a test waits for.
const soon = 100 * time.Millisecond

type suite struct {
	*testing.T
	Config
	scope string
	// a and b share what they remember.
	a, b dedupe.Store
}

func newSuite(t *testing.T, c Config) *suite {
	return &suite{t, c, "scope " + rand.Text(), c.Open(t), c.Open(t)}
}

func (s *suite) arrival(id string, body dedupe.Digest) dedupe.Request {
	return dedupe.Request{Scope: s.scope, Key: dedupe.KeyOf(id), Digest: body, Lease: time.Hour, Retention: time.Hour}
}

func waiting(r dedupe.Request) dedupe.Request   { r.Wait = patience; return r }
func redeliver(r dedupe.Request) dedupe.Request { r.Redeliver = true; return r }

func (s *suite) expect(store dedupe.Store, r dedupe.Request, want any) dedupe.Claim {
	s.Helper()
	return Expect(s.T, store, r, want)
}

func (s *suite) settle(store dedupe.Store, c dedupe.Claim, delivered bool) {
	s.Helper()
	Settle(s.T, store, c, delivered)
}

func (s *suite) deliver(store dedupe.Store, r dedupe.Request) {
	s.Helper()
	Deliver(s.T, store, r)
}

// eventually claims until the answer is the one wanted.
func (s *suite) eventually(store dedupe.Store, r dedupe.Request, want any) dedupe.Claim {
	s.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		v, err := store.Claim(s.Context(), r)
		if outcome(v, err) == want || time.Now().After(end) {
			return check(s.T, r, v, err, want)
		}
		if err == nil && v.State == dedupe.Claimed {
			s.settle(store, v.Claim, false)
		}
	}
}

// asyncClaim is a claim that may wait, in a goroutine of its own.
type asyncClaim struct {
	*suite
	request dedupe.Request
	answer  chan answer
}

type answer struct {
	dedupe.Verdict
	err error
}

func (s *suite) claimAsync(ctx context.Context, store dedupe.Store, r dedupe.Request) *asyncClaim {
	a := &asyncClaim{s, r, make(chan answer, 1)}
	go func() {
		v, err := store.Claim(ctx, r)
		a.answer <- answer{v, err}
	}()
	return a
}

func (a *asyncClaim) expect(want any) dedupe.Claim {
	a.Helper()
	select {
	case got := <-a.answer:
		return check(a.T, a.request, got.Verdict, got.err, want)
	case <-time.After(patience):
		a.Fatal("the claim is not answered")
		panic("unreachable")
	}
}

func unseen(s *suite) {
	one, other := s.expect(s.a, s.arrival("a", 1), dedupe.Claimed), s.expect(s.a, s.arrival("b", 1), dedupe.Claimed)
	if one.Token == other.Token {
		s.Error("two claims have the same token")
	}
}

func delivered(s *suite) {
	s.deliver(s.a, s.arrival("a", 1))
	for _, store := range []dedupe.Store{s.a, s.b} {
		s.expect(store, s.arrival("a", 1), dedupe.Delivered)
		s.expect(store, s.arrival("a", 2), dedupe.Conflicting)
		s.expect(store, redeliver(s.arrival("a", 1)), dedupe.Delivered)
	}
}

func failed(s *suite) {
	s.settle(s.a, s.expect(s.a, s.arrival("a", 1), dedupe.Claimed), false)
	s.deliver(s.b, s.arrival("a", 2))
	s.expect(s.a, s.arrival("a", 2), dedupe.Delivered)
}

func redelivery(s *suite) {
	s.deliver(s.a, s.arrival("a", 1))
	again := redeliver(s.arrival("a", 2))
	c := s.expect(s.b, again, dedupe.Claimed)
	s.expect(s.a, again, dedupe.ErrInFlight)
	s.expect(s.a, s.arrival("a", 1), dedupe.Delivered)
	s.settle(s.b, c, false)
	s.expect(s.a, s.arrival("a", 1), dedupe.Delivered)
	s.deliver(s.a, again)
	s.expect(s.b, s.arrival("a", 2), dedupe.Delivered)
	s.expect(s.b, s.arrival("a", 1), dedupe.Conflicting)
}

func waitEnds(s *suite) {
	s.expect(s.a, s.arrival("a", 1), dedupe.Claimed)
	for _, store := range []dedupe.Store{s.a, s.b} {
		s.expect(store, s.arrival("a", 1), dedupe.ErrInFlight)
		r := s.arrival("a", 1)
		r.Wait = soon
		began := time.Now()
		s.expect(store, r, dedupe.ErrInFlight)
		if waited := time.Since(began); waited < soon || waited > patience {
			s.Errorf("it waited for %v, not %v", waited, soon)
		}
	}
}

func contextEnds(s *suite) {
	s.expect(s.a, s.arrival("a", 1), dedupe.Claimed)
	for _, store := range []dedupe.Store{s.a, s.b} {
		ctx, cancel := context.WithCancel(s.Context())
		w := s.claimAsync(ctx, store, waiting(s.arrival("a", 1)))
		cancel()
		w.expect(dedupe.ErrInFlight)
	}
	// a context that is done does not discard an answer
	ctx, cancel := context.WithCancel(s.Context())
	cancel()
	s.claimAsync(ctx, s.a, s.arrival("b", 1)).expect(dedupe.Claimed)
}

func waitersSucceed(s *suite) {
	r := s.arrival("a", 1)
	c := s.expect(s.a, r, dedupe.Claimed)
	var waiters []*asyncClaim
	for range 5 {
		waiters = append(waiters, s.claimAsync(s.Context(), s.a, waiting(r)), s.claimAsync(s.Context(), s.b, waiting(r)))
	}
	conflicting := s.claimAsync(s.Context(), s.b, waiting(s.arrival("a", 2)))
	time.Sleep(soon / 2) // most wait by now; the others are answered the same way
	s.settle(s.a, c, true)
	began := time.Now()
	for _, w := range waiters {
		w.expect(dedupe.Delivered)
	}
	conflicting.expect(dedupe.Conflicting)
	s.Logf("all were answered within %v", time.Since(began))
}

func waiterTakesOver(s *suite) {
	c := s.expect(s.a, s.arrival("a", 1), dedupe.Claimed)
	const duplicates = 6
	claims := make(chan dedupe.Claim, duplicates)
	var done sync.WaitGroup
	for i := range duplicates {
		store := []dedupe.Store{s.a, s.b}[i%2]
		done.Go(func() {
			v, err := store.Claim(s.Context(), waiting(s.arrival("a", dedupe.Digest(i))))
			if err != nil {
				s.Errorf("a waiter got %v", err)
				return
			}
			if v.State != dedupe.Claimed {
				return // another waiter delivered
			}
			claims <- v.Claim
			time.Sleep(soon / 10)
			// the first two fail
			if err := store.Settle(context.Background(), v.Claim, len(claims) > 2); err != nil {
				s.Error(err)
			}
		})
	}
	time.Sleep(soon / 2)
	s.settle(s.a, c, false)
	done.Wait()
	close(claims)
	if len(claims) != 3 {
		s.Fatalf("%d waiters took over, want one after each of 3 failures", len(claims))
	}
	var last dedupe.Claim
	for last = range claims {
	}
	s.expect(s.b, s.arrival("a", last.Digest), dedupe.Delivered) // its own body
}

func oldTokens(s *suite) {
	old := s.expect(s.a, s.arrival("a", 1), dedupe.Claimed)
	s.settle(s.a, old, false)
	owner := s.expect(s.a, s.arrival("a", 2), dedupe.Claimed)
	s.settle(s.a, old, false)
	s.expect(s.b, s.arrival("a", 1), dedupe.ErrInFlight)
	s.settle(s.a, owner, true)
	for _, delivered := range []bool{true, false} {
		s.settle(s.a, old, delivered)
		s.settle(s.a, owner, delivered)
		s.expect(s.b, s.arrival("a", 2), dedupe.Delivered)
	}
}

func lateTokens(s *suite) {
	for _, success := range []bool{true, false} {
		id := map[bool]string{true: "success", false: "failure"}[success]
		old := s.expect(s.a, s.arrival(id, 1), dedupe.Claimed)
		s.settle(s.a, old, false)
		owner := s.expect(s.b, s.arrival(id, 2), dedupe.Claimed)
		s.settle(s.a, old, true)
		s.expectOwned(id)
		s.expect(s.a, s.arrival(id, 1), dedupe.Delivered)
		s.settle(s.b, owner, success)
		s.expect(s.a, s.arrival(id, map[bool]dedupe.Digest{true: 2, false: 1}[success]), dedupe.Delivered)
	}
	old := s.expect(s.a, s.arrival("delivered since", 1), dedupe.Claimed)
	s.settle(s.a, old, false)
	s.deliver(s.b, s.arrival("delivered since", 2))
	s.settle(s.a, old, true)
	s.expect(s.b, s.arrival("delivered since", 2), dedupe.Delivered)
}

// expectOwned checks that an ID is in flight, whether it was delivered or not.
func (s *suite) expectOwned(id string) {
	s.Helper()
	for _, store := range []dedupe.Store{s.a, s.b} {
		if known, err := store.Lookup(s.Context(), s.scope, dedupe.KeyOf(id)); err != nil || !known.InFlight {
			s.Fatalf("%s is looked up as %+v, error %v: its owner lost its claim", id, known, err)
		}
	}
}

func withoutClaim(s *suite) {
	short := s.arrival("delivered", 1)
	short.Retention = soon
	s.deliver(s.a, short)
	success := dedupe.Claim{Request: s.arrival("delivered", 1), Replaces: 1}
	s.settle(s.b, success, true)
	time.Sleep(2 * soon)
	s.expect(s.a, short, dedupe.Delivered) // for the new retention

	success.Key = dedupe.KeyOf("unseen")
	s.settle(s.a, success, true)
	s.expect(s.b, s.arrival("unseen", 1), dedupe.Delivered)

	s.deliver(s.a, s.arrival("delivered with another body", 2))
	success.Key = dedupe.KeyOf("delivered with another body")
	s.settle(s.b, success, true)
	s.expect(s.a, s.arrival("delivered with another body", 2), dedupe.Delivered)

	owner := s.expect(s.a, s.arrival("in flight", 1), dedupe.Claimed)
	success.Key = dedupe.KeyOf("in flight")
	s.settle(s.b, success, true)
	s.settle(s.a, owner, false)
	s.expect(s.b, s.arrival("in flight", 1), dedupe.Delivered)
}

func scopes(s *suite) {
	other := s.arrival("a", 2)
	other.Scope += " and another"
	s.deliver(s.a, s.arrival("a", 1))
	s.deliver(s.b, other)
	s.expect(s.b, s.arrival("a", 1), dedupe.Delivered)
	s.expect(s.a, other, dedupe.Delivered)
}

func retention(s *suite) {
	r := s.arrival("a", 1)
	r.Retention = soon
	c := s.expect(s.a, r, dedupe.Claimed)
	time.Sleep(soon)
	settled := time.Now()
	s.settle(s.a, c, true)
	v, err := s.b.Claim(s.Context(), r)
	if time.Since(settled) < soon {
		check(s.T, r, v, err, dedupe.Delivered)
	} else if err == nil && v.State == dedupe.Claimed {
		s.settle(s.b, v.Claim, false)
	}
	s.eventually(s.b, r, dedupe.Claimed)
	// the clock of the store may differ by a few milliseconds
	if kept := time.Since(settled); kept < soon-5*time.Millisecond {
		s.Errorf("the ID was remembered for %v", kept)
	}
}

func retentions(s *suite) {
	short := s.arrival("short", 1)
	short.Retention = soon
	s.deliver(s.a, short)
	s.deliver(s.a, s.arrival("long", 1))
	short.Retention = time.Hour // the retention of a later request has no effect
	s.eventually(s.b, short, dedupe.Claimed)
	s.expect(s.b, s.arrival("long", 1), dedupe.Delivered)
}

func expired(s *suite) {
	r := s.arrival("a", 1)
	r.Retention = soon
	s.deliver(s.a, r)
	r.Digest = 2 // does not conflict with a delivery that expired
	c := s.eventually(s.b, r, dedupe.Claimed)
	if status, err := s.a.Lookup(s.Context(), r.Scope, r.Key); err != nil || status.Delivered {
		s.Errorf("an expired ID is looked up as %+v, error %v", status, err)
	}
	if forgotten, err := s.a.Forget(s.Context(), r.Scope, r.Key); err != nil || forgotten {
		s.Errorf("an expired ID was forgotten: %v, error %v", forgotten, err)
	}
	s.settle(s.b, c, false)
}

func storm(s *suite) {
	const ids, duplicates = 20, 10
	var mu sync.Mutex
	owners, deliveries := make(map[string]int), make(map[string]int)
	var senders sync.WaitGroup
	for i := range ids * duplicates {
		id := string(rune('a' + i%ids))
		store := []dedupe.Store{s.a, s.b}[i/ids%2]
		senders.Go(func() {
			v, err := store.Claim(s.Context(), waiting(s.arrival(id, 1)))
			if err != nil || v.State == dedupe.Conflicting {
				s.Errorf("a duplicate got %v", outcome(v, err))
			}
			if err != nil || v.State != dedupe.Claimed {
				return
			}
			mu.Lock()
			owners[id]++
			if owners[id] > 1 || deliveries[id] > 0 {
				s.Errorf("%s has %d owners and was delivered %d times", id, owners[id], deliveries[id])
			}
			mu.Unlock()
			time.Sleep(time.Millisecond)
			success := i%3 == 0
			mu.Lock()
			owners[id]--
			if success {
				deliveries[id]++
			}
			mu.Unlock()
			if err := store.Settle(context.Background(), v.Claim, success); err != nil {
				s.Error(err)
			}
		})
	}
	senders.Wait()
	for id, n := range deliveries {
		if n > 1 {
			s.Errorf("%s was delivered %d times", id, n)
		}
	}
}

func lookup(s *suite) {
	r := s.arrival("a", 7)
	check := func(what string, want dedupe.Status) {
		s.Helper()
		for _, store := range []dedupe.Store{s.a, s.b} {
			got, err := store.Lookup(s.Context(), r.Scope, r.Key)
			if want.Delivered {
				if left := time.Until(got.Expires); left <= 0 || left > r.Retention+time.Second {
					s.Errorf("%s, it expires in %v", what, left)
				}
				got.Expires = time.Time{}
			}
			if err != nil || got != want {
				s.Errorf("%s, it is looked up as %+v, error %v; want %+v", what, got, err, want)
			}
		}
	}
	check("unseen", dedupe.Status{})
	c := s.expect(s.a, r, dedupe.Claimed)
	check("in flight", dedupe.Status{InFlight: true})
	s.settle(s.a, c, true)
	check("delivered", dedupe.Status{Delivered: true, Digest: 7})
	r.Digest = 8
	c = s.expect(s.b, redeliver(r), dedupe.Claimed)
	check("delivered again", dedupe.Status{InFlight: true, Delivered: true, Digest: 7})
	s.settle(s.b, c, false)
	check("after that failed", dedupe.Status{Delivered: true, Digest: 7})
}

func forget(s *suite) {
	r := s.arrival("a", 1)
	check := func(what string, store dedupe.Store, want bool) {
		s.Helper()
		if got, err := store.Forget(s.Context(), r.Scope, r.Key); err != nil || got != want {
			s.Errorf("%s, it was forgotten: %v, error %v; want %v", what, got, err, want)
		}
	}
	check("unseen", s.a, false)
	c := s.expect(s.a, r, dedupe.Claimed)
	check("in flight", s.b, false)
	s.expect(s.b, r, dedupe.ErrInFlight)
	s.settle(s.a, c, true)
	s.expect(s.b, r, dedupe.Delivered)
	check("delivered", s.b, true)
	check("forgotten", s.a, false)
	s.deliver(s.a, r)
	s.expect(s.b, r, dedupe.Delivered)
}

func stats(s *suite) {
	s.deliver(s.a, s.arrival("a", 1))
	s.deliver(s.a, s.arrival("b", 1))
	s.expect(s.a, s.arrival("c", 1), dedupe.Claimed)
	got := s.a.Stats()
	if scope := got.Scopes[s.scope]; scope.Delivered != 2 || scope.InFlight != 1 {
		s.Errorf("the scope is counted as %+v", scope)
	}
	if got.Err != nil || got.Backing == "" || got.Backing != s.a.Stats().Backing {
		s.Errorf("the store describes itself as %+v", got)
	}
}

// shortLease is an arrival whose lease ends during the test.
func (s *suite) shortLease(id string, body dedupe.Digest) dedupe.Request {
	r := s.arrival(id, body)
	r.Lease = soon
	return r
}

func leaseEnds(s *suite) {
	s.expect(s.a, s.shortLease("a", 1), dedupe.Claimed) // then a dies
	c := s.claimAsync(s.Context(), s.b, waiting(s.arrival("a", 2))).expect(dedupe.Claimed)
	s.settle(s.b, c, true)
	s.expect(s.b, s.arrival("a", 2), dedupe.Delivered)
}

func lateEnd(s *suite) {
	for _, success := range []bool{true, false} {
		for _, ownerSucceeds := range []bool{true, false} {
			id := fmt.Sprintf("%v, and the owner's: %v", success, ownerSucceeds)
			old := s.expect(s.a, s.shortLease(id, 1), dedupe.Claimed)
			owner := s.eventually(s.b, s.arrival(id, 2), dedupe.Claimed)
			s.settle(s.a, old, success)
			s.expectOwned(id)
			s.settle(s.b, owner, ownerSucceeds)
			switch {
			case ownerSucceeds:
				s.expect(s.a, s.arrival(id, 2), dedupe.Delivered)
			case success: // an acknowledged event is not forgotten
				s.expect(s.b, s.arrival(id, 1), dedupe.Delivered)
			default:
				s.settle(s.b, s.expect(s.b, s.arrival(id, 1), dedupe.Claimed), false)
			}
		}

		id := fmt.Sprint(success, " after the other's")
		old := s.expect(s.a, s.shortLease(id, 1), dedupe.Claimed)
		s.settle(s.b, s.eventually(s.b, s.arrival(id, 2), dedupe.Claimed), true)
		s.settle(s.a, old, success)
		s.expect(s.a, s.arrival(id, 2), dedupe.Delivered)
	}
}

func lateRedelivery(s *suite) {
	for _, since := range []bool{true, false} {
		id := fmt.Sprint("delivered since: ", since)
		s.deliver(s.a, s.arrival(id, 1))
		old := s.expect(s.a, redeliver(s.shortLease(id, 2)), dedupe.Claimed)
		owner := s.eventually(s.b, redeliver(s.arrival(id, 3)), dedupe.Claimed)
		want := dedupe.Digest(2)
		if since {
			s.settle(s.b, owner, true)
			want = 3
		}
		s.settle(s.a, old, true)
		s.expect(s.a, s.arrival(id, want), dedupe.Delivered)
		s.settle(s.b, owner, false)
		s.expect(s.b, s.arrival(id, want), dedupe.Delivered)
	}
}

func lateSuccess(s *suite) {
	c := s.expect(s.a, s.shortLease("a", 1), dedupe.Claimed)
	s.settle(s.b, s.eventually(s.b, s.arrival("a", 1), dedupe.Claimed), false) // the lease has ended
	s.settle(s.a, c, true)
	s.expect(s.b, s.arrival("a", 1), dedupe.Delivered)
}
