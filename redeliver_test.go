package buzzbip

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

func TestRedeliveryHasTheProtocolOfTheEvent(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		protocol := client.Transport.(requireProtocol).protocol
		matcher := strings.TrimSuffix(strings.ToLower(protocol), ".0")
		b, working := failing(t, http.StatusInternalServerError)
		site := "@arrived protocol " + matcher + "\nroute @arrived {\n" + proxied(b, kept(t, "")) + " {\nheader_up X-Proto {http.request.proto}\n}\n}\nrespond 421"
		s := start(t, site)
		expect(t, send(client, signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
		caddytest.Receive(t, b.arrived, "the first attempt")
		second := caddytest.Receive(t, b.arrived, "the redelivery")
		if got := second.Header.Get("X-Proto"); got != protocol {
			t.Errorf("the redelivery has the protocol %q, want %q", got, protocol)
		}
		working.Store(true)
		waitForEmptyInbox(t)
	})
}

func TestRedeliveryTakesServerOptionsThatChangeTheConnection(t *testing.T) {
	b, working := failing(t, http.StatusInternalServerError)
	s := start(t, "respond gone 404")
	s.server = `"enable_full_duplex":true,"read_timeout":60000000000,"write_timeout":60000000000,"read_idle_timeout":60000000000,"write_idle_timeout":60000000000,`
	s.reload(proxied(b, kept(t, "")))
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
	working.Store(true)
	waitForEmptyInbox(t)
	if logs := s.logs(); strings.Contains(logs, "full duplex") || strings.Contains(logs, "deadline") {
		t.Error(logs)
	}
}

func TestRedeliveryHasTheHeadersOfTheEventAndItsNumber(t *testing.T) {
	b, working := failing(t, http.StatusServiceUnavailable)
	s := start(t, proxied(b, kept(t, "")))
	r := signed(s.url, caddytest.NewEvent())
	r.Header.Set("X-Custom", "yes")
	expect(t, send(newClient(t, "HTTP/1.1"), r), http.StatusOK, webhook.ResultStored)
	first := caddytest.Receive(t, b.arrived, "the first attempt")
	if first.Header.Get(redeliveryHeader) != "" {
		t.Error("the first attempt is marked")
	}
	second := caddytest.Receive(t, b.arrived, "the second attempt")
	working.Store(true)
	waitForEmptyInbox(t)
	if n := second.Header.Get(redeliveryHeader); n != "2" {
		t.Errorf("%s is %q, want 2", redeliveryHeader, n)
	}
	for _, name := range []string{"X-Custom", webhook.SignatureHeader, "Content-Type", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"} {
		if got, want := second.Header.Get(name), first.Header.Get(name); got != want || want == "" {
			t.Errorf("%s is %q, and was %q", name, got, want)
		}
	}
}

// A backend that never ends its response holds up no other events, and what its
// status says counts.
func TestEndlessResponseDoesNotHoldARedelivery(t *testing.T) {
	defer func(was time.Duration) { responseGrace = was }(responseGrace)
	responseGrace = 20 * time.Millisecond
	for name, write := range map[string]func(w http.ResponseWriter) error{
		"silent": func(http.ResponseWriter) error { return nil },
		"slow": func(w http.ResponseWriter) error {
			_, err := io.WriteString(w, ".")
			return errors.Join(err, http.NewResponseController(w).Flush())
		},
		"large": func(w http.ResponseWriter) error {
			_, err := w.Write(make([]byte, 1<<20))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			var status atomic.Int64
			status.Store(http.StatusServiceUnavailable)
			b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(int(status.Load()))
				_ = http.NewResponseController(w).Flush()
				for r.Header.Get(redeliveryHeader) != "" && r.Context().Err() == nil && write(w) == nil {
					select {
					case <-r.Context().Done():
					case <-time.After(time.Millisecond):
					}
				}
			})
			s := start(t, proxied(b, "delivery_timeout 1h\n"+kept(t, "concurrency 1\ndead_on 422")))
			client := newClient(t, "HTTP/1.1")
			for range 3 {
				expect(t, send(client, signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
			}
			status.Store(http.StatusUnprocessableEntity)
			caddytest.WaitFor(t, "the events to be dead", func() bool { return inboxStats(t).Dead == 3 })
			status.Store(http.StatusOK)
			in := running().inboxes()[0].inbox
			if _, err := in.dispatcher.Retry(t.Context(), inbox.Filter{}); err != nil {
				t.Fatal(err)
			}
			caddytest.WaitFor(t, "the events to be accepted", func() bool { stats := inboxStats(t); return stats.Waiting+stats.Dead == 0 })
		})
	}
}

func TestRedeliveryGoesWhereTheNewConfigurationSendsIt(t *testing.T) {
	old, _ := failing(t, http.StatusBadGateway)
	moved := newBackend(t, nil)
	options := strings.Replace(kept(t, ""), "retry 50ms 200ms", "retry 1h", 1)
	s := start(t, proxied(old, options))
	body := caddytest.NewEvent()
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, body)), http.StatusOK, webhook.ResultStored)
	s.reload(proxied(moved, strings.Replace(options, "retry 1h", "retry 50ms", 1)))
	if got, err := ask(t, http.MethodPost, "inbox/retry", "{}"); err != nil {
		t.Fatal(got, err)
	}
	if got := caddytest.Receive(t, moved.arrived, "the redelivery"); got.body != body {
		t.Errorf("delivered again: %q", got.body)
	}
	waitForEmptyInbox(t)
}

// answer_within bounds how long the sender waits, but not a redelivery: else a slow
// backend would get the event again and again.
func TestRedeliveryMayTakeLongerThanTheSenderWaits(t *testing.T) {
	redelivered, release := make(chan struct{}), make(chan struct{})
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(redeliveryHeader) == "" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		close(redelivered) // panics the second time
		<-release
	})
	s := start(t, proxied(b, "answer_within 10ms\n"+kept(t, "")))
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
	caddytest.Receive(t, redelivered, "the redelivery")
	time.Sleep(500 * time.Millisecond) // longer than answer_within and the retries
	close(release)
	waitForEmptyInbox(t)
	b.expectCount(t, 2)
}

func TestEventsOfASiteThatIsGoneWait(t *testing.T) {
	b, working := failing(t, http.StatusInternalServerError)
	options := kept(t, "")
	s := start(t, proxied(b, options))
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
	other := strings.Replace(proxied(b, options), caddytest.Secret, "another-signing-secret", 1)
	s.reload(other)
	caddytest.WaitFor(t, "the log to say that nothing delivers the event", func() bool {
		return strings.Contains(s.logs(), "no buzzbip_webhook of the active configuration delivers it")
	})
	working.Store(true)
	s.reload(proxied(b, options))
	waitForEmptyInbox(t)
}

func TestRedeliveryUnderWayIsCutOffWhenCaddyStops(t *testing.T) {
	defer func(d time.Duration) { exitGrace = d }(exitGrace)
	exitGrace = 0
	release := make(chan struct{})
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(redeliveryHeader) == "" {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		select {
		case <-r.Context().Done():
		case <-release:
		}
	})
	directives := proxied(b, "delivery_timeout 1h\n"+kept(t, ""))
	s := start(t, directives)
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
	for range 2 {
		caddytest.Receive(t, b.arrived, "the attempt")
	}
	stopped := make(chan error, 1)
	go func() { stopped <- caddy.Stop() }()
	defer close(release)
	if err := caddytest.Receive(t, stopped, "Caddy to stop"); err != nil {
		t.Error(err)
	}
	s.reload(directives)
	if got, err := ask(t, http.MethodGet, "inbox", ""); err != nil || !strings.Contains(got, `"attempts":1`) {
		t.Errorf("the attempt that was cut off counts: %s, %v", got, err)
	}
}

func TestNoRequestFromOutsideIsARedelivery(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, kept(t, ""))+explained)
	r := signed(s.url, caddytest.NewEvent())
	r.Header.Set(webhook.SignatureHeader, strings.Repeat("0", 64))
	r.Header.Set(redeliveryHeader, "2")
	expectRejection(t, send(newClient(t, "HTTP/1.1"), r), webhook.ReasonSignatureMismatch)
	b.expectCount(t, 0)
}

func TestRedeliveryIsForTheHostOfTheEvent(t *testing.T) {
	b, working := failing(t, http.StatusInternalServerError)
	s := start(t, "respond gone 404")
	s.server = `"strict_sni_host":true,`
	s.reload(proxied(b, kept(t, "")))
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
	working.Store(true)
	waitForEmptyInbox(t)
}
