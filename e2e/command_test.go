package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// ran is the output and the exit code of a command.
type ran struct {
	out, err string
	code     int
}

// run runs `caddy buzzbip` with an input and the secret in BUZZBIP_SECRET.
func run(t *testing.T, input string, args ...string) ran {
	t.Helper()
	return runWith(t, []string{"BUZZBIP_SECRET=" + caddytest.Secret}, input, args...)
}

func runWith(t *testing.T, env []string, input string, args ...string) ran {
	t.Helper()
	cmd := exec.Command(caddytest.Binary, append([]string{"buzzbip"}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(input)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	got := ran{out.String(), log.String(), cmd.ProcessState.ExitCode()}
	if strings.Contains(got.out+got.err, caddytest.Secret) {
		t.Errorf("%q prints the secret: %s%s", args, got.out, got.err)
	}
	return got
}

// says fails the test unless the command ended with code and printed all texts.
func (r ran) says(t *testing.T, code int, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(r.out+r.err, text) {
			t.Errorf("it does not say %q:\n%s%s", text, r.out, r.err)
		}
	}
	if r.code != code {
		t.Errorf("it ended with %d, want %d:\n%s%s", r.code, code, r.out, r.err)
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEachCommandHasHelpWithExamples(t *testing.T) {
	for _, command := range []string{"sign", "send", "explain", "check", "page", "lookup", "forget", "report",
		"inbox", "inbox list", "inbox show", "inbox retry", "inbox discard", "inbox pause", "inbox resume", "inbox export"} {
		words := strings.Fields(command)
		run(t, "", append(words, "--help")...).says(t, 0, "Examples:", "caddy buzzbip "+command, "Flags:")
		run(t, "", words[:len(words)-1]...).says(t, 0, "\n  "+words[len(words)-1]+" ")
	}
}

func TestEachHelpEndsWithALinkToThisProject(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"sign", "--help"}, {"send", "-h"}, {"explain", "--help"}, {"check", "--help"}, {"page", "--help"}, {"lookup", "--help"}, {"forget", "--help"}, {"inbox", "--help"}, {"inbox", "list", "--help"}} {
		got := run(t, "", args...)
		if !strings.HasSuffix(got.out, "\nhttps://github.com/buzzbip/caddy-webhook#tools\n") || strings.Contains(got.out, "caddyserver.com") || got.code != 0 {
			t.Errorf("%q: %+v", args, got)
		}
	}
	out, err := exec.Command(caddytest.Binary, "help", "buzzbip", "send").CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "\nhttps://github.com/buzzbip/caddy-webhook#tools\n") {
		t.Errorf("caddy help buzzbip send: %v\n%s", err, out)
	}
}

func TestWrongCommandLinesGetTheUsage(t *testing.T) {
	run(t, "", "inbox", "pause", "x").says(t, 1, "Usage: caddy buzzbip inbox pause [flags]")
	run(t, "", "inbox", "list", "--sate", "dead").says(t, 1, "unknown flag: --sate\nUsage: caddy buzzbip inbox list [<number|id>...]")
	run(t, "", "nothing").says(t, 1, `unknown command "nothing"`, "caddy buzzbip --help")
	run(t, "", "send").says(t, 1, "accepts 1 arg(s), received 0\nUsage: caddy buzzbip send <url> [flags]\nMore:  caddy buzzbip send --help\n")
	run(t, "", "lookup").says(t, 1, "Usage: caddy buzzbip lookup <id>")
	run(t, "", "sign", "a", "b").says(t, 1, "Usage: caddy buzzbip sign [<body-file>]")
	run(t, "", "inbox", "list", "--status", "5xx").says(t, 1, "Error: --status takes numbers, not \"5xx\"\nUsage: ")
	run(t, "", "inbox", "list", "--after", "evt_1").says(t, 1, "--after takes a number, not \"evt_1\"\n")
	run(t, "", "inbox", "retry", "--rate", "fast").says(t, 1, "--rate takes a number, not \"fast\"\n")
	run(t, "", "send", "https://localhost", "--timeout", "5").says(t, 1, "--timeout takes a duration such as 30s, not \"5\"\n")
	run(t, "", "send", "https://localhost", "--secret", "x").says(t, 1, "unknown flag: --secret: give the secret in BUZZBIP_SECRET, or its file with --secret-file\n")
	run(t, "", "check", "https://localhost", "--quick").says(t, 1, "unknown flag: --quick\nUsage: caddy buzzbip check <url>")
}

func TestCommandsSayAtATerminalThatTheyWaitForInput(t *testing.T) {
	for args, want := range map[string]string{
		"sign":                           "reading the body from standard input; Ctrl-D ends it",
		"explain --signature x":          "reading the body from standard input; Ctrl-D ends it",
		"sign /dev/null --secret-file -": "reading the secret from standard input; Ctrl-D ends it",
	} {
		cmd := exec.Command("script", "-qec", caddytest.Binary+" buzzbip "+args, "/dev/null")
		cmd.Env = append(os.Environ(), "BUZZBIP_SECRET="+caddytest.Secret)
		cmd.Stdin = strings.NewReader("text\n\x04") // Ctrl-D
		if out, _ := cmd.CombinedOutput(); !strings.Contains(string(out), want) {
			t.Errorf("%s: %q", args, out)
		}
	}
	if got := run(t, "{}", "sign"); got.err != "" {
		t.Errorf("from a pipe: %q", got.err)
	}
}

func TestExamplesKeepSecretsOutOfTheHistoryOfTheShell(t *testing.T) {
	for _, command := range []string{"sign", "send", "explain", "check"} {
		got := run(t, "", command, "--help")
		got.says(t, 0, "Examples:")
		if strings.Contains(got.out, "SECRET=") {
			t.Errorf("%s: %s", command, got.out)
		}
	}
}

// endpoint is a Caddy with the plugin in front of a backend that says hello.
func endpoint(t *testing.T, options string) (url string, c *caddytest.Caddy) {
	b := caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Mode") == "fail" {
			w.WriteHeader(http.StatusInternalServerError)
		}
		fmt.Fprintln(w, "hello")
	})
	address := caddytest.FreeAddress(t)
	c = caddytest.Start(t, "", "", fmt.Sprintf("http://%s {\n\tbuzzbip_webhook %s {\n%s\n}\n\treverse_proxy %s\n}", address, caddytest.Secret, options, b.Address()))
	return "http://" + address, c
}

func TestCommandsCheckTheirSecretAsCaddyDoes(t *testing.T) {
	run(t, "{}", "sign", "--secret-file", write(t, "\ufeff"+caddytest.Secret)).says(t, 1, "starts with a byte order mark")
	run(t, "{}", "sign", "--secret-file", write(t, "{env.BUZZBIP_SECRET")).says(t, 0, "warning:", "was not expanded")
}
