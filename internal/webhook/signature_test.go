package webhook

import (
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

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
