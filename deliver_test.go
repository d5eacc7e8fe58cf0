package buzzbip

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

func TestDeliversOnceAndAnswersTheRetryAsDuplicate(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-From-Backend", "yes")
			w.WriteHeader(http.StatusAccepted)
			io.WriteString(w, "thank you")
		})
		s := start(t, proxied(b, ""))
		body := caddytest.NewEvent()

		first := send(client, signed(s.url, body))
		expect(t, first, http.StatusAccepted, "")
		if first.body != "thank you" || first.header.Get("X-From-Backend") != "yes" {
			t.Errorf("the backend's answer was changed: %+v", first)
		}
		expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
		b.expectCount(t, 1)
	})
}

func TestConcurrentDuplicatesReachTheBackendOnceAndWaitForIt(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		release := make(chan struct{})
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) { <-release })
		s := start(t, proxied(b, ""))
		body := caddytest.NewEvent()

		const duplicates = 100
		answers := make(chan response, duplicates)
		for range duplicates {
			go func() { answers <- send(client, signed(s.url, body)) }()
		}
		caddytest.Receive(t, b.arrived, "the first delivery")
		select {
		case r := <-answers:
			t.Fatalf("answered %d before the backend did (%v)", r.status, r.err)
		default:
		}
		close(release)
		answered := 0
		for range duplicates {
			r := caddytest.Receive(t, answers, "an answer")
			if r.err != nil || r.status != http.StatusOK {
				t.Fatalf("answered %d (%v)", r.status, r.err)
			}
			if r.result() == string(webhook.ResultDuplicate) {
				answered++
			}
		}
		if answered != duplicates-1 {
			t.Errorf("%d requests were answered as duplicates, want %d", answered, duplicates-1)
		}
		b.expectCount(t, 1)
	})
}

func TestSenderDisconnectsAndTheBackendSucceedsLater(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		release := make(chan struct{})
		canceled := make(chan bool, 1)
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			<-release
			canceled <- r.Context().Err() != nil
		})
		s := start(t, watched(b, ""))
		body := caddytest.NewEvent()
		disconnect(t, client, signed(s.url, body), b)

		// the retry comes while the backend still works, and is answered by it
		retry := sendAsync(client, signed(s.url, body))
		close(release)
		expect(t, caddytest.Receive(t, retry, "the retry"), http.StatusOK, webhook.ResultDuplicate)
		if caddytest.Receive(t, canceled, "the backend") {
			t.Error("the backend's request was canceled")
		}
		b.expectCount(t, 1)
	})
}

func TestSenderDisconnectsAndTheBackendFailsLater(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		release := make(chan struct{})
		status := make(chan int, 2)
		status <- http.StatusInternalServerError
		status <- http.StatusOK
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			<-release
			w.WriteHeader(<-status)
		})
		s := start(t, watched(b, ""))
		body := caddytest.NewEvent()
		disconnect(t, client, signed(s.url, body), b)

		retry := sendAsync(client, signed(s.url, body))
		close(release)
		expect(t, caddytest.Receive(t, retry, "the retry"), http.StatusOK, "")
		b.expectCount(t, 2)
	})
}

// watched is a site that reports in senderDisconnected when the context of a
// request ends.
func watched(b *backend, options string) string { return "watch\n" + proxied(b, options) }

type watch struct{}

var senderDisconnected = make(chan struct{}, 1000)

func init() {
	caddy.RegisterModule(watch{})
	httpcaddyfile.RegisterHandlerDirective("watch", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		h.Next()
		return watch{}, nil
	})
	httpcaddyfile.RegisterDirectiveOrder("watch", httpcaddyfile.Before, "basic_auth")
}

func (watch) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.watch", New: func() caddy.Module { return new(watch) }}
}

func (watch) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	stop := context.AfterFunc(r.Context(), func() { senderDisconnected <- struct{}{} })
	defer stop()
	return next.ServeHTTP(w, r)
}

// disconnect sends r, cancels it once it has reached the backend, and waits until
// Caddy has noticed.
func disconnect(t *testing.T, client *http.Client, r *http.Request, b *backend) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	gone := sendAsync(client, r.WithContext(ctx))
	caddytest.Receive(t, b.arrived, "the delivery")
	cancel()
	if r := caddytest.Receive(t, gone, "the sender"); r.err == nil {
		t.Fatalf("the sender was answered %d", r.status)
	}
	caddytest.Receive(t, senderDisconnected, "Caddy to notice the disconnect")
}

func TestExactlyOneWaiterTakesOverWhenTheFirstFails(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		statuses := make(chan int)
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(<-statuses) })
		s := start(t, proxied(b, ""))
		body := caddytest.NewEvent()

		const duplicates = 20
		answers := make(chan response, duplicates)
		for range duplicates {
			go func() { answers <- send(client, signed(s.url, body)) }()
		}
		caddytest.Receive(t, b.arrived, "the first delivery")
		statuses <- http.StatusInternalServerError
		expect(t, caddytest.Receive(t, answers, "the failure"), http.StatusInternalServerError, "")
		caddytest.Receive(t, b.arrived, "the second delivery")
		statuses <- http.StatusOK
		delivered := 0
		for range duplicates - 1 {
			r := caddytest.Receive(t, answers, "an answer")
			if r.status != http.StatusOK {
				t.Fatalf("answered %d (%v)", r.status, r.err)
			}
			if r.result() == "" {
				delivered++
			}
		}
		if delivered != 1 {
			t.Errorf("%d waiters delivered, want 1", delivered)
		}
		b.expectCount(t, 2)
	})
}

func TestFailuresGoBackUnchangedAndAreDeliveredAgain(t *testing.T) {
	fail := make(chan http.HandlerFunc, 1)
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case h := <-fail:
			h(w, r)
		default:
		}
	})
	hijack := func(w http.ResponseWriter, send string) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		if send == "" {
			conn.(*net.TCPConn).SetLinger(0) // resets
		}
		io.WriteString(conn, send)
		conn.Close()
	}
	tests := map[string]struct {
		backend http.HandlerFunc
		status  int
	}{
		"server error": {func(w http.ResponseWriter, r *http.Request) { http.Error(w, "full", http.StatusInsufficientStorage) }, http.StatusInsufficientStorage},
		"client error": {func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusTeapot) }, http.StatusTeapot},
		"redirect":     {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusSeeOther) }, http.StatusSeeOther},
		"not modified": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotModified) }, http.StatusNotModified},
		"panic":        {func(w http.ResponseWriter, r *http.Request) { panic("on purpose") }, http.StatusBadGateway},
		"reset":        {func(w http.ResponseWriter, r *http.Request) { hijack(w, "") }, http.StatusBadGateway},
		"no HTTP":      {func(w http.ResponseWriter, r *http.Request) { hijack(w, "hello?\r\n\r\n") }, http.StatusBadGateway},
		"early hints, then failure": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusInternalServerError)
		}, http.StatusInternalServerError},
	}
	s := start(t, proxied(b, ""))
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			eachProtocol(t, func(t *testing.T, client *http.Client) {
				body := caddytest.NewEvent()
				fail <- test.backend
				expect(t, send(client, signed(s.url, body)), test.status, "")
				expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
				expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
			})
		})
	}
}

func TestUnreachableBackendIsAFailure(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b := newBackend(t, nil)
		b.Close()
		s := start(t, proxied(b, ""))
		body := caddytest.NewEvent()
		expect(t, send(client, signed(s.url, body)), http.StatusBadGateway, "")
		up := newBackend(t, nil)
		s.reload(proxied(up, ""))
		expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
	})
}

func TestBackendThatTakesTooLongIsAFailure(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		canceled := make(chan struct{})
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			close(canceled)
		})
		s := start(t, proxied(b, "delivery_timeout 50ms"))
		body := caddytest.NewEvent()
		expect(t, send(client, signed(s.url, body)), http.StatusGatewayTimeout, "")
		caddytest.Receive(t, canceled, "the backend's request to be canceled")

		s.reload(proxied(newBackend(t, nil), ""))
		expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
	})
}

// No matter how a handler reacts to the end of its context.
func TestDeliveryTimeoutIsAnsweredWithGatewayTimeout(t *testing.T) {
	for _, how := range []string{"wait", "wait_and_fail"} {
		s := start(t, "buzzbip_webhook "+caddytest.Secret+" {\n delivery_timeout 10ms\n}\nodd "+how)
		body := caddytest.NewEvent()
		for range 2 { // the first is not remembered
			expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, body)), http.StatusGatewayTimeout, "")
		}
	}
}

func TestRouteThatLeadsNowhereAcknowledgesNothing(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		s := start(t, "buzzbip_webhook "+caddytest.Secret)
		body := caddytest.NewEvent()
		expect(t, send(client, signed(s.url, body)), http.StatusBadGateway, "")
		expect(t, send(client, signed(s.url, body)), http.StatusBadGateway, "")
		if !strings.Contains(s.logs(), `"cause":"unhandled"`) {
			t.Errorf("no word of it in the log: %s", s.logs())
		}
	})
}

// broken is a store that fails to claim or to settle, does not return from Settle,
// or finds a conflict with a delivery in flight.
type broken struct {
	dedupe.Store
	What string `json:"what,omitempty"`
}

var errBroken = errors.New("the test broke it")

// waits are those of the claims that wait, of the store that finds a conflict.
var waits []time.Duration

// settles counts the calls of Settle, by their outcome.
var settles struct{ delivered, failed, ended atomic.Int32 }

func init() { caddy.RegisterModule(broken{}) }

func (broken) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: storeNamespace + ".broken", New: func() caddy.Module { return new(broken) }}
}

func (b *broken) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	d.NextArg()
	b.What = d.Val()
	return nil
}

func (*broken) Stats() dedupe.Stats { return dedupe.Stats{} }

func (b *broken) Claim(_ context.Context, r dedupe.Request) (dedupe.Verdict, error) {
	switch {
	case b.What == "claim":
		return dedupe.Verdict{}, errBroken
	case b.What == "conflict":
		if r.Wait == 0 {
			return dedupe.Verdict{}, dedupe.ErrInFlight
		}
		waits = append(waits, r.Wait)
		time.Sleep(10 * time.Millisecond)
		if !r.Redeliver {
			return dedupe.Verdict{State: dedupe.Conflicting}, nil
		}
	}
	return dedupe.Verdict{Claim: dedupe.Claim{Request: r}}, nil
}

func (b *broken) Settle(ctx context.Context, _ dedupe.Claim, delivered bool) error {
	if delivered {
		settles.delivered.Add(1)
	} else {
		settles.failed.Add(1)
	}
	if ctx.Err() != nil {
		settles.ended.Add(1)
	}
	if b.What == "hang" {
		<-ctx.Done()
	}
	return errBroken
}

func TestStoreThatCannotRecordNeverTurnsASuccessIntoAFailure(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, "store broken settle"))
	body := caddytest.NewEvent()
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, body)), http.StatusOK, "")
	if log := s.logs(); !strings.Contains(log, `"level":"error"`) || !strings.Contains(log, errBroken.Error()) {
		t.Errorf("no word of it in the log: %s", log)
	}
	b.expectCount(t, 1)
}

func TestStoreThatHangsDoesNotKeepASuccessFromTheSender(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, "store broken hang"))
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, "")
}

func TestClaimIsSettledOnceAndNotWithTheContextOfTheRequest(t *testing.T) {
	for _, status := range []int{http.StatusOK, http.StatusInternalServerError} {
		release := make(chan struct{})
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			<-release
			w.WriteHeader(status)
		})
		s := start(t, watched(b, "store broken settle"))
		settles.delivered.Store(0)
		settles.failed.Store(0)
		disconnect(t, newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent()), b)
		s.reload("respond gone 404")
		close(release)
		caddytest.WaitFor(t, "the settlement", func() bool { return settles.delivered.Load()+settles.failed.Load() > 0 })
		if delivered := settles.delivered.Load() == 1; delivered != (status == http.StatusOK) {
			t.Errorf("%d was settled as delivered=%v", status, delivered)
		}
		if settles.ended.Load() > 0 {
			t.Error("the claim was settled with a context that had ended")
		}
		if n := settles.delivered.Load() + settles.failed.Load(); n != 1 {
			t.Errorf("the claim was settled %d times", n)
		}
	}
}

type brokenError struct{}

func (*brokenError) Error() string { panic("this error cannot be shown") }

// Whatever goes wrong while a failure is reported, the retry is delivered.
func TestFailureThatCannotBeReportedEndsTheClaim(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}}}
	provision(t, h)
	body := caddytest.NewEvent()
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		_, _ = serve(h, signed("https://localhost/", body), func(http.ResponseWriter, *http.Request) error { return new(brokenError) })
	}()
	result, err := serve(h, signed("https://localhost/", body), func(w http.ResponseWriter, r *http.Request) error {
		w.WriteHeader(http.StatusOK)
		return nil
	})
	if result != string(webhook.ResultDelivered) || err != nil {
		t.Errorf("the retry was %s, %v", result, err)
	}
	if n := deliveries.count(); n != 0 {
		t.Errorf("%d deliveries are in flight", n)
	}
}

// request_header and its like replace values where they are.
func TestDeliveryEndsAlsoIfItsHeaderWasChanged(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b := newBackend(t, nil)
		s := start(t, "route {\nbuzzbip_webhook "+caddytest.Secret+"\nrequest_header "+deliveryHeader+" .+ changed\nreverse_proxy "+b.address()+"\n}")
		expect(t, send(client, signed(s.url, caddytest.NewEvent())), http.StatusOK, "")
		caddytest.WaitFor(t, "the end of the delivery", func() bool { return deliveries.count() == 0 })
		if got := caddytest.Receive(t, b.arrived, "the delivery").Header.Get(deliveryHeader); got != "changed" {
			t.Errorf("the backend got %q", got)
		}
	})
}
