// Package dedupe decides whether an event that arrives must be delivered, or
// is a duplicate of one that was delivered or is being delivered.
//
// # States of an ID
//
// Within a scope, an event ID is in one of three states:
//
//   - unseen: nothing is known of it.
//   - in flight: a caller has a claim on it and is delivering the event.
//   - delivered: it is remembered, with a digest of its body, until its
//     retention has passed. Then it is unseen again.
//
// An ID that was delivered can be in flight again, if the event arrives with
// another body and the request asks for redelivery.
//
// # Claims
//
// [Store.Claim] moves an ID from unseen to in flight, for exactly one caller.
// That caller delivers the event and then calls [Store.Settle], which moves the
// ID to delivered after a success, or back to its previous state after a
// failure. Other callers that claim the same ID in the meantime wait. After a
// success they are told that it was delivered; after a failure, the first of
// them gets the claim.
//
//	         Claim                 Settle(delivered)
//	unseen ─────────▶ in flight ──────────────────────▶ delivered
//	   ▲                  │                                 │
//	   │                  │ Settle(failed), nobody waits    │ retention passes,
//	   └──────────────────┴─────────────────────────────────┘ or Forget
//
// # Fencing tokens
//
// A claim can be lost while its owner is still delivering: its lease ends, or a
// shared store loses data. Then another caller may get a claim on the same ID.
// Each claim therefore has a token that no other claim on the ID has, and only
// the current claim can be ended: Settle with an old token never ends the claim
// of another owner. If the late delivery was a success, it is still recorded,
// unless the ID was delivered after the claim was made.
//
// # Writing a store
//
// [Ledger] is a complete implementation within one process. A store that keeps
// its IDs elsewhere usually has a Ledger in front, which makes the callers of
// its own process wait for each other: see the packages below this one, and the
// Store example. A new store
//
//   - implements [Store], and [Starter] if it must acquire something exclusive,
//     such as a file lock;
//   - compares only [Key] and [Digest], which have the same values in every
//     process and can be written to a disk or sent over a network;
//   - passes the tests of the package storetest;
//   - is a Caddy module in the namespace http.buzzbip_webhook.stores.
package dedupe
