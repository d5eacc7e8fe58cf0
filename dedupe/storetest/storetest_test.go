package storetest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// store makes a store of a ledger.
type store struct{ ledger *dedupe.Ledger }

func (s store) Claim(ctx context.Context, r dedupe.Request) (dedupe.Verdict, error) {
	return s.ledger.Claim(ctx, r, dedupe.Limits{})
}

func (s store) Settle(_ context.Context, c dedupe.Claim, delivered bool) error {
	s.ledger.Settle(c, delivered, time.Now(), dedupe.Limits{})
	return nil
}

func (s store) Lookup(_ context.Context, scope string, key dedupe.Key) (dedupe.Status, error) {
	return s.ledger.Lookup(scope, key), nil
}

func (s store) Forget(_ context.Context, scope string, key dedupe.Key) (bool, error) {
	return s.ledger.Forget(scope, key).Delivered, nil
}

func (s store) Stats() dedupe.Stats {
	stats := s.ledger.Stats(dedupe.Limits{})
	stats.Backing = "test"
	return stats
}

// faulty is a store with a fault.
type faulty struct {
	store
	claim  func(dedupe.Request) dedupe.Request
	settle func(dedupe.Claim, bool) (dedupe.Claim, bool)
	answer func(dedupe.Request, dedupe.Verdict, error) (dedupe.Verdict, error)
	forget bool // Forget does nothing
	late   bool // a late success is not recorded
}

func (f faulty) Claim(ctx context.Context, r dedupe.Request) (dedupe.Verdict, error) {
	asked := r
	if f.claim != nil {
		asked = f.claim(r)
	}
	v, err := f.store.Claim(ctx, asked)
	if v.State == dedupe.Claimed && err == nil {
		v.Claim.Request = r
	}
	if f.answer != nil {
		v, err = f.answer(r, v, err)
	}
	return v, err
}

func (f faulty) Settle(ctx context.Context, c dedupe.Claim, delivered bool) error {
	if f.late && !f.ledger.Owns(c) {
		return nil
	}
	if f.settle != nil {
		c, delivered = f.settle(c, delivered)
	}
	return f.store.Settle(ctx, c, delivered)
}

func (f faulty) Forget(ctx context.Context, scope string, key dedupe.Key) (bool, error) {
	if f.forget {
		return true, nil
	}
	return f.store.Forget(ctx, scope, key)
}

var faults = map[string]faulty{
	"the body is not compared": {claim: func(r dedupe.Request) dedupe.Request { r.Digest = 0; return r }, settle: func(c dedupe.Claim, d bool) (dedupe.Claim, bool) {
		c.Digest = 0
		return c, d
	}},
	"redelivery is ignored":      {claim: func(r dedupe.Request) dedupe.Request { r.Redeliver = false; return r }},
	"redelivery is always on":    {claim: func(r dedupe.Request) dedupe.Request { r.Redeliver = true; return r }},
	"nobody waits":               {claim: func(r dedupe.Request) dedupe.Request { r.Wait = 0; return r }},
	"everybody waits":            {claim: func(r dedupe.Request) dedupe.Request { r.Wait += 2 * patience; return r }},
	"failures are recorded":      {settle: func(c dedupe.Claim, _ bool) (dedupe.Claim, bool) { return c, true }},
	"successes are not recorded": {settle: func(c dedupe.Claim, _ bool) (dedupe.Claim, bool) { return c, false }},
	"nothing is ever forgotten":  {settle: func(c dedupe.Claim, d bool) (dedupe.Claim, bool) { c.Retention = time.Hour; return c, d }},
	"IDs are forgotten too soon": {settle: func(c dedupe.Claim, d bool) (dedupe.Claim, bool) { c.Retention /= 2; return c, d }},
	"every claim is granted": {answer: func(r dedupe.Request, v dedupe.Verdict, _ error) (dedupe.Verdict, error) {
		return dedupe.Verdict{State: dedupe.Claimed, Claim: dedupe.Claim{Request: r, Token: 1}}, nil
	}},
	"scopes are mixed up": {
		claim:  func(r dedupe.Request) dedupe.Request { r.Scope = "all"; return r },
		settle: func(c dedupe.Claim, d bool) (dedupe.Claim, bool) { c.Scope = "all"; return c, d },
	},
	"forgetting does nothing":    {forget: true},
	"late successes are dropped": {late: true},
}

const faultVariable = "STORETEST_FAULT"

// TestStoreWithoutFault passes, unless the variable names a fault.
func TestStoreWithoutFault(t *testing.T) {
	ledger := new(dedupe.Ledger)
	f, faulty := faults[os.Getenv(faultVariable)]
	if faulty { // the suite waits for what does not happen
		patience = time.Second
	}
	f.store = store{ledger}
	Test(t, Config{Open: func(testing.TB) dedupe.Store { return f }})
}

func TestSuiteFindsFaults(t *testing.T) {
	for fault := range faults {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run=^TestStoreWithoutFault$", "-test.failfast", "-test.timeout=20s", "-rapid.nofailfile")
			cmd.Env = append(os.Environ(), faultVariable+"="+fault)
			out, err := cmd.CombinedOutput()
			if err == nil || !bytes.Contains(out, []byte("--- FAIL: TestStoreWithoutFault/")) {
				t.Errorf("the fault was not found: %v\n%.2000s", err, out)
			}
		})
	}
}
