package e2e

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// No secret is shown on any path, nor the signature that a forgery should have
// had.
func TestNoSecretIsShown(t *testing.T) {
	tr := takeTour(t, "\tdebug\n\tlog {\n\t\tformat filter {\n\t\t\trequest>headers>X-Buzzbip-Signature delete\n\t\t\theaders>X-Buzzbip-Signature delete\n\t\t\twrap json\n\t\t}\n\t}")
	said := map[string]string{"the answers": tr.answers.String(), "the metrics": tr.Metrics()}
	for _, path := range []string{"/config/", "/buzzbip_webhook/scopes", "/buzzbip_webhook/events/evt_1", "/buzzbip_webhook/"} {
		_, said[path] = tr.Ask(http.MethodGet, path)
	}
	said["the stream of requests"] = firstEvents(t, "http://"+tr.Admin+"/buzzbip_webhook/requests", 2)
	// errors at load, with a secret at hand
	for name, broken := range map[string]string{
		"a repeated label":       "buzzbip_webhook {\n secret {env.OLD_SECRET} a\n secret {env.OTHER_SECRET} a\n}",
		"secrets in place":       "buzzbip_webhook " + caddytest.Secret + " " + oldSecret,
		"an unknown option":      "buzzbip_webhook " + caddytest.Secret + " {\n nothing\n}",
		"a store that is broken": "buzzbip_webhook {env.OLD_SECRET} {\n store redis {env.REDIS_URL} redis://caddy:" + redisSecret + "x@127.0.0.1:1\n}",
		"a URL that is broken":   "buzzbip_webhook {env.OLD_SECRET} {\n store redis redis://caddy:" + redisSecret + "@[::1\n}",
		"max_age":                "buzzbip_webhook {env.OLD_SECRET} {\n max_age 2d\n}",
	} {
		status, text := tr.Load(fmt.Sprintf("{\n\tadmin %s\n}\nhttp://%s {\n%s\n}", tr.Admin, caddytest.FreeAddress(t), broken))
		if status == http.StatusOK {
			t.Errorf("%s was loaded", name)
		}
		said["the error for "+name] = text
	}
	tr.Stop()
	said["the log"] = tr.Log.String()

	hidden := map[string]string{"main": caddytest.Secret, "old": oldSecret, "other": otherSecret, "of Redis": redisSecret}
	for i, signature := range tr.forged {
		hidden[fmt.Sprint("signature of forgery ", i)] = signature
	}
	for name, secret := range map[string]string{"main": caddytest.Secret, "old": oldSecret, "other": otherSecret} {
		// the scope that is derived from the secret
		hidden["scope of "+name] = caddytest.SignWith(secret, "buzzbip_webhook scope")[:16]
	}
	for what, text := range said {
		for name, value := range hidden {
			for _, form := range []string{value, hex.EncodeToString([]byte(value)), strings.ToUpper(value)} {
				if strings.Contains(text, form) {
					t.Errorf("%s show the secret %s", what, name)
				}
			}
		}
	}
	if !strings.Contains(said["the log"], "signature_mismatch") || len(said["the metrics"]) < 1000 {
		t.Error("there is nothing to look at")
	}
}

func TestSecretFileIsReadAgainWhenItChanges(t *testing.T) {
	const newSecret = "new-secret-of-the-same-webhook-32"
	b := caddytest.NewBackend(t, nil)
	dir, address := t.TempDir(), caddytest.FreeAddress(t)
	path := filepath.Join(dir, "secret")
	write := func(text string) {
		t.Helper()
		// as secrets are put in place: a new file, renamed
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write(caddytest.Secret + "\n")
	c := caddytest.Start(t, "", "", fmt.Sprintf("http://%s {\n\tbuzzbip_webhook {\n\t\tsecret_file %s main\n\t}\n\treverse_proxy %s\n}", address, path, b.Address()))
	tr := &tour{t: t, Caddy: c, address: address}
	before := caddytest.NewEvent()
	tr.sends("/", caddytest.Secret, before, http.StatusOK)
	last := tr.overview().secret("main")
	if last == nil || time.Since(*last) > caddytest.Patience {
		t.Fatalf("the secret matched last at %v", last)
	}

	write(newSecret)
	caddytest.WaitFor(t, "the new secret to be active", func() bool { return strings.Contains(c.Log.String(), "the secret has changed") })
	if last := tr.overview().secret("main"); last != nil {
		t.Errorf("the new secret is said to have matched, at %v", last)
	}
	tr.sends("/", caddytest.Secret, caddytest.NewEvent(), http.StatusUnauthorized)
	tr.sends("/", newSecret, caddytest.NewEvent(), http.StatusOK)

	for _, lost := range []string{"", "\n"} {
		write(lost)
		caddytest.WaitFor(t, "an error", func() bool { return strings.Contains(c.Log.String(), "keeping the current secret") })
		tr.sends("/", newSecret, caddytest.NewEvent(), http.StatusOK)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	caddytest.WaitFor(t, "an error", func() bool { return strings.Contains(c.Log.String(), "no such file") })
	tr.sends("/", newSecret, caddytest.NewEvent(), http.StatusOK)
	write(newSecret)
	caddytest.WaitFor(t, "the end of the error", func() bool { return strings.Contains(c.Log.String(), "can be read again") })

	write(caddytest.Secret + "\r\n")
	caddytest.WaitFor(t, "the first secret to be back", func() bool { return strings.Count(c.Log.String(), "the secret has changed") == 2 })
	tr.sends("/", caddytest.Secret, caddytest.NewEvent(), http.StatusOK)
	tr.sends("/", caddytest.Secret, before, http.StatusOK) // a duplicate: each secret keeps its own memory
	if n := b.Count(before); n != 1 {
		t.Errorf("the event from before was delivered %d times", n)
	}
	for _, secret := range []string{caddytest.Secret, newSecret} {
		if strings.Contains(c.Log.String(), secret) {
			t.Error("the log shows a secret")
		}
	}
}
