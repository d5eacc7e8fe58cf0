package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

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
	if n := c.Metric(`requests_total{event_type="message.received",result="delivered"}`); n != 3 {
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
		"stores twice": {
			func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
				if err != nil || !verified(r, body) {
					w.WriteHeader(http.StatusBadRequest)
				} else {
					w.Header().Set("X-BuzzBip-Result", "stored")
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

func TestCheckTakesStoredForAnAcknowledgment(t *testing.T) {
	url, _ := storingEndpoint(t, "", "read_timeout 300ms")
	got := run(t, "", "check", url, "--insecure", "--slow", "20s")
	if failed, all := failures(got.out); failed != nil || all != numberOfChecks {
		t.Errorf("%d checks, %q failed", all, failed)
	}
	got.says(t, 0, "ok    accepted      a signed event: 2xx within 10s\n                    seen: 200 OK (stored)\n                    hint: "+storedNote,
		"seen: 200 OK (duplicate)", "\nsome events are in the inbox, which delivers them later: see the hints\n")
	if n := strings.Count(got.out, "hint: "+storedNote); n < 3 {
		t.Errorf("%d checks say what stored means", n)
	}
}

func TestCheckHasTheHintsOfSend(t *testing.T) {
	wrong := newWrongEndpoint(t)
	got := run(t, "", "check", wrong.plain+"/down", "--insecure")
	got.says(t, 1, "warn  https", "FAIL  accepted", "seen: 502 Bad Gateway\n                    hint: the backend is down", "nothing else was checked")
	run(t, "", "check", "http://"+caddytest.FreeAddress(t), "--insecure").says(t, 1, "hint: nothing listens there")
	run(t, "", "check", wrong.unrouted+"/other", "--insecure", "--slow", "1s").
		says(t, 1, "FAIL  unsigned", "hint: "+unroutedNote+": is there a buzzbip_webhook for this URL?", "seen: no answer within 1s\n")

	wrong.waitForCertificate(t)
	run(t, "", "check", "https://localhost:"+wrong.port+"/ok").
		says(t, 1, "FAIL  https", "unknown authority", "hint: BuzzBip would not accept this certificate; for tests, --insecure does", "nothing else was checked\n", "1 of 1 checks failed")
	got = run(t, "", "check", "https://localhost:"+wrong.port+"/ok", "--insecure")
	got.says(t, 0, "warn  https", "a certificate that BuzzBip would not accept: ", "unknown authority", "no check failed, but BuzzBip itself would not deliver")
	if n := strings.Count(got.out, "warn"); n != 2 {
		t.Errorf("there are %d warnings:\n%s", n-1, got.out)
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

// onTerminal returns a command that checks an endpoint on a terminal, which
// script of util-linux provides.
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
