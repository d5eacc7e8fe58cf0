package e2e

import (
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

func TestSign(t *testing.T) {
	const body = `{"id":"evt_1"}`
	for name, got := range map[string]ran{
		"from a file":           run(t, "", "sign", write(t, body)),
		"from standard input":   run(t, body, "sign"),
		"with another variable": runWith(t, []string{"MINE=" + caddytest.Secret}, body, "sign", "--secret-env", "MINE"),
		"with a secret file":    runWith(t, nil, body, "sign", "--secret-file", write(t, caddytest.Secret+"\n")),
		"with the secret from standard input": runWith(t, nil, caddytest.Secret+"\n", "sign", write(t, body),
			"--secret-file", "-"),
	} {
		if got.code != 0 || got.out != caddytest.Sign(body)+"\n" || got.err != "" {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := run(t, body, "sign", "--header"); got.out != "X-BuzzBip-Signature: "+caddytest.Sign(body)+"\n" {
		t.Errorf("as a header: %q", got.out)
	}
	if got := run(t, body+"\n", "sign"); got.out == caddytest.Sign(body)+"\n" {
		t.Error("a newline does not count")
	}
	runWith(t, []string{"BUZZBIP_SECRET="}, body, "sign").says(t, 1, "BUZZBIP_SECRET is not set", "--secret-file")
	runWith(t, []string{"BUZZBIP_SECRET= \n"}, body, "sign").says(t, 1, "BUZZBIP_SECRET is not set or blank")
	run(t, body, "sign", "--secret-file", "/does/not/exist").says(t, 1, "/does/not/exist")
	run(t, body, "sign", "--secret-file", write(t, "\n")).says(t, 1, "is empty")
	run(t, body, "sign", "--secret-file", "-").says(t, 1, "both the secret and the body")
	run(t, body, "sign", "--secret-env", "A", "--secret-env", "B").says(t, 1, "give one secret")
	run(t, "", "sign", "/does/not/exist").says(t, 1, "/does/not/exist")
}
