package webhook

import (
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// The value was computed with openssl dgst -sha256 -hmac whsec_test.
func TestSignIsHMACSHA256InHex(t *testing.T) {
	if got := Sign([]byte("whsec_test"), []byte("body")); got != "33db3a89e6de550c29af08a2a7922d359e9e125b6c7f4cbfb6137ceb414b373c" {
		t.Errorf("the signature is %s", got)
	}
}

func TestSignatureIsOneHeaderOf64HexDigits(t *testing.T) {
	valid := caddytest.Sign("body")
	for name, test := range map[string]struct {
		values []string
		reason Reason
	}{
		"lower case":   {[]string{valid}, ""},
		"upper case":   {[]string{strings.ToUpper(valid)}, ""},
		"none":         {nil, ReasonSignatureMissing},
		"two":          {[]string{valid, valid}, ReasonSignatureMalformed},
		"empty":        {[]string{""}, ReasonSignatureMalformed},
		"too short":    {[]string{valid[1:]}, ReasonSignatureMalformed},
		"with a blank": {[]string{valid + " "}, ReasonSignatureMalformed},
		"with a name":  {[]string{"sha256=" + valid}, ReasonSignatureMalformed},
		"not hex":      {[]string{strings.Repeat("g", 64)}, ReasonSignatureMalformed},
	} {
		header := make(http.Header)
		for _, value := range test.values {
			header.Add(SignatureHeader, value)
		}
		signature, reason, err := ParseSignature(header)
		if reason != test.reason || (err == nil) != (reason == "") {
			t.Errorf("%s: %q, %v, want %q", name, reason, err, test.reason)
		}
		if err == nil && hex.EncodeToString(signature[:]) != valid {
			t.Errorf("%s: the signature is %x", name, signature)
		}
	}
}

func FuzzSignatureHeader(f *testing.F) {
	valid := caddytest.Sign("body")
	for _, value := range []string{valid, strings.ToUpper(valid), "sha256=" + valid, valid[1:], "", valid + " ", strings.Repeat("g", 64), "0x" + valid[2:]} {
		f.Add(value, 1)
	}
	f.Add(valid, 0)
	f.Add(valid, 2)
	f.Fuzz(func(t *testing.T, value string, times int) {
		header := make(http.Header)
		for range max(0, min(times, 3)) {
			header.Add(SignatureHeader, value)
		}
		sum, reason, err := ParseSignature(header)
		if (err == nil) != (reason == "") {
			t.Fatalf("reason %q, error %v", reason, err)
		}
		if err != nil {
			if value != "" && strings.Contains(err.Error(), value) && len(value) > 8 {
				t.Fatalf("the error repeats the signature: %v", err)
			}
			return
		}
		if times != 1 || !strings.EqualFold(hex.EncodeToString(sum[:]), value) {
			t.Fatalf("%d of %q was read as %x", times, value, sum)
		}
	})
}
