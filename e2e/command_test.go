package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// ran is what a user sees of a command.
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
		t.Errorf("%q tells the secret: %s%s", args, got.out, got.err)
	}
	return got
}

// says fails the test unless the command ended with a code and all texts are in
// what it printed.
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
	for _, command := range []string{"sign", "send", "explain", "check", "page", "lookup", "forget"} {
		got := run(t, "", command, "--help")
		got.says(t, 0, "Examples:", "caddy buzzbip "+command, "Flags:")
		run(t, "").says(t, 0, "\n  "+command+" ")
	}
}

func TestEachHelpEndsWithALinkToThisProject(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"sign", "--help"}, {"send", "-h"}, {"explain", "--help"}, {"check", "--help"}, {"page", "--help"}, {"lookup", "--help"}, {"forget", "--help"}} {
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
	run(t, "", "nothing").says(t, 1, `unknown command "nothing"`, "caddy buzzbip --help")
	run(t, "", "send").says(t, 1, "accepts 1 arg(s), received 0\nUsage: caddy buzzbip send <url> [flags]\nMore:  caddy buzzbip send --help\n")
	run(t, "", "lookup").says(t, 1, "Usage: caddy buzzbip lookup <id>")
	run(t, "", "sign", "a", "b").says(t, 1, "Usage: caddy buzzbip sign [<body-file>]")
	run(t, "", "check", "https://localhost", "--quick").says(t, 1, "unknown flag: --quick\nUsage: caddy buzzbip check <url>")
}

func TestCommandsAtATerminalSayThatTheyReadIt(t *testing.T) {
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

func TestExamplesKeepSecretsOutOfTheHistoryOfTheShell(t *testing.T) {
	for _, command := range []string{"sign", "send", "explain", "check"} {
		got := run(t, "", command, "--help")
		got.says(t, 0, "Examples:")
		if strings.Contains(got.out, "SECRET=") {
			t.Errorf("%s: %s", command, got.out)
		}
	}
}

func TestExplain(t *testing.T) {
	body := caddytest.NewEvent()
	file := write(t, body)
	run(t, "", "explain", file, "--signature", caddytest.Sign(body)).says(t, 0, "accepted", "message.received evt_", "BUZZBIP_SECRET")
	run(t, body, "explain", "--signature", caddytest.SignWith(caddytest.Secret+"\n", body)).
		says(t, 1, "rejected: signature_mismatch (401 Unauthorized)", "likely cause:", "newline or a blank at its end")
	runWith(t, []string{"OLD=" + caddytest.Secret}, "", "explain", file, "--signature", caddytest.Sign(body), "--secret-env", "OLD", "--secret-file", write(t, "another")).
		says(t, 0, "under the secret from OLD")
	run(t, "", "explain", file).says(t, 1, "signature_missing", "say so with --signature")
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

// Other commands may reject such secrets.
func TestExplainReadsSecretsThatCannotBeOne(t *testing.T) {
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
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		pipe:                                    "is not a regular file: give the secret in one, or on standard input",
		t.TempDir():                             "is not a regular file",
		"/does/not/exist":                       "no such file",
		write(t, " \n"):                         "is empty",
		write(t, strings.Repeat("x", 64<<10+1)): "is too large for a secret",
	} {
		run(t, "", "explain", file, "--signature", caddytest.Sign(body), "--secret-file", name).says(t, 1, "the secret: ", want)
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

func TestSend(t *testing.T) {
	url, _ := endpoint(t, "")
	run(t, "", "send", url).says(t, 0, "sent     message.received evt_test_", "answered 200 OK in ", "\nhello\n")
	fixed := []string{"send", url, "--id", "evt_send_1", "--type", "contact.created", "--data", `{"a":1}`, "--created-at", "2026-06-01T14:32:00Z"}
	run(t, "", fixed...).says(t, 0, "contact.created evt_send_1", "200 OK in")
	run(t, "", fixed...).says(t, 0, "200 OK (duplicate)")
	run(t, "", "send", url, "--body-file", write(t, `{"id":"evt_send_1","type":"contact.created","createdAt":"2026-06-01T14:32:00Z","data":{"a":1}}`)).says(t, 0, "200 OK (duplicate)")
	run(t, caddytest.NewEvent(), "send", url, "--body-file", "-").says(t, 0, "hello")
	runWith(t, []string{"BUZZBIP_SECRET=another"}, "", "send", url).says(t, 1, "401 Unauthorized", "BuzzBip would send the event again")
	run(t, "", "send", "http://"+caddytest.FreeAddress(t)).says(t, 1, "no answer", "connection refused")
	run(t, "", "send", "hooks.example.com").says(t, 1, "is not a URL")
	run(t, "", "send", url, "--data", "{").says(t, 1, "--data is not valid JSON")
	run(t, "", "send", url, "--created-at", "now").says(t, 1, "is not a time such as")
	run(t, "", "send", url, "--body-file", "-", "--id", "x").says(t, 1, "--id is for new events")

	redirect := httptest.NewServer(http.RedirectHandler(url, http.StatusPermanentRedirect))
	defer redirect.Close()
	run(t, "", "send", redirect.URL).says(t, 1, "308 Permanent Redirect")
	hangs := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hangs }))
	defer slow.Close()
	defer close(hangs)
	run(t, "", "send", slow.URL, "--timeout", "50ms").says(t, 1, "no answer within 50ms")
}

// An endpoint that goes wrong in every usual way.
func TestSendSaysWhatIsLikelyWrong(t *testing.T) {
	ends := make(chan struct{})
	b := caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hangs":
			<-ends
		case "/fails":
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	t.Cleanup(func() { close(ends) })
	plain, unrouted, secure := caddytest.FreeAddress(t), caddytest.FreeAddress(t), caddytest.FreeAddress(t)
	_, port, _ := net.SplitHostPort(secure)
	site := func(path, options, handler string) string {
		return fmt.Sprintf("\thandle %[1]s {\n\t\tbuzzbip_webhook %[2]s {\n\t\t\tscope %[1]s\n%[3]s\n\t\t}\n\t\t%[4]s\n\t}\n", path, caddytest.Secret, options, handler)
	}
	proxy := "reverse_proxy " + b.Address()
	caddytest.Start(t, "", "auto_https disable_redirects\nlocal_certs", "http://"+plain+" {\n"+
		"\tredir /moved /ok 308\n\tredir /elsewhere https://hooks.example.com/ok 302\n"+
		site("/ok", "", proxy)+
		site("/fails", "", proxy)+
		site("/hangs", "duplicate_wait 50ms", proxy)+
		site("/late", "delivery_timeout 50ms", "rewrite * /hangs\n"+proxy)+
		site("/down", "", "reverse_proxy "+caddytest.FreeAddress(t))+
		site("/full", "store memory {\ncapacity 1\nwhen_full refuse\n}", proxy)+
		site("/small", "max_body_size 10B", proxy)+
		site("/fresh", "max_age 1h", proxy)+
		"\trespond /readonly 405\n\trespond 404\n}\n"+
		"http://"+unrouted+" {\n"+site("/ok", "", proxy)+site("/nobody", "", "")+"}\n"+
		"https://localhost:"+port+" {\n"+site("/ok", "read_timeout 300ms", proxy)+"\trespond 404\n}\n")
	run(t, "", "send", "http://"+plain+"/full").says(t, 0)
	slow := caddytest.NewEvent()
	go caddytest.Post(t.Context(), "http://"+plain+"/hangs", slow)
	caddytest.WaitFor(t, "the backend to get the event", func() bool { return b.Count(slow) == 1 })

	for to, want := range map[string]struct {
		args []string
		hint []string
	}{
		"/moved":     {nil, []string{"308 Permanent Redirect", "BuzzBip does not follow redirects", "leads to, http://" + plain + "/ok"}},
		"/elsewhere": {nil, []string{"302 Found", "leads to, https://hooks.example.com/ok"}},
		"/fails":     {nil, []string{"500 Internal Server Error", "the backend failed: see its log"}},
		"/hangs":     {[]string{"--body-file", write(t, slow)}, []string{"503 Service Unavailable (in_flight)", "this event is still being delivered; try again after "}},
		"/late":      {nil, []string{"504 Gateway Timeout", "longer than delivery_timeout"}},
		"/down":      {nil, []string{"502 Bad Gateway", "the backend is down"}},
		"/full":      {nil, []string{"503 Service Unavailable in ", "BuzzBip would send the event again", "the store does not answer or is full", "; try again after "}},
		"/small":     {nil, []string{"413 Request Entity Too Large", "larger than max_body_size"}},
		"/fresh":     {[]string{"--created-at", "2026-06-01T14:32:00Z"}, []string{"403 Forbidden", "older than max_age"}},
		"/readonly":  {nil, []string{"405 Method Not Allowed", "takes no POST"}},
		"/other":     {nil, []string{"404 Not Found", "compare its host and path"}},
		"/ok":        {[]string{"--secret-file", write(t, "another secret")}, []string{"401 Unauthorized", `"caddy buzzbip explain"`}},
	} {
		got := run(t, "", append([]string{"send", "http://" + plain + to}, want.args...)...)
		got.says(t, 1, append(want.hint, "note: BuzzBip does not deliver to plain HTTP")...)
	}
	run(t, "", "send", "http://"+unrouted+"/nobody").says(t, 1, "502 Bad Gateway", "no handler after buzzbip_webhook answers")
	run(t, `{"id":"evt_1"}`, "send", "http://"+plain+"/ok", "--body-file", "-").says(t, 1, "400 Bad Request", "the envelope of the event is invalid")
	run(t, "", "send", "http://localhost:"+port+"/ok").says(t, 1, "400 Bad Request", "this port serves HTTPS: use https://")
	run(t, "", "send", "https://"+plain+"/ok").says(t, 1, "this port serves plain HTTP")
	run(t, "", "send", "http://"+caddytest.FreeAddress(t)).says(t, 1, "connection refused", "is Caddy running")
	run(t, "", "send", "https://127.0.0.1:"+port+"/ok", "--insecure").says(t, 1, "no certificate for this host")

	const note = "Caddy answers 200 with no content where no route matches"
	run(t, "", "send", "http://"+unrouted+"/other").says(t, 0, "200 OK", note)
	if got := run(t, "", "send", "http://"+unrouted+"/ok"); got.code != 0 || strings.Contains(got.err, note) {
		t.Errorf("a backend's 200 without content: %+v", got)
	}
	caddytest.WaitFor(t, "the certificate", func() bool { // or that there is none could be the mistake
		return run(t, "", "send", "https://localhost:"+port+"/ok", "--insecure").code == 0
	})
	got := run(t, "", "send", "https://localhost:"+port+"/ok", "--insecure")
	if got.says(t, 0, "200 OK"); got.err != "" {
		t.Errorf("over HTTPS it notes %q", got.err)
	}

	// check has the same hints
	got = run(t, "", "check", "http://"+plain+"/down", "--insecure")
	got.says(t, 1, "warn  https", "FAIL  accepted", "seen: 502 Bad Gateway\n                    hint: the backend is down", "nothing else was checked")
	run(t, "", "check", "http://"+caddytest.FreeAddress(t), "--insecure").says(t, 1, "hint: nothing listens there")
	run(t, "", "check", "http://"+unrouted+"/other", "--insecure", "--slow", "1s").
		says(t, 1, "FAIL  unsigned", "hint: "+note+": is there a buzzbip_webhook for this URL?", "seen: no answer within 1s\n")

	run(t, "", "check", "https://localhost:"+port+"/ok").
		says(t, 1, "FAIL  https", "unknown authority", "hint: BuzzBip would not accept this certificate; for tests, --insecure does", "nothing else was checked\n", "1 of 1 checks failed")
	got = run(t, "", "check", "https://localhost:"+port+"/ok", "--insecure")
	got.says(t, 0, "warn  https", "a certificate that BuzzBip would not accept: ", "unknown authority", "no check failed, but BuzzBip itself would not deliver")
	if n := strings.Count(got.out, "warn"); n != 2 {
		t.Errorf("there are %d warnings:\n%s", n-1, got.out)
	}
}

func TestSendSaysSentOnlyIfItWas(t *testing.T) {
	hangs := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hangs }))
	defer slow.Close()
	defer close(hangs)
	run(t, "", "send", slow.URL, "--timeout", "2s").says(t, 1, "sent     message.received evt_test_", "no answer within 2s")

	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	defer secure.Close()
	for url, unsent := range map[string]struct{ timeout, says string }{
		"http://" + caddytest.FreeAddress(t): {"10s", "connection refused"},
		"https://" + mute.Addr().String():    {"300ms", "no answer within 300ms"}, // to the handshake
		secure.URL:                           {"10s", "unknown authority"},
	} {
		got := run(t, "", "send", url, "--timeout", unsent.timeout)
		got.says(t, 1, unsent.says)
		if got.out != "" {
			t.Errorf("%s: it prints %q", url, got.out)
		}
		if hint := strings.Contains(got.err, "--insecure"); hint != (url == secure.URL) {
			t.Errorf("%s: that it names --insecure is %t", url, hint)
		}
	}
}

func TestLookupAndForget(t *testing.T) {
	url, c := endpoint(t, "")
	at := []string{"--address", c.Admin}
	lookup := func(args ...string) ran {
		return run(t, "", append(append([]string{"lookup", "evt/lookup 1"}, at...), args...)...)
	}
	lookup().says(t, 0, "SCOPE", "secret:1  memory  unseen  -")
	run(t, "", "send", url, "--id", "evt/lookup 1").says(t, 0)
	lookup().says(t, 0, "secret:1  memory  delivered  "+time.Now().UTC().Add(24*time.Hour).Format("2006-01-02T"))
	lookup("--json").says(t, 0, `{"id":"evt/lookup 1","scopes":[{"scope":"secret:1","store":"memory","state":"delivered","expires":"`)
	forget := append([]string{"forget", "evt/lookup 1"}, at...)
	run(t, "", forget...).says(t, 0, "secret:1  memory  yes")
	run(t, "", forget...).says(t, 0, "secret:1  memory  no: it was not remembered")
	lookup().says(t, 0, "unseen")
	run(t, "", "lookup", "evt_1", "--config", c.Config, "--adapter", "caddyfile").says(t, 0, "unseen")
	run(t, "", "lookup", "evt_1", "--address", caddytest.FreeAddress(t)).says(t, 1, "connection refused", "Is Caddy running", "--address")
	run(t, "", "lookup").says(t, 1, "accepts 1 arg")
}

func TestLookupAndForgetTakeAnyID(t *testing.T) {
	url, c := endpoint(t, "")
	for _, id := range []string{".", "..", "../scopes", "%2E"} {
		run(t, "", "send", url, "--id", id).says(t, 0)
		run(t, "", "lookup", "--address", c.Admin, "--", id).says(t, 0, "delivered")
		run(t, "", "forget", "--address", c.Admin, "--", id).says(t, 0, "yes")
	}
}

func TestLookupAndForgetSayWhatTheyKnowWhileAStoreIsDown(t *testing.T) {
	site := caddytest.FreeAddress(t)
	c := caddytest.Start(t, "", "", fmt.Sprintf(`http://%s {
	handle /down {
		buzzbip_webhook %[2]s {
			scope down
			store redis redis://%[3]s
		}
	}
	handle {
		buzzbip_webhook %[2]s {
			scope up
		}
		respond 200
	}
}`, site, caddytest.Secret, caddytest.FreeAddress(t)))
	run(t, "", "send", "http://"+site, "--id", "evt_1").says(t, 0)
	for _, want := range []struct {
		command string
		table   []string
		json    string // of what is not known
	}{
		{"lookup", []string{"down   redis   unknown", "up     memory  delivered  2"}, `"state":"unknown"`},
		{"forget", []string{"down   redis   unknown", "up     memory  yes"}, `{"scope":"down","store":"redis"}`},
	} {
		for _, asJSON := range []bool{false, true} {
			args, texts := []string{want.command, "evt_1", "--address", c.Admin}, want.table
			if asJSON {
				args, texts = append(args, "--json"), []string{`"scope":"up"`, want.json}
			}
			got := run(t, "", args...)
			for _, text := range texts {
				if !strings.Contains(got.out, text) {
					t.Errorf("%q does not print %q: %s", args, text, got.out)
				}
			}
			if got.code != 1 || !strings.HasPrefix(got.err, "Error: store redis: ") || strings.Contains(got.err, "Is Caddy running") || strings.Contains(got.err, "scopes") {
				t.Errorf("%q ends with %d: %s", args, got.code, got.err)
			}
		}
	}
}

func TestErrorsOfTheAdminEndpointAreShownAsTheyAre(t *testing.T) {
	c := caddytest.Start(t, "", "", "http://"+caddytest.FreeAddress(t))
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	empty := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer empty.Close()
	addressOf := func(s *httptest.Server) string { return s.Listener.Addr().String() }
	for _, wrong := range []struct{ command, id, address, says string }{
		{"lookup", "evt_1", c.Admin, "the active configuration has no buzzbip_webhook"},
		{"forget", "evt_1", c.Admin, "the active configuration has no buzzbip_webhook"},
		{"lookup", "", c.Admin, "give the ID of an event"},
		{"lookup", "evt_1", addressOf(other), addressOf(other) + " is not the admin endpoint of a Caddy with buzzbip_webhook"},
		{"lookup", "evt_1", addressOf(empty), addressOf(empty) + " is not the admin endpoint of a Caddy with buzzbip_webhook"},
		{"page", "", addressOf(other), addressOf(other) + " is not the admin endpoint of a Caddy with buzzbip_webhook"},
	} {
		args := []string{wrong.command, wrong.id, "--address", wrong.address}
		if wrong.command == "page" {
			args = slices.Delete(args, 1, 2)
		}
		if got := run(t, "", args...); got.code != 1 || got.out != "" || !strings.HasPrefix(got.err, "Error: "+wrong.says) || strings.Contains(got.err, "Is Caddy running") {
			t.Errorf("%q: %+v", args, got)
		}
	}
	run(t, "", "lookup", "evt_1", "--address", "localhost:1-2").says(t, 1, "is not an address of an admin endpoint")
}

// The page itself is tested in a browser.
func TestPageIsServedToWhoKnowsItsAddressAndNothingElseIs(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	for name, admin := range map[string]string{"an address": "", "a socket": "unix/" + socket, "a socket with permissions": "unix/" + socket + "|0600"} {
		t.Run(name, func(t *testing.T) {
			_, c := endpoint(t, "")
			if admin == "" {
				admin = c.Admin
			} else {
				text, err := os.ReadFile(c.Config)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(c.Config, bytes.Replace(text, []byte("admin "+c.Admin), []byte("admin "+admin), 1), 0o600); err != nil {
					t.Fatal(err)
				}
				c.Reload()
			}
			page := caddytest.ServePage(t, "--config", c.Config, "--adapter", "caddyfile")
			get := func(method, url string) (int, string) {
				t.Helper()
				r, err := http.NewRequest(method, url, nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Sec-Fetch-Mode", "navigate") // as browsers do
				res, err := http.DefaultTransport.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				body, err := io.ReadAll(res.Body)
				if err != nil {
					t.Fatal(err)
				}
				return res.StatusCode, string(body)
			}
			if status, body := get(http.MethodGet, page); status != http.StatusOK || !strings.Contains(body, "<title>BuzzBip webhooks</title>") {
				t.Errorf("the page: %d %s", status, body)
			}
			if status, body := get(http.MethodGet, page+"events/evt%2F1"); status != http.StatusOK || !strings.Contains(body, `"id":"evt/1"`) {
				t.Errorf("an event: %d %s", status, body)
			}
			if status, _ := get(http.MethodPost, page+"scopes"); status != http.StatusMethodNotAllowed {
				t.Errorf("a status of the admin endpoint became %d", status)
			}
			origin := page[:strings.LastIndex(strings.TrimSuffix(page, "/"), "/")]
			for _, url := range []string{origin + "/", origin + "/buzzbip_webhook/", origin + "/config/", page + "../config/", page + "..%2Fconfig/", page + "..%2f..%2fconfig/", page + "/config/"} {
				if status, body := get(http.MethodGet, url); status == http.StatusOK || strings.Contains(body, "apps") {
					t.Errorf("%s: %d %s", url, status, body)
				}
			}
		})
	}
	run(t, "", "page", "--address", caddytest.FreeAddress(t)).says(t, 1, "connection refused", "Is Caddy running")
}

// checkLine is a line of a report.
var checkLine = regexp.MustCompile(`(?m)^(ok|warn|FAIL) +(.{12}) +`)

func failures(out string) (names []string, all int) {
	for _, line := range checkLine.FindAllStringSubmatch(out, -1) {
		all++
		if line[1] == "FAIL" {
			names = append(names, strings.TrimSpace(line[2]))
		}
	}
	return names, all
}

const numberOfChecks = 13

func TestCheckFindsNothingWrongWithThePlugin(t *testing.T) {
	url, c := endpoint(t, "read_timeout 300ms")
	got := run(t, "", "check", url, "--insecure", "--slow", "20s")
	failed, all := failures(got.out)
	if got.code != 0 || failed != nil || all != numberOfChecks || got.err != "" {
		t.Errorf("%d checks, %q failed:\n%s%s", all, failed, got.out, got.err)
	}
	got.says(t, 0, "warn  https         HTTPS with a valid certificate\n                    seen: plain HTTP, to which BuzzBip does not deliver\nok    accepted",
		"200 OK (duplicate)", "7 times 200 OK (duplicate)", "408 Request Timeout after", "413 ")
	if strings.Contains(got.out, "\x1b") {
		t.Error("there are colors although it is no terminal")
	}
	if n := c.Metric(`deliveries_total{event_type="message.received",result="delivered"}`); n != 3 {
		t.Errorf("%v events were delivered, want 3", n)
	}
	// without --insecure, plain HTTP is what fails, first
	got = run(t, "", "check", url)
	if failed, all := failures(got.out); got.code != 1 || all != 1 || len(failed) != 1 || failed[0] != "https" {
		t.Errorf("plain HTTP: %+v", got)
	}
	got.says(t, 1, "hint: BuzzBip needs HTTPS; for tests, --insecure does without")
}

func TestCheckFindsWhatReceiversDoWrong(t *testing.T) {
	verified := func(r *http.Request, body []byte) bool {
		return r.Method == http.MethodPost && r.Header.Get("X-BuzzBip-Signature") == caddytest.Sign(string(body))
	}
	var mu sync.Mutex
	seen := make(map[string]bool)
	again := func(body []byte) bool {
		mu.Lock()
		defer mu.Unlock()
		defer func() { seen[string(body)] = true }()
		return seen[string(body)]
	}
	for name, receiver := range map[string]struct {
		serve http.HandlerFunc
		fails []string
	}{
		"takes everything": {
			func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) },
			[]string{"unsigned", "malformed", "forged", "tampered", "wrong method", "oversize", "slow body"},
		},
		"takes nothing": {
			func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
			[]string{"accepted"},
		},
		"redirects": {
			func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
			[]string{"accepted"},
		},
		"rejects what it has seen": {
			func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
				if err != nil {
					w.WriteHeader(http.StatusRequestEntityTooLarge)
				} else if !verified(r, body) {
					w.WriteHeader(http.StatusUnauthorized)
				} else if again(body) {
					w.WriteHeader(http.StatusConflict)
				}
			},
			[]string{"replayed", "concurrent", "retried", "slow body"},
		},
		"verifies the header only": {
			func(w http.ResponseWriter, r *http.Request) {
				if len(r.Header.Get("X-BuzzBip-Signature")) != 64 {
					w.WriteHeader(http.StatusUnauthorized)
				}
				io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, 1<<20))
			},
			[]string{"forged", "tampered", "wrong method", "oversize", "slow body"},
		},
		"fails instead of rejecting": {
			func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
				if err != nil || !verified(r, body) {
					w.WriteHeader(http.StatusInternalServerError)
				}
			},
			[]string{"unsigned", "malformed", "forged", "tampered", "wrong method", "oversize", "slow body"},
		},
		"knows its types": {
			func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
				if err != nil || !verified(r, body) || !bytes.Contains(body, []byte("message.received")) {
					w.WriteHeader(http.StatusBadRequest)
				}
			},
			[]string{"unknown type", "slow body"},
		},
		"delivers twice": {
			func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
				if err != nil || !verified(r, body) {
					w.WriteHeader(http.StatusBadRequest)
				} else if again(body) && again(append(body, ' ')) {
					w.Header().Set("X-BuzzBip-Result", "duplicate")
				}
			},
			[]string{"concurrent", "slow body"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(receiver.serve)
			t.Cleanup(server.Close)
			got := run(t, "", "check", server.URL, "--insecure", "--slow", "1s")
			if failed, _ := failures(got.out); !slices.Equal(failed, receiver.fails) || got.code != 1 {
				t.Errorf("%q failed, want %q:\n%s%s", failed, receiver.fails, got.out, got.err)
			}
		})
	}
}

func TestCheckAsJSON(t *testing.T) {
	url, _ := endpoint(t, "read_timeout 300ms")
	var report struct {
		URL              string
		Failed, Warnings int
		Checks           []struct {
			Name, Expected, Seen, Hint string
			OK, Warning                bool
			Seconds                    float64
		}
	}
	got := run(t, "", "check", url, "--insecure", "--json")
	if err := json.Unmarshal([]byte(got.out), &report); err != nil || got.code != 0 || report.URL != url || report.Failed != 0 || report.Warnings != 1 || len(report.Checks) != numberOfChecks {
		t.Fatalf("%v: %+v", err, got)
	}
	for _, c := range report.Checks {
		if c.Name == "" || c.Expected == "" || c.Seen == "" || !c.OK || c.Seconds <= 0 || c.Warning != (c.Name == "https") || c.Hint != "" {
			t.Errorf("a check is %+v", c)
		}
	}
	got = runWith(t, []string{"BUZZBIP_SECRET=another"}, "", "check", url, "--insecure", "--json")
	if err := json.Unmarshal([]byte(got.out), &report); err != nil || got.code != 1 || report.Failed != 1 || report.Checks[1].OK || !strings.Contains(report.Checks[1].Hint, "caddy buzzbip explain") {
		t.Errorf("%v: %+v", err, got)
	}
}

// onTerminal returns a command that checks an endpoint on a terminal, which is
// that of script, of util-linux.
func onTerminal(url string, env ...string) *exec.Cmd {
	cmd := exec.Command("script", "-qec", caddytest.Binary+" buzzbip check "+url+" --insecure", "/dev/null")
	cmd.Env = append(append(os.Environ(), "BUZZBIP_SECRET="+caddytest.Secret), env...)
	cmd.Stdin = strings.NewReader("")
	return cmd
}

func TestCheckOnATerminalHasColors(t *testing.T) {
	url, _ := endpoint(t, "read_timeout 300ms")
	for _, noColor := range []string{"", "1"} {
		out, err := onTerminal(url, "NO_COLOR="+noColor).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, mark := range []string{"\x1b[32mok", "\x1b[33mwarn"} {
			if colored := bytes.Contains(out, []byte(mark)); colored != (noColor == "") {
				t.Errorf("with NO_COLOR=%q, %q is there: %t", noColor, mark, colored)
			}
		}
	}
}

func TestCheckOnATerminalSaysWhatItWaitsFor(t *testing.T) {
	said := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			<-said
			w.WriteHeader(http.StatusInternalServerError) // the end of the checks
		}
	}))
	defer server.Close()
	cmd := onTerminal(server.URL)
	log := caddytest.Capture(t, cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	caddytest.WaitFor(t, "the check to end or to say that it waits", func() bool {
		return len(ended) > 0 || strings.Contains(log.String(), "\r....  accepted      waiting, 1s")
	})
	close(said)
	<-ended
	if text := log.String(); !strings.Contains(text, "waiting") || !strings.Contains(text, "FAIL") {
		t.Errorf("it printed %q", text)
	}
}

func TestCommandsCheckTheirSecretAsCaddyDoes(t *testing.T) {
	run(t, "{}", "sign", "--secret-file", write(t, "\ufeff"+caddytest.Secret)).says(t, 1, "starts with a byte order mark")
	run(t, "{}", "sign", "--secret-file", write(t, "{env.BUZZBIP_SECRET")).says(t, 0, "warning:", "was not expanded")
}
