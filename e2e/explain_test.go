package e2e

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

func TestExplain(t *testing.T) {
	body := caddytest.Event{Created: caddytest.DocumentedTime}.Body()
	file := write(t, body)
	run(t, "", "explain", file, "--signature", caddytest.Sign(body)).says(t, 0, "accepted", "message.received evt_", "BUZZBIP_SECRET")
	run(t, body, "explain", "--signature", caddytest.SignWith(caddytest.Secret+"\n", body)).
		says(t, 1, "rejected: signature_mismatch (401 Unauthorized)", "likely cause:", "newline or a blank at its end")
	runWith(t, []string{"OLD=" + caddytest.Secret}, "", "explain", file, "--signature", caddytest.Sign(body), "--secret-env", "OLD", "--secret-file", write(t, "another")).
		says(t, 0, "under the secret from OLD")
	run(t, "", "explain", file).says(t, 1, "signature_missing", "give it with --signature")
	header := strings.TrimSpace(run(t, "", "sign", file, "--header").out)
	for _, copied := range []string{header, "> " + strings.ToLower(header), `"X-Buzzbip-Signature":["` + caddytest.Sign(body) + `"]`} {
		run(t, "", "explain", file, "--signature", copied).says(t, 0, "accepted")
	}
	run(t, strings.ReplaceAll(body, `"`, `\"`)+"\n", "explain", "--signature", header).says(t, 1, "the captured body is escaped", "it is what was signed")
	run(t, "", "explain", file, "--signature", caddytest.Sign(body), "--max-age", "1h", "--at", "2026-06-01T16:00:00Z").says(t, 1, "event_stale (403 Forbidden)")
	run(t, "", "explain", file, "--signature", caddytest.Sign(body), "--max-age", "7d", "--at", "2026-06-09T14:32:00Z").says(t, 1, "event_stale")
	run(t, "", "explain", file, "--signature", caddytest.Sign(body), "--max-age", "old").says(t, 1, "--max-age", "is not a duration such as")
	for _, none := range []string{"-1h", "0"} {
		run(t, "", "explain", file, "--signature", caddytest.Sign(body), "--max-age", none).says(t, 1, "--max-age must be greater than zero")
	}
	run(t, "", "explain", file, "--signature", caddytest.Sign(body), "--at", "yesterday").says(t, 1, "is not a time such as")
	run(t, "", "explain", file, "--signature", caddytest.Sign(body), "--envelope", "loose").says(t, 1, "strict or lenient")
	large := caddytest.NewEvent() + strings.Repeat(" ", 1<<20)
	run(t, large, "explain", "--signature", strings.Repeat("0", 64)).says(t, 1, "body_too_large (413 Request Entity Too Large)", "--max-body-size")
	run(t, large, "explain", "--signature", caddytest.Sign(large), "--max-body-size", "2MiB").says(t, 0, "accepted")
	run(t, "", "explain", file, "--signature", caddytest.Sign(body), "--max-body-size", "1B").says(t, 1, "body_too_large")
	run(t, "", "explain", file, "--signature", caddytest.Sign(body), "--max-body-size", "large").says(t, 1, "--max-body-size must be a size such as 512KiB")
	run(t, "", "explain", file, "--signature", caddytest.Sign(body), "--max-body-size", "0").says(t, 1, "--max-body-size must be greater than zero")

	got := run(t, `{"id":"x"}`, "explain", "--signature", caddytest.Sign(`{"id":"x"}`), "--json")
	var answer struct {
		Reason, Detail string
		Status         int
		Causes         []string
	}
	if err := json.Unmarshal([]byte(got.out), &answer); err != nil || got.code != 1 || answer.Reason != "envelope_invalid" || answer.Status != 400 || len(answer.Causes) == 0 {
		t.Errorf("as JSON: %+v %v", got, err)
	}
}

// Other commands may reject what explain finds the mistake in.
func TestExplainAcceptsInvalidSecrets(t *testing.T) {
	body := caddytest.NewEvent()
	file := write(t, body)
	wide := "\xff\xfe"
	for _, b := range []byte(caddytest.Secret + "\r\n") {
		wide += string([]byte{b, 0})
	}
	for secret, want := range map[string]string{
		"\ufeff" + caddytest.Secret + "\n":         "byte order mark",
		wide:                                       "it is in UTF-16",
		"BUZZBIP_SECRET=" + caddytest.Secret:       "NAME=value",
		caddytest.Secret + "\u200b":                "zero-width space",
		"\u201c" + caddytest.Secret + "\u201d\r\n": "typographic quotes",
	} {
		path := write(t, secret)
		for _, got := range []ran{
			runWith(t, nil, "", "explain", file, "--signature", caddytest.Sign(body), "--secret-file", path),
			runWith(t, nil, secret, "explain", file, "--signature", caddytest.Sign(body), "--secret-file", "-"),
		} {
			got.says(t, 1, "signature_mismatch", "the secret from ", want)
		}
	}
	pipe := filepath.Join(t.TempDir(), "pipe")
	makePipe(t, pipe)
	for name, want := range map[string]string{
		pipe:                                    "is not a regular file: give the path of one that holds the secret, or give the secret on standard input",
		t.TempDir():                             "is not a regular file",
		"/does/not/exist":                       "no such file",
		write(t, " \n"):                         "is empty",
		write(t, strings.Repeat("x", 64<<10+1)): "is too large for a secret",
	} {
		run(t, "", "explain", file, "--signature", caddytest.Sign(body), "--secret-file", name).says(t, 1, "the secret: ", want)
	}
}
