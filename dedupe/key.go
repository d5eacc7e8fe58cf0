package dedupe

import (
	"crypto/sha256"

	"github.com/cespare/xxhash/v2"
)

// Key is the fixed-size form of an event ID.
type Key [16]byte

// KeyOf returns the first 128 bits of the SHA-256 of an event ID. It is the
// same in every process, so it can be stored and shared.
func KeyOf(id string) Key {
	// a buffer of fixed size keeps the bytes of the ID off the heap
	var buf [256]byte
	sum := sha256.Sum256(append(buf[:0], id...))
	return Key(sum[:16])
}

// Digest stands for the body of an event: equal bodies have equal digests.
// It detects bodies that differ by accident. It is no protection against a
// sender that has the signing secret, which could sign any body anyway.
type Digest uint64

// DigestOf returns the 64-bit xxHash of a body. It does not depend on a
// secret, so a body has the same digest under every secret of a scope.
func DigestOf(body []byte) Digest { return Digest(xxhash.Sum64(body)) }
