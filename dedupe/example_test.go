package dedupe_test

import (
	"context"
	"fmt"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// stateNames are the names of the states for the output of the examples.
var stateNames = map[dedupe.State]string{
	dedupe.Claimed:     "claimed",
	dedupe.Delivered:   "delivered",
	dedupe.Conflicting: "conflicting",
}

func request(id, body string) dedupe.Request {
	return dedupe.Request{
		Scope:     "my-endpoint",
		Key:       dedupe.KeyOf(id),
		Digest:    dedupe.DigestOf([]byte(body)),
		Retention: 24 * time.Hour,
	}
}

// A Ledger remembers the events that were delivered, for one process.
func ExampleLedger() {
	var ledger dedupe.Ledger
	limits := dedupe.Limits{Capacity: 1_000_000}
	ctx := context.Background()

	v, err := ledger.Claim(ctx, request("evt_1", `{"text":"hello"}`), limits)
	fmt.Println("first arrival:", stateNames[v.State], err)

	_, err = ledger.Claim(ctx, request("evt_1", `{"text":"hello"}`), limits)
	fmt.Println("while it is in flight:", err)

	ledger.Settle(v.Claim, true, time.Now(), limits)
	v, err = ledger.Claim(ctx, request("evt_1", `{"text":"hello"}`), limits)
	fmt.Println("after the delivery:", stateNames[v.State], err)

	v, err = ledger.Claim(ctx, request("evt_1", `{"text":"other"}`), limits)
	fmt.Println("with another body:", stateNames[v.State], err)

	// Output:
	// first arrival: claimed <nil>
	// while it is in flight: the event is still being delivered
	// after the delivery: delivered <nil>
	// with another body: conflicting <nil>
}

// A caller that waits for a delivery in flight gets the claim if it fails.
func ExampleLedger_Claim() {
	var ledger dedupe.Ledger
	ctx := context.Background()
	first, _ := ledger.Claim(ctx, request("evt_1", "{}"), dedupe.Limits{})

	go ledger.Settle(first.Claim, false, time.Now(), dedupe.Limits{}) // the backend fails

	retry := request("evt_1", "{}")
	retry.Wait = 8 * time.Second
	second, err := ledger.Claim(ctx, retry, dedupe.Limits{})
	fmt.Println(stateNames[second.State], err)

	// Output:
	// claimed <nil>
}

// Settle with an old token does not end the claim of another owner.
func ExampleLedger_Settle() {
	var ledger dedupe.Ledger
	ctx := context.Background()
	first, _ := ledger.Claim(ctx, request("evt_1", "{}"), dedupe.Limits{})
	fmt.Println("current:", ledger.Settle(first.Claim, false, time.Now(), dedupe.Limits{}))

	second, _ := ledger.Claim(ctx, request("evt_1", "{}"), dedupe.Limits{})
	fmt.Println("current:", ledger.Settle(first.Claim, false, time.Now(), dedupe.Limits{}))
	fmt.Println("second claim still owns the ID:", ledger.Owns(second.Claim))

	// Output:
	// current: true
	// current: false
	// second claim still owns the ID: true
}

func ExampleKeyOf() {
	fmt.Printf("%x\n", dedupe.KeyOf("evt_7f3a9b2c"))
	// Output: e3091f8949bbf65859c39855c5cb6602
}

func ExampleDigestOf() {
	first := dedupe.DigestOf([]byte(`{"text":"hello"}`))
	retry := dedupe.DigestOf([]byte(`{"text":"hello"}`))
	changed := dedupe.DigestOf([]byte(`{"text":"other"}`))
	fmt.Println(first == retry, first == changed)
	// Output: true false
}

func ExampleRequest_Compare() {
	r := request("evt_1", "new body")
	earlier := dedupe.DigestOf([]byte("old body"))
	v, known := r.Compare(earlier)
	fmt.Println(stateNames[v.State], known)

	r.Redeliver = true // then it must be delivered again
	_, known = r.Compare(earlier)
	fmt.Println(known)

	// Output:
	// conflicting true
	// false
}
