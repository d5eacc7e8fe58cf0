package e2e

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

// An outer and an inner Caddy on one Redis wait for each other, unless they are
// separated in one of the ways that docs/TROUBLESHOOTING.md names.
func TestAnOuterAndAnInnerCaddyOnOneRedisDeliver(t *testing.T) {
	store := "store redis " + redistest.Start(t).URL()
	for name, inner := range map[string]string{
		"with a scope of its own":      "scope inner\n" + store,
		"with a key_prefix of its own": store + " {\nkey_prefix inner:\n}",
		"with dedupe off":              "dedupe off",
	} {
		t.Run(name, func(t *testing.T) {
			b := caddytest.NewBackend(t, nil)
			site := func(options, next string) (address string) {
				address = caddytest.FreeAddress(t)
				caddytest.Start(t, "", "", fmt.Sprintf(`
http://%s {
	buzzbip_webhook %s {
		%s
	}
	reverse_proxy %s {
		header_up Host {upstream_hostport}
	}
}`, address, caddytest.Secret, options, next))
				return address
			}
			url := "http://" + site(store, site(inner, b.Address()))
			body := caddytest.NewEvent()
			for range 2 {
				if got := caddytest.Post(t.Context(), url, body); got.Status != http.StatusOK {
					t.Errorf("answered %+v", got)
				}
			}
			if got := b.Count(body); got != 1 {
				t.Errorf("the backend got the event %d times, want once", got)
			}
		})
	}
}
