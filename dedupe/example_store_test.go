package dedupe_test

import (
	"context"
	"fmt"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// journalStore is a store that writes each delivered ID to a journal before it
// lets others know. A Ledger makes callers wait for each other.
type journalStore struct {
	ledger dedupe.Ledger
	append func(scope string, key dedupe.Key, digest dedupe.Digest, expires time.Time) error
}

func (s *journalStore) Claim(ctx context.Context, r dedupe.Request) (dedupe.Verdict, error) {
	return s.ledger.Claim(ctx, r, dedupe.Limits{})
}

func (s *journalStore) Settle(_ context.Context, c dedupe.Claim, delivered bool) (err error) {
	now := time.Now()
	if delivered && s.ledger.Records(c) {
		err = s.append(c.Scope, c.Key, c.Digest, now.Add(c.Retention))
	}
	// the ledger learns of the outcome even if it could not be written: the
	// event was delivered
	s.ledger.Settle(c, delivered, now, dedupe.Limits{})
	return err
}

func (s *journalStore) Lookup(_ context.Context, scope string, key dedupe.Key) (dedupe.Status, error) {
	return s.ledger.Lookup(scope, key), nil
}

func (s *journalStore) Forget(_ context.Context, scope string, key dedupe.Key) (bool, error) {
	before := s.ledger.Forget(scope, key)
	if !before.Delivered {
		return false, nil
	}
	return true, s.append(scope, key, 0, time.Time{}) // expired: no longer remembered
}

func (s *journalStore) Stats() dedupe.Stats {
	stats := s.ledger.Stats(dedupe.Limits{})
	stats.Backing = "journal"
	return stats
}

// A store usually adds durability to a Ledger. Its tests run the suite of the
// package storetest.
func ExampleStore() {
	var store dedupe.Store = &journalStore{
		append: func(scope string, key dedupe.Key, _ dedupe.Digest, _ time.Time) error {
			fmt.Printf("append %s %x\n", scope, key[:4])
			return nil
		},
	}

	ctx := context.Background()
	v, err := store.Claim(ctx, request("evt_1", "{}"))
	if err != nil || v.State != dedupe.Claimed {
		return // a duplicate, or the store cannot tell
	}
	delivered := true // deliver the event here
	if err := store.Settle(ctx, v.Claim, delivered); err != nil {
		fmt.Println("only this process knows of the delivery:", err)
	}
	status, _ := store.Lookup(ctx, "my-endpoint", dedupe.KeyOf("evt_1"))
	fmt.Println("remembered:", status.Delivered)

	// Output:
	// append my-endpoint 7d4e5a76
	// remembered: true
}
