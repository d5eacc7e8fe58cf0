package cli

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"strings"
	"testing"
)

// sumOf computes with the algorithm that a description names.
func sumOf(t *testing.T, algorithm, secret, body string) []byte {
	t.Helper()
	for _, a := range algorithms {
		if strings.Contains(a.description, algorithm) {
			return a.sum([]byte(secret), []byte(body))
		}
	}
	t.Fatalf("%s is not known", algorithm)
	return nil
}

func TestExplainNamesOtherAlgorithms(t *testing.T) {
	sum := func(algorithm string) string { return hex.EncodeToString(sumOf(t, algorithm, testSecret, testBody)) }
	testDiagnoses(t, map[string]diagnosis{
		"HMAC-SHA1":               {testSecret, testBody, sum("SHA1"), []string{"HMAC-SHA1"}},
		"HMAC-SHA512":             {testSecret, testBody, sum("SHA512"), []string{"HMAC-SHA512"}},
		"HMAC-MD5":                {testSecret, testBody, sum("MD5"), []string{"HMAC-MD5"}},
		"hash of the body":        {testSecret, testBody, sum("without a secret"), []string{"proves nothing"}},
		"hash of secret and body": {testSecret, testBody, sum("of the secret and the body"), []string{"not an HMAC"}},
	})
}

// The algorithms are checked against the standard library, not themselves.
func TestAlgorithms(t *testing.T) {
	hash := sha256.Sum256([]byte("body"))
	hashWithSecret := sha256.Sum256([]byte("kbody"))
	for algorithm, test := range map[string]struct {
		body string
		want []byte
	}{
		"HMAC-SHA1,":                 {"", hmac.New(sha1.New, []byte("k")).Sum(nil)},
		"HMAC-SHA512,":               {"", hmac.New(sha512.New, []byte("k")).Sum(nil)},
		"HMAC-MD5,":                  {"", hmac.New(md5.New, []byte("k")).Sum(nil)},
		"without a secret":           {"body", hash[:]},
		"of the secret and the body": {"body", hashWithSecret[:]},
	} {
		if got := sumOf(t, algorithm, "k", test.body); !bytes.Equal(got, test.want) {
			t.Errorf("%s gives %x, want %x", algorithm, got, test.want)
		}
	}
}
