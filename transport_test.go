package buzzbip

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// An HTTP/2 backend that refuses a stream has not processed it. The transport
// may then send the request again by itself, which takes GetBody.
func TestTransportRepeatsARequestThatTheBackendRefusedToTake(t *testing.T) {
	bodies := make(chan string, 10)
	address := serveRaw(t, func(conn net.Conn) {
		preface := make([]byte, len(http2.ClientPreface))
		if _, err := io.ReadFull(conn, preface); err != nil {
			return
		}
		framer := http2.NewFramer(conn, conn)
		framer.WriteSettings()
		var body bytes.Buffer
		refused := false
		for {
			frame, err := framer.ReadFrame()
			if err != nil {
				return
			}
			switch f := frame.(type) {
			case *http2.SettingsFrame:
				if !f.IsAck() {
					framer.WriteSettingsAck()
				}
			case *http2.DataFrame:
				body.Write(f.Data())
				if !f.StreamEnded() {
					continue
				}
				bodies <- body.String()
				body.Reset()
				if !refused {
					refused = true
					framer.WriteRSTStream(f.StreamID, http2.ErrCodeRefusedStream)
					continue
				}
				var block bytes.Buffer
				hpack.NewEncoder(&block).WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
				framer.WriteHeaders(http2.HeadersFrameParam{
					StreamID: f.StreamID, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true,
				})
			}
		}
	})
	s := start(t, fmt.Sprintf("buzzbip_webhook %s\nreverse_proxy h2c://%s", caddytest.Secret, address))
	body := caddytest.NewEvent()
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, body)), http.StatusOK, "")
	for range 2 {
		if got := caddytest.Receive(t, bodies, "the request"); got != body {
			t.Errorf("the backend got %q", got)
		}
	}
}

func TestProxyRepeatsADeliveryWhereThatIsSafe(t *testing.T) {
	down := newBackend(t, nil)
	down.Close()
	failing := newBackend(t, func(w http.ResponseWriter, r *http.Request) { panic("after the request was taken") })
	up := newBackend(t, nil)
	site := func(first *backend) string {
		return fmt.Sprintf(`
			buzzbip_webhook %s
			reverse_proxy %s %s {
				lb_policy first
				lb_retries 2
				fail_duration 10s
				request_buffers 1MiB
			}`, caddytest.Secret, first.address(), up.address())
	}
	client := newClient(t, "HTTP/1.1")
	t.Run("not connected", func(t *testing.T) {
		s := start(t, site(down))
		body := caddytest.NewEvent()
		expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
		if got := caddytest.Receive(t, up.arrived, "the delivery"); got.body != body {
			t.Errorf("the second backend got %q", got.body)
		}
	})
	t.Run("connected", func(t *testing.T) {
		s := start(t, site(failing))
		body := caddytest.NewEvent()
		// it may have been processed: the sender must decide
		expect(t, send(client, signed(s.url, body)), http.StatusBadGateway, "")
		expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
		failing.expectCount(t, 1)
		up.expectCount(t, 2)
	})
}

// A backend that breaks a connection may have processed the request that it
// read before: net/http would repeat it if a header says that it may.
func TestTransportDoesNotRepeatWhatTheBackendMayHaveProcessed(t *testing.T) {
	for name, test := range map[string]struct{ header, proxy string }{
		"Idempotency-Key":                            {"Idempotency-Key", ""},
		"X-Idempotency-Key":                          {"X-Idempotency-Key", ""},
		"Idempotency-Key, with request_buffers":      {"Idempotency-Key", "request_buffers 1MiB"},
		"set by header_up":                           {"", "header_up Idempotency-Key {http.buzzbip_webhook.event.id}"},
		"set by header_up, with request_buffers":     {"", "header_up X-Idempotency-Key x\nrequest_buffers 1MiB"},
		"Idempotency-Key, read by a placeholder too": {"Idempotency-Key", "header_up X-Body {http.request.body}"},
	} {
		t.Run(name, func(t *testing.T) {
			bodies := make(chan string, 10)
			address := serveRaw(t, func(conn net.Conn) {
				reader := bufio.NewReader(conn)
				for n := range 2 {
					r, err := http.ReadRequest(reader)
					if err != nil {
						return
					}
					body, err := io.ReadAll(r.Body)
					if err != nil {
						return
					}
					bodies <- string(body)
					if n == 0 { // so that the connection is used again
						io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					}
				}
			})
			s := start(t, fmt.Sprintf("buzzbip_webhook %s\nreverse_proxy %s {\n%s\n}", caddytest.Secret, address, test.proxy))
			client := newClient(t, "HTTP/1.1")
			send := func(body string) response {
				r := signed(s.url, body)
				if test.header != "" {
					r.Header.Set(test.header, "key")
				}
				return send(client, r)
			}
			first, second := caddytest.NewEvent(), caddytest.NewEvent()
			expect(t, send(first), http.StatusOK, "")
			expect(t, send(second), http.StatusBadGateway, "")
			expect(t, send(second), http.StatusOK, "")
			for _, want := range []string{first, second, second} {
				if got := caddytest.Receive(t, bodies, "a request"); got != want {
					t.Errorf("the backend got %q, want %q", got, want)
				}
			}
			if len(bodies) > 0 {
				t.Errorf("the backend got %q besides", <-bodies)
			}
		})
	}
}

// What was put in the place of the event must not be replaced by it, whether that
// was done in the same request or in a copy, as request_body does behind tracing.
func TestTransportDoesNotRepeatTheEventInPlaceOfAnotherBody(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}}, Dedupe: dedupeOff}
	provision(t, h)
	for name, replace := range map[string]func(r *http.Request){
		"replaced":           func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("other")) },
		"replaced in a copy": func(r *http.Request) { r.Body.Close() },
	} {
		_, err := serve(h, signed("https://localhost/", caddytest.NewEvent()), func(w http.ResponseWriter, r *http.Request) error {
			if again, err := r.GetBody(); err != nil || again == nil {
				t.Errorf("the event cannot be sent again: %v", err)
			}
			replace(r)
			if _, err := r.GetBody(); err == nil {
				t.Errorf("%s: the event would be sent in place of what replaced it", name)
			}
			w.WriteHeader(http.StatusOK)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
