package storetest

import (
	"context"
	"errors"
	"testing"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// Expect makes a claim and fails the test unless the answer is the one wanted: a
// [dedupe.State] or an error.
func Expect(t testing.TB, store dedupe.Store, r dedupe.Request, want any) dedupe.Claim {
	t.Helper()
	v, err := store.Claim(t.Context(), r)
	return check(t, r, v, err, want)
}

// Settle settles a claim and fails the test if that returns an error.
func Settle(t testing.TB, store dedupe.Store, c dedupe.Claim, delivered bool) {
	t.Helper()
	if err := store.Settle(context.Background(), c, delivered); err != nil {
		t.Fatalf("settling: %v", err)
	}
}

// Deliver claims an ID and settles the claim as delivered.
func Deliver(t testing.TB, store dedupe.Store, r dedupe.Request) {
	t.Helper()
	Settle(t, store, Expect(t, store, r, dedupe.Claimed), true)
}

// outcome returns how a claim was answered: a [dedupe.State] or an error.
func outcome(v dedupe.Verdict, err error) any {
	if err != nil {
		return err
	}
	return v.State
}

func check(t testing.TB, r dedupe.Request, v dedupe.Verdict, err error, want any) dedupe.Claim {
	t.Helper()
	got := outcome(v, err)
	if wantErr, ok := want.(error); ok {
		if !errors.Is(err, wantErr) {
			t.Fatalf("the claim gave %v, want the error %v", got, wantErr)
		}
	} else if got != want {
		t.Fatalf("the claim gave %v, want the state %v", got, want)
	}
	switch {
	case err == nil && v.State == dedupe.Claimed:
		if v.Claim.Request != r {
			t.Fatalf("the claim is on %+v, want %+v", v.Claim.Request, r)
		}
	case v.Claim != dedupe.Claim{}:
		t.Fatalf("there is a claim with %v", got)
	}
	return v.Claim
}
