package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// The secrets of tour.
const (
	oldSecret   = "old-secret-of-the-same-webhook-32"
	otherSecret = "other-secret-of-another-webhook-3"
	redisSecret = "redis-password-that-nobody-sees"
)

// tour is a Caddy that has been through every result and every reason once, and
// through two of some.
type tour struct {
	*caddytest.Caddy
	t       *testing.T
	address string
	backend *caddytest.Backend
	sites   string
	forged  []string // expected signatures that the senders did not know
	answers strings.Builder
}

// sends posts a body with the signature of a secret, and expects an answer.
func (tr *tour) sends(path, secret, body string, status int) {
	tr.t.Helper()
	tr.expect(tr.request(http.MethodPost, path, caddytest.SignWith(secret, body), body), status)
}

func (tr *tour) request(method, path, signature, body string) *http.Request {
	r, err := http.NewRequest(method, "http://"+tr.address+path, strings.NewReader(body))
	if err != nil {
		tr.t.Fatal(err)
	}
	if signature != "" {
		r.Header.Set("X-BuzzBip-Signature", signature)
	}
	return r
}

func (tr *tour) expect(r *http.Request, status int) {
	tr.t.Helper()
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		tr.t.Fatal(err)
	}
	defer res.Body.Close()
	_ = res.Header.Write(&tr.answers)
	if _, err := io.Copy(&tr.answers, res.Body); err != nil {
		tr.t.Fatal(err)
	}
	if res.StatusCode != status {
		tr.t.Fatalf("%s %s was answered %d %s, want %d", r.Method, r.URL, res.StatusCode, res.Header.Get("X-BuzzBip-Result"), status)
	}
}

// takeTour makes requests of all kinds. global are options for Caddy.
func takeTour(t *testing.T, global string) *tour {
	t.Helper()
	release := make(chan struct{})
	var arrived = make(chan struct{}, 100)
	b := caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		switch r.Header.Get("X-Mode") {
		case "fail":
			w.WriteHeader(http.StatusInternalServerError)
		case "slow":
			<-release
		}
	})
	secretFile := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secretFile, []byte(caddytest.Secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tr := &tour{t: t, address: caddytest.FreeAddress(t), backend: b}
	tr.sites = fmt.Sprintf(`
http://%[1]s {
	log
	handle /main {
		buzzbip_webhook {
			secret_file %[2]s main
			secret {env.OLD_SECRET} old
			events message.* shop.*
			max_age 1h
			max_body_size 2KiB
			read_timeout 200ms
			answer_within 50ms
		}
		reverse_proxy %[3]s
	}
	handle /full {
		buzzbip_webhook {
			secret {env.OTHER_SECRET} other
			store memory {
				capacity 1
				when_full refuse
			}
		}
		reverse_proxy %[3]s
	}
	handle /busy {
		buzzbip_webhook {
			secret {env.OTHER_SECRET} other
			dedupe off
			max_in_flight 1KiB
			answer_within 50ms
		}
		reverse_proxy %[3]s
	}
	handle /nowhere {
		buzzbip_webhook {
			secret {env.OTHER_SECRET} other
			dedupe off
		}
	}
	handle /down {
		buzzbip_webhook {
			secret {env.OTHER_SECRET} other
			store redis {env.REDIS_URL} {
				timeout 100ms
				when_down refuse
			}
		}
		reverse_proxy %[3]s
	}
}`, tr.address, secretFile, b.Address())
	// nobody listens there
	tr.Caddy = caddytest.Start(t, "", global, tr.sites,
		"OLD_SECRET="+oldSecret, "OTHER_SECRET="+otherSecret, "REDIS_URL=redis://caddy:"+redisSecret+"@"+caddytest.FreeAddress(t))

	first := caddytest.Event{Data: `{"n":1}`}.Body()
	tr.sends("/main", caddytest.Secret, first, http.StatusOK)                                                                       // delivered
	tr.sends("/main", oldSecret, caddytest.Event{Type: "shop.sold"}.Body(), http.StatusOK)                                          // delivered, of a type that is not documented
	tr.sends("/main", oldSecret, caddytest.Event{Type: "contact.created"}.Body(), http.StatusOK)                                    // ignored
	tr.sends("/main", caddytest.Secret, first, http.StatusOK)                                                                       // duplicate
	tr.sends("/main", caddytest.Secret, strings.Replace(first, `{"n":1}`, `{"n":2}`, 1), http.StatusOK)                             // conflict
	tr.sends("/main", caddytest.Secret, caddytest.Event{Type: "message.sent", Created: time.Now().Add(-2 * time.Hour)}.Body(), 403) // event_stale
	tr.sends("/main", caddytest.Secret, caddytest.Event{Type: "message.sent", Created: time.Now().Add(time.Hour)}.Body(), 403)      // event_from_future
	tr.sends("/main", caddytest.Secret, `{"id":"evt_1"}`, http.StatusBadRequest)                                                    // envelope_invalid
	tr.sends("/main", caddytest.Secret, caddytest.Event{Data: `{"long":"` + strings.Repeat("x", 3000) + `"}`}.Body(), 413)          // body_too_large
	tr.expect(tr.request(http.MethodGet, "/main", "", ""), http.StatusMethodNotAllowed)                                             // method_not_allowed
	tr.expect(tr.request(http.MethodPost, "/main", "", caddytest.NewEvent()), http.StatusUnauthorized)                              // signature_missing
	tr.expect(tr.request(http.MethodPost, "/main", "sha256=12", caddytest.NewEvent()), http.StatusUnauthorized)                     // signature_malformed
	for range 20 {                                                                                                                  // signature_mismatch
		forgery := caddytest.NewEvent()
		tr.expect(tr.request(http.MethodPost, "/main", strings.Repeat("0", 64), forgery), http.StatusUnauthorized)
		for _, secret := range []string{caddytest.Secret, oldSecret} {
			tr.forged = append(tr.forged, caddytest.SignWith(secret, forgery))
		}
	}
	tr.sends("/full", otherSecret, caddytest.NewEvent(), http.StatusOK)
	tr.sends("/full", otherSecret, caddytest.NewEvent(), http.StatusServiceUnavailable) // store_full
	tr.sends("/nowhere", otherSecret, caddytest.NewEvent(), http.StatusBadGateway)      // unhandled
	tr.sends("/down", otherSecret, caddytest.NewEvent(), http.StatusServiceUnavailable) // store_unavailable
	failing := caddytest.NewEvent()
	r := tr.request(http.MethodPost, "/main", caddytest.SignWith(caddytest.Secret, failing), failing)
	r.Header.Set("X-Mode", "fail")
	tr.expect(r, http.StatusInternalServerError) // failed

	for len(arrived) > 0 {
		<-arrived
	}
	slow := caddytest.NewEvent()
	ctx, disconnect := context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		r := tr.request(http.MethodPost, "/main", caddytest.SignWith(caddytest.Secret, slow), slow).WithContext(ctx)
		r.Header.Set("X-Mode", "slow")
		if res, err := http.DefaultClient.Do(r); err == nil {
			res.Body.Close()
			t.Error("the sender that disconnected was answered")
		}
	}()
	<-arrived
	if n := tr.Metric("in_flight"); n != 1 {
		t.Errorf("%v deliveries are in flight, want 1", n)
	}
	tr.sends("/main", caddytest.Secret, slow, http.StatusServiceUnavailable)            // in_flight
	tr.sends("/busy", otherSecret, caddytest.NewEvent(), http.StatusServiceUnavailable) // overloaded
	disconnect()
	<-gone
	time.Sleep(500 * time.Millisecond) // nothing shows that Caddy has noticed
	close(release)
	caddytest.WaitFor(t, "the abandoned delivery to end", func() bool { return tr.Metric("in_flight") == 0 })

	for _, end := range []bool{true, false} { // body_incomplete, body_timeout
		conn, err := net.Dial("tcp", tr.address)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /main HTTP/1.1\r\nHost: %s\r\nX-BuzzBip-Signature: %s\r\nContent-Length: 100\r\n\r\n{", tr.address, strings.Repeat("0", 64))
		if end {
			conn.(*net.TCPConn).CloseWrite()
		}
		if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
			t.Error(err)
		}
		conn.Close()
	}
	return tr
}

// The counters after the tour.
var (
	tourRequests = map[string]float64{
		`event_type="message.received",result="delivered"`: 3, // the first, the one at /full and the abandoned one
		`event_type="other",result="delivered"`:            1,
		`event_type="contact.created",result="ignored"`:    1,
		`event_type="message.received",result="duplicate"`: 1,
		`event_type="message.received",result="conflict"`:  1,
		`event_type="message.received",result="in_flight"`: 1,
		`event_type="message.received",result="failed"`:    2, // one unhandled
		`event_type="message.sent",result="rejected"`:      2,
		`event_type="message.received",result="rejected"`:  3, // full, down, busy
		`event_type="unverified",result="rejected"`:        27,
	}
	tourFailures   = map[string]float64{"status_5xx": 1, "unhandled": 1}
	tourRejections = map[string]float64{
		"method_not_allowed": 1, "signature_missing": 1, "signature_malformed": 1, "body_too_large": 1, "body_timeout": 1,
		"body_incomplete": 1, "signature_mismatch": 20, "envelope_invalid": 1, "event_stale": 1, "event_from_future": 1,
		"in_flight": 1, "store_unavailable": 1, "store_full": 1, "overloaded": 1, "unhandled": 1,
	}
)
