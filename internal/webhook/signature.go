package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
)

// SignatureHeader is the request header with the HMAC-SHA256 of the raw body under
// the webhook's signing secret, in hex. BuzzBip signs nothing else: no timestamp,
// no path, no method (developer documentation, "Webhooks", updated 2026-06-01).
const SignatureHeader = "X-BuzzBip-Signature"

// Sign returns the value of [SignatureHeader] for a body under a secret: 64
// lower-case hex digits.
func Sign(secret, body []byte) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}

// signatureHeaderKey is SignatureHeader as net/http spells it in a header map.
var signatureHeaderKey = http.CanonicalHeaderKey(SignatureHeader)

// ParseSignature reads the signature from the headers of a request: exactly one
// [SignatureHeader] with 64 hex digits in either case. An error comes with
// [ReasonSignatureMissing] or [ReasonSignatureMalformed], and does not contain the
// value of the header.
func ParseSignature(header http.Header) (signature [sha256.Size]byte, reason Reason, err error) {
	values := header[signatureHeaderKey]
	switch {
	case len(values) == 0:
		return signature, ReasonSignatureMissing, errors.New("the request has no " + SignatureHeader + " header")
	case len(values) > 1:
		return signature, ReasonSignatureMalformed, errors.New("the request has more than one " + SignatureHeader + " header")
	}
	if len(values[0]) != hex.EncodedLen(len(signature)) {
		return signature, ReasonSignatureMalformed, fmt.Errorf("the %s header must be %d hex digits, not %d characters",
			SignatureHeader, hex.EncodedLen(len(signature)), len(values[0]))
	}
	var digits [2 * sha256.Size]byte
	copy(digits[:], values[0])
	if _, err := hex.Decode(signature[:], digits[:]); err != nil {
		return signature, ReasonSignatureMalformed, errors.New("the " + SignatureHeader + " header must be hex digits")
	}
	return signature, "", nil
}
