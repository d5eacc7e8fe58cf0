package cli

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// diagnose returns what is likely wrong with a signature that does not match, and
// what to do: the mistakes that explain it, or else the usual causes.
func (r *capturedRequest) diagnose() []string {
	header := r.signatures[0]
	signatures := signatureVariants(header)
	if mistakes := r.fewestMistakes(signatures); mistakes != nil {
		return mistakes
	}
	if digits := len(header); digits > 0 && digits < hex.EncodedLen(sha256.Size) && strings.Trim(header, "0123456789abcdefABCDEF") == "" {
		return []string{fmt.Sprintf("the signature was cut off: copy all %d digits", hex.EncodedLen(sha256.Size))}
	}
	causes := []string{"the secret is that of another webhook: copy it again from Settings > Developer > Webhooks, for this URL",
		"or the body is not, byte for byte, what was sent: something before Caddy changed it, or it was not captured whole"}
	if len(signatures) == 0 {
		causes = []string{"the header is no HMAC in any usual encoding: was it cut off, or written by something other than BuzzBip?"}
	}
	if _, err := webhook.ParseEvent(r.body, webhook.Requirements{}); err != nil {
		causes = append(causes, fmt.Sprintf("the body is not an event as BuzzBip sends it (%v), so it was probably changed or not captured whole", err))
	}
	return causes
}

// fewestMistakes returns the mistakes that together explain the signature, as few
// as possible, or nil.
func (r *capturedRequest) fewestMistakes(signatures []variant) (fewest []string) {
	secrets := []variant{{nil, "the sender signed with an empty secret"}}
	for _, s := range r.secrets {
		secrets = append(secrets, secretVariants(s)...)
	}
	for _, body := range bodyVariants(r.body) {
		for _, secret := range secrets {
			for _, algorithm := range algorithms {
				sum := algorithm.sum(secret.value, body.value)
				for _, signature := range signatures {
					if !hmac.Equal(sum, signature.value) {
						continue
					}
					mistakes := notEmpty(signature.description, secret.description, algorithm.description, body.description)
					if fewest == nil || len(mistakes) < len(fewest) {
						fewest = mistakes
					}
				}
			}
		}
	}
	return fewest
}

func notEmpty(texts ...string) (found []string) {
	for _, text := range texts {
		if text != "" {
			found = append(found, text)
		}
	}
	return found
}
