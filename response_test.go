package buzzbip

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

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

// A 2xx is a promise of the backend, no matter what happens to the connection
// then.
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
		body := caddytest.NewEvent()
		if first := send(client, signed(s.url, body)); first.err == nil {
			t.Errorf("the broken response was answered %d %q", first.status, first.body)
		}
		expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
		b.expectCount(t, 1)
	})
}

// A success must be recorded before the sender can see any of it: a retry on
// another connection may arrive while the response is still being written.
func TestSuccessIsRecordedBeforeTheSenderSeesIt(t *testing.T) {
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
			}`, caddytest.Secret, b.address()))
		body := caddytest.NewEvent()
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

func TestSuccessIsRecordedBeforeItsStatusIsWritten(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}}}
	provision(t, h)
	body := caddytest.NewEvent()
	calls := 0
	backend := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		calls++
		w.WriteHeader(http.StatusOK)
		return nil
	})
	w := hookedWriter{httptest.NewRecorder(), func() {
		if result, err := serve(h, signed("https://localhost/", body), backend); result != string(webhook.ResultDuplicate) {
			t.Errorf("a duplicate was answered %q, %v", result, err)
		}
	}}
	r := caddyhttp.PrepareRequest(signed("https://localhost/", body), caddy.NewReplacer(), w, new(caddyhttp.Server))
	if err := h.ServeHTTP(w, r, backend); err != nil || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
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
			site := start(t, "buzzbip_webhook "+caddytest.Secret+"\nodd "+how)
			body := caddytest.NewEvent()
			send(client, signed(site.url, body))
			site.reload("buzzbip_webhook " + caddytest.Secret + "\nrespond new 200")
			want := webhook.Result("")
			if delivered {
				want = webhook.ResultDuplicate
			}
			expect(t, send(client, signed(site.url, body)), http.StatusOK, want)
		})
	}
}
