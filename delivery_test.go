package buzzbip

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func TestDeliversOnceAndAnswersTheRetryAsDuplicate(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-From-Backend", "yes")
			w.WriteHeader(http.StatusAccepted)
			io.WriteString(w, "thank you")
		})
		s := start(t, proxied(b, ""))
		body := eventBody(newID())

		first := send(client, signed(s.url, body))
		expect(t, first, http.StatusAccepted, "")
		if first.body != "thank you" || first.header.Get("X-From-Backend") != "yes" {
			t.Errorf("the backend's answer was changed: %+v", first)
		}
		expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
		b.expectCount(t, 1)
	})
}

func TestNothingThatIsNotSignedGetsRoundDeduplication(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, ""))
	client := newClient(t, "HTTP/1.1")
	body := eventBody(newID())
	expect(t, send(client, signed(s.url, body)), http.StatusOK, "")

	for name, change := range map[string]func(*http.Request){
		"path":  func(r *http.Request) { r.URL.Path = "/elsewhere" },
		"query": func(r *http.Request) { r.URL.RawQuery = "again=1" },
		"host":  func(r *http.Request) { r.Host = "localhost" },
		"headers": func(r *http.Request) {
			r.Header.Set("Idempotency-Key", "other")
			r.Header.Set("Content-Type", "text/plain")
		},
		"case": func(r *http.Request) {
			r.Header.Set(webhook.SignatureHeader, strings.ToUpper(signature(testSecret, body)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := signed(s.url, body)
			change(r)
			expect(t, send(client, r), http.StatusOK, webhook.ResultDuplicate)
		})
	}
	b.expectCount(t, 1)
}

func TestConcurrentCopiesReachTheBackendOnceAndWaitForIt(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		release := make(chan struct{})
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) { <-release })
		s := start(t, proxied(b, ""))
		body := eventBody(newID())

		const copies = 100
		answers := make(chan response, copies)
		for range copies {
			go func() { answers <- send(client, signed(s.url, body)) }()
		}
		await(t, b.arrived, "the first copy")
		select {
		case r := <-answers:
			t.Fatalf("answered %d before the backend did (%v)", r.status, r.err)
		default:
		}
		close(release)
		duplicates := 0
		for range copies {
			r := await(t, answers, "an answer")
			if r.err != nil || r.status != http.StatusOK {
				t.Fatalf("answered %d (%v)", r.status, r.err)
			}
			if r.result() == string(webhook.ResultDuplicate) {
				duplicates++
			}
		}
		if duplicates != copies-1 {
			t.Errorf("%d copies were answered as duplicates, want %d", duplicates, copies-1)
		}
		b.expectCount(t, 1)
	})
}

func TestSenderHangsUpAndTheBackendSucceedsLater(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		release := make(chan struct{})
		canceled := make(chan bool, 1)
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			<-release
			canceled <- r.Context().Err() != nil
		})
		s := start(t, watched(b, ""))
		body := eventBody(newID())
		hangUp(t, client, signed(s.url, body), b)

		// the retry comes while the backend still works, and is answered by it
		retry := sendAsync(client, signed(s.url, body))
		close(release)
		expect(t, await(t, retry, "the retry"), http.StatusOK, webhook.ResultDuplicate)
		if await(t, canceled, "the backend") {
			t.Error("the backend's request was canceled")
		}
		b.expectCount(t, 1)
	})
}

func TestSenderHangsUpAndTheBackendFailsLater(t *testing.T) {
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
		body := eventBody(newID())
		hangUp(t, client, signed(s.url, body), b)

		retry := sendAsync(client, signed(s.url, body))
		close(release)
		expect(t, await(t, retry, "the retry"), http.StatusOK, "")
		b.expectCount(t, 2)
	})
}

// watched is a site that tells in senderGone when the context of a request ends.
func watched(b *backend, options string) string { return "watch\n" + proxied(b, options) }

type watch struct{}

var senderGone = make(chan struct{}, 1000)

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
	stop := context.AfterFunc(r.Context(), func() { senderGone <- struct{}{} })
	defer stop()
	return next.ServeHTTP(w, r)
}

// hangUp sends r, cancels it once it has reached the backend, and waits until
// Caddy has noticed.
func hangUp(t *testing.T, client *http.Client, r *http.Request, b *backend) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	gone := sendAsync(client, r.WithContext(ctx))
	await(t, b.arrived, "the delivery")
	cancel()
	if r := await(t, gone, "the sender"); r.err == nil {
		t.Fatalf("the sender was answered %d", r.status)
	}
	await(t, senderGone, "Caddy to notice")
}

func TestExactlyOneWaiterTakesOverWhenTheFirstFails(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		statuses := make(chan int)
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(<-statuses) })
		s := start(t, proxied(b, ""))
		body := eventBody(newID())

		const copies = 20
		answers := make(chan response, copies)
		for range copies {
			go func() { answers <- send(client, signed(s.url, body)) }()
		}
		await(t, b.arrived, "the first delivery")
		statuses <- http.StatusInternalServerError
		expect(t, await(t, answers, "the failure"), http.StatusInternalServerError, "")
		await(t, b.arrived, "the second delivery")
		statuses <- http.StatusOK
		delivered := 0
		for range copies - 1 {
			r := await(t, answers, "an answer")
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

func TestDuplicateThatWaitedLongEnoughIsToldToComeBack(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		release := make(chan struct{})
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) { <-release })
		s := start(t, proxied(b, "duplicate_wait 20ms"))
		body := eventBody(newID())
		first := sendAsync(client, signed(s.url, body))
		await(t, b.arrived, "the first copy")

		got := send(client, signed(s.url, body))
		expect(t, got, http.StatusServiceUnavailable, webhook.ResultInFlight)
		if got.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
		close(release)
		expect(t, await(t, first, "the first answer"), http.StatusOK, "")
		b.expectCount(t, 1)
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
				body := eventBody(newID())
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
		body := eventBody(newID())
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
		body := eventBody(newID())
		expect(t, send(client, signed(s.url, body)), http.StatusGatewayTimeout, "")
		await(t, canceled, "the backend's request to be canceled")

		s.reload(proxied(newBackend(t, nil), ""))
		expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
	})
}

// Whatever a handler makes of the end of its context.
func TestDeliveryTimeoutIsAnsweredWithGatewayTimeout(t *testing.T) {
	for _, how := range []string{"wait", "wait_and_fail"} {
		s := start(t, "buzzbip_webhook "+testSecret+" {\n delivery_timeout 10ms\n}\nodd "+how)
		body := eventBody(newID())
		for range 2 { // the first is not remembered
			expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, body)), http.StatusGatewayTimeout, "")
		}
	}
}

// A 2xx is a promise of the backend, whatever becomes of the connection then.
func TestSuccessCountsEvenIfTheResponseIsCutOff(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort")
			conn.Close()
		})
		s := start(t, proxied(b, ""))
		body := eventBody(newID())
		if first := send(client, signed(s.url, body)); first.err == nil {
			t.Errorf("the broken response was answered %d %q", first.status, first.body)
		}
		expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
		b.expectCount(t, 1)
	})
}

// What the sender has seen of a success must be on record: a retry on another
// connection may arrive while the response is still being written.
func TestSuccessIsOnRecordBeforeTheSenderSeesIt(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		release := make(chan struct{})
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusOK)
			http.NewResponseController(w).Flush()
			<-release
		})
		s := start(t, fmt.Sprintf(`
			buzzbip_webhook %s
			reverse_proxy %s {
				flush_interval -1
			}`, testSecret, b.address()))
		body := eventBody(newID())
		res, err := client.Do(signed(s.url, body))
		if err != nil {
			t.Fatal(err)
		}
		expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
		close(release)
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		b.expectCount(t, 1)
	})
}

// hookedWriter calls a function before it writes a status.
type hookedWriter struct {
	http.ResponseWriter
	before func()
}

func (w hookedWriter) WriteHeader(status int) {
	w.before()
	w.ResponseWriter.WriteHeader(status)
}

func TestSuccessIsOnRecordBeforeItsStatusIsWritten(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: testSecret}}}
	provision(t, h)
	body := eventBody(newID())
	calls := 0
	backend := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		calls++
		w.WriteHeader(http.StatusOK)
		return nil
	})
	w := hookedWriter{httptest.NewRecorder(), func() {
		if result, err := serve(h, signed("https://localhost/", body), backend); result != string(webhook.ResultDuplicate) {
			t.Errorf("a copy was answered %q, %v", result, err)
		}
	}}
	r := caddyhttp.PrepareRequest(signed("https://localhost/", body), caddy.NewReplacer(), w, new(caddyhttp.Server))
	if err := h.ServeHTTP(w, r, backend); err != nil || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

func TestRouteThatLeadsNowhereAcknowledgesNothing(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		s := start(t, "buzzbip_webhook "+testSecret)
		body := eventBody(newID())
		expect(t, send(client, signed(s.url, body)), http.StatusBadGateway, "")
		expect(t, send(client, signed(s.url, body)), http.StatusBadGateway, "")
		if !strings.Contains(s.logs(), `"cause":"unhandled"`) {
			t.Errorf("no word of it in the log: %s", s.logs())
		}
	})
}

// odd is a handler that ends in unusual ways.
type odd struct {
	How string `json:"how,omitempty"`
}

func init() {
	caddy.RegisterModule(odd{})
	httpcaddyfile.RegisterHandlerDirective("odd", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		h.Next()
		h.NextArg()
		return &odd{How: h.Val()}, nil
	})
	httpcaddyfile.RegisterDirectiveOrder("odd", httpcaddyfile.Before, "respond")
}

func (odd) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.odd", New: func() caddy.Module { return new(odd) }}
}

func (o odd) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	switch o.How {
	case "panic":
		panic(http.ErrAbortHandler)
	case "crash":
		panic("a mistake")
	case "panic_after_success":
		w.WriteHeader(http.StatusNoContent)
		panic(http.ErrAbortHandler)
	case "error_after_success":
		w.WriteHeader(http.StatusOK)
		return fmt.Errorf("too late")
	case "flush":
		return http.NewResponseController(w).Flush()
	case "write":
		_, err := io.WriteString(w, "ok")
		return err
	case "read_from":
		_, err := w.(io.ReaderFrom).ReadFrom(strings.NewReader("ok"))
		return err
	case "status_499":
		w.WriteHeader(499)
	case "wait":
		<-r.Context().Done()
	case "wait_and_fail":
		<-r.Context().Done()
		return caddyhttp.Error(http.StatusBadGateway, errors.New("dialing took too long"))
	}
	return nil
}

func TestDeliveredIsJudgedByTheStatusThatWasWritten(t *testing.T) {
	for how, delivered := range map[string]bool{
		"panic":               false,
		"panic_after_success": true,
		"error_after_success": true,
		"flush":               true,
		"write":               true,
		"read_from":           true,
		"status_499":          false,
		"nothing":             false,
	} {
		t.Run(how, func(t *testing.T) {
			client := newClient(t, "HTTP/1.1")
			site := start(t, "buzzbip_webhook "+testSecret+"\nodd "+how)
			body := eventBody(newID())
			send(client, signed(site.url, body))
			site.reload("buzzbip_webhook " + testSecret + "\nrespond new 200")
			want := webhook.Result("")
			if delivered {
				want = webhook.ResultDuplicate
			}
			expect(t, send(client, signed(site.url, body)), http.StatusOK, want)
		})
	}
}

// A backend may answer before it has read the body, and read on. The bytes it
// gets must stay those of its own request, whatever Caddy does meanwhile.
func TestBackendThatAnswersEarlyGetsItsOwnBytes(t *testing.T) {
	const size = 12 << 20 // more than fits between Caddy and a backend that does not read
	answered := make(chan struct{})
	ends := make(chan byte, 2)
	address := serveRaw(t, func(conn net.Conn) {
		conn.(*net.TCPConn).SetReadBuffer(64 << 10) // so that the body does not fit
		r, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		<-answered
		body, _ := io.ReadAll(r.Body) // Caddy's transport cuts it off soon
		ends <- body[len(body)-1]
	})
	s := start(t, fmt.Sprintf(`
		buzzbip_webhook %s {
			max_body_size 16MiB
		}
		reverse_proxy %s`, testSecret, address))
	client := newClient(t, "HTTP/1.1")
	large := func(fill string) *http.Request {
		return signed(s.url, fmt.Sprintf(`{"id":%q,"type":"message.received","createdAt":%q,"data":{"text":%q}}`,
			newID(), time.Now().UTC().Format(time.RFC3339), strings.Repeat(fill, size)))
	}
	first, second := large("a"), large("b")
	expect(t, send(client, first), http.StatusOK, "")
	close(answered)
	expect(t, send(client, second), http.StatusOK, "")
	for range 2 {
		// the last byte that came before the cut, or that of the whole body
		if end := await(t, ends, "the backend to have read"); !strings.ContainsRune("ab}", rune(end)) {
			t.Errorf("the backend got %q, which is of no request", end)
		}
	}
}

// serveRaw runs a TCP server and returns its address.
func serveRaw(t *testing.T, handle func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var open []net.Conn
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, conn := range open {
			conn.Close()
		}
	})
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, conn)
			mu.Unlock()
			go func() {
				defer conn.Close()
				handle(conn)
			}()
		}
	}()
	return l.Addr().String()
}
