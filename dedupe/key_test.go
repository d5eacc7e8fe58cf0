package dedupe

import (
	"crypto/sha256"
	"strings"
	"testing"
)

// Stores on a disk, or shared between processes, rely on these values.
func TestKeysAndDigestsAreStable(t *testing.T) {
	for _, id := range []string{"", "evt_7f3a9b2c", strings.Repeat("x", 256), strings.Repeat("x", 257)} {
		sum := sha256.Sum256([]byte(id))
		if got := KeyOf(id); got != Key(sum[:16]) {
			t.Errorf("the key of %d bytes is %x", len(id), got)
		}
	}
	// test vectors of xxHash64
	for body, want := range map[string]Digest{"": 0xef46db3751d8e999, "a": 0xd24ec4f1a98c6e5b, "abc": 0x44bc2cf5ad770999} {
		if got := DigestOf([]byte(body)); got != want {
			t.Errorf("the digest of %q is %x, want %x", body, uint64(got), uint64(want))
		}
	}
}

func TestKeysAndDigestsTakeNoMemory(t *testing.T) {
	id, body := strings.Repeat("x", 256), make([]byte, 4096)
	var key Key
	var digest Digest
	if n := testing.AllocsPerRun(100, func() { key, digest = KeyOf(id), DigestOf(body) }); n != 0 {
		t.Errorf("%v allocations for the key %x and the digest %x", n, key, digest)
	}
}
