package cli

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
)

// hmacSHA256 is the algorithm of BuzzBip.
var hmacSHA256 = keyed(sha256.New)

// algorithms are those that senders use, the right one and others.
var algorithms = []struct {
	description string
	sum         func(secret, body []byte) []byte
}{
	{"", hmacSHA256},
	{"the signature was made with HMAC-SHA1, not HMAC-SHA256", keyed(sha1.New)},
	{"the signature was made with HMAC-SHA512, not HMAC-SHA256", keyed(sha512.New)},
	{"the signature was made with HMAC-MD5, not HMAC-SHA256", keyed(md5.New)},
	{"the signature is a SHA-256 of the body, without a secret: it proves nothing", func(_, body []byte) []byte { sum := sha256.Sum256(body); return sum[:] }},
	{"the signature is a SHA-256 of the secret and the body, not an HMAC", func(secret, body []byte) []byte {
		sum := sha256.Sum256(append(bytes.Clone(secret), body...))
		return sum[:]
	}},
}

func keyed(newHash func() hash.Hash) func(secret, body []byte) []byte {
	return func(secret, body []byte) []byte {
		mac := hmac.New(newHash, secret)
		mac.Write(body)
		return mac.Sum(nil)
	}
}
