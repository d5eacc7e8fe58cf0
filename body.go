package buzzbip

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// firstRead is how much memory a request gets before any of its body arrived.
const firstRead = 4 << 10

var errBodyTooLarge = errors.New("the body is larger than max_body_size")

// readBody reads the whole body of r.
func (h *Handler) readBody(w http.ResponseWriter, r *http.Request) ([]byte, Reason, error) {
	if r.ContentLength > h.maxBodySize {
		return nil, ReasonBodyTooLarge, errBodyTooLarge
	}
	if r.Body == nil {
		return nil, "", nil
	}
	// where deadlines are not supported, the server's own must do
	control := http.NewResponseController(w)
	tighter := !serverReadsWithin(r, h.readTimeout)
	if tighter {
		_ = control.SetReadDeadline(time.Now().Add(h.readTimeout))
	}
	body, err := readAll(r.Body, r.ContentLength, h.maxBodySize)
	if err == nil {
		// the deadline must not outlive the body: the server goes on reading to
		// notice when the sender hangs up
		if tighter {
			_ = control.SetReadDeadline(time.Time{})
		}
		return body, "", nil
	}
	// errors are not wrapped, for a HandlerError would bring its own status
	var timeout net.Error
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, errBodyTooLarge), errors.As(err, &tooLarge):
		return nil, ReasonBodyTooLarge, err
	case errors.As(err, &timeout) && timeout.Timeout():
		return nil, ReasonBodyTimeout, fmt.Errorf("the body did not arrive within read_timeout: %v", err)
	}
	return nil, ReasonBodyIncomplete, fmt.Errorf("the body did not arrive whole: %v", err)
}

// serverReadsWithin reports whether the server's own deadline for reading the
// request comes before one set now.
func serverReadsWithin(r *http.Request, timeout time.Duration) bool {
	server, _ := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	return server != nil && server.ReadTimeout > 0 && time.Duration(server.ReadTimeout) <= timeout
}

// readAll reads body to its end. What it allocates grows with what arrives,
// not with the length that was declared, which is negative if none was.
func readAll(body io.Reader, declared, limit int64) ([]byte, error) {
	size := int64(firstRead)
	if declared >= 0 && declared < size {
		size = declared + 1 // one more than the body, to see its end
	}
	buf := make([]byte, 0, size)
	for {
		if len(buf) == cap(buf) {
			size = 4 * int64(cap(buf))
			if declared >= int64(len(buf)) && declared < size {
				size = declared + 1
			}
			buf = append(make([]byte, 0, size), buf...)
		}
		n, err := body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case int64(len(buf)) > limit:
			return nil, errBodyTooLarge
		case err == io.EOF:
			return buf, nil
		case err != nil:
			return nil, err
		}
	}
}

// setBody makes body, which is not written to again, the body of r.
func setBody(r *http.Request, body []byte) {
	r.Body = newPayload(body)
	r.GetBody = func() (io.ReadCloser, error) { return newPayload(body), nil }
	r.ContentLength = int64(len(body))
	r.Header["Content-Length"] = []string{strconv.Itoa(len(body))}
	r.TransferEncoding = nil
	r.Trailer = nil // not signed, and not possible with a length
	delete(r.Header, "Expect")
}

// dropBody takes the body away from a request that was refused, so that no
// error route passes it on.
func dropBody(r *http.Request) {
	r.Body = http.NoBody
	r.ContentLength = 0
	r.TransferEncoding = nil
	delete(r.Header, "Content-Length")
}

// payload is a request body in memory. To read it once it is closed is an
// error: a transport that tries a request again must not send the rest of a
// body for the whole.
type payload struct {
	reader bytes.Reader
	closed atomic.Bool
}

func newPayload(body []byte) *payload {
	p := new(payload)
	p.reader.Reset(body)
	return p
}

func (p *payload) Read(b []byte) (int, error) {
	if p.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	return p.reader.Read(b)
}

func (p *payload) Close() error {
	p.closed.Store(true)
	return nil
}
