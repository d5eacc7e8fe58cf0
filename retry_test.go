package buzzbip

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
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
	s := start(t, fmt.Sprintf("buzzbip_webhook %s\nreverse_proxy h2c://%s", testSecret, address))
	body := eventBody(newID())
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, body)), http.StatusOK, "")
	for range 2 {
		if got := await(t, bodies, "the request"); got != body {
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
			}`, testSecret, first.address(), up.address())
	}
	client := newClient(t, "HTTP/1.1")
	t.Run("not connected", func(t *testing.T) {
		s := start(t, site(down))
		body := eventBody(newID())
		expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
		if got := await(t, up.arrived, "the delivery"); got.body != body {
			t.Errorf("the second backend got %q", got.body)
		}
	})
	t.Run("connected", func(t *testing.T) {
		s := start(t, site(failing))
		body := eventBody(newID())
		// it may have been processed: the sender must decide
		expect(t, send(client, signed(s.url, body)), http.StatusBadGateway, "")
		expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
		failing.expectCount(t, 1)
		up.expectCount(t, 2)
	})
}
