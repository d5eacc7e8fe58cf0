package buzzbip

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// firstRead is how much memory a request gets before any of its body arrived.
const firstRead = 4 << 10

// readBody reads the whole body of r.
func (h *Handler) readBody(w http.ResponseWriter, r *http.Request) ([]byte, webhook.Reason, error) {
	if r.ContentLength > h.maxBodySize {
		return nil, webhook.ReasonBodyTooLarge, webhook.ErrBodyTooLarge
	}
	if r.Body == nil {
		return nil, "", nil
	}
	limitReading(w, r, h.readTimeout)
	body, err := readAll(r.Body, r.ContentLength, h.maxBodySize)
	if err == nil {
		return body, "", nil
	}
	// errors are not wrapped, for a HandlerError would bring its own status
	var timeout net.Error
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, webhook.ErrBodyTooLarge), errors.As(err, &tooLarge):
		return nil, webhook.ReasonBodyTooLarge, err
	case errors.As(err, &timeout) && timeout.Timeout():
		return nil, webhook.ReasonBodyTimeout, fmt.Errorf("the body did not arrive within read_timeout: %v", err)
	}
	return nil, webhook.ReasonBodyIncomplete, fmt.Errorf("the body did not arrive whole: %v", err)
}

// limitReading sets a deadline for reading the body of r, besides those that
// others have set. It is not cleared when the body has been read, since Caddy
// and net/http do so, and clearing it once more would bring back that of the
// server, which passes in mid-delivery and is taken for a disconnect.
func limitReading(w http.ResponseWriter, r *http.Request, timeout time.Duration) {
	if reader, _ := caddyhttp.IdleTimeoutsFromContext(r.Context()); reader != nil {
		_ = reader.SetReadDeadline(time.Now().Add(timeout)) // others do not last
		return
	}
	if server, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok && server.ReadTimeout > 0 && time.Duration(server.ReadTimeout) <= timeout {
		if r.ProtoMajor < 3 {
			return // the server has set its own
		}
		timeout = time.Duration(server.ReadTimeout)
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(timeout))
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
			return nil, webhook.ErrBodyTooLarge
		case err == io.EOF:
			return buf, nil
		case err != nil:
			return nil, err
		}
	}
}

// setBody makes body, which is not written to again, the body of r. Without one
// r has none.
func setBody(r *http.Request, body []byte) {
	r.Body = http.NoBody
	if len(body) > 0 {
		r.Body = newPayload(body)
	}
	r.GetBody = nil
	r.ContentLength = int64(len(body))
	r.Header["Content-Length"] = []string{strconv.Itoa(len(body))}
	r.TransferEncoding = nil
	r.Trailer = nil // not signed, and not possible with a length
	delete(r.Header, "Expect")
}

// setBodyPlaceholders fixes the placeholders for the body of a request, which
// else read and replace that of the request that Caddy has.
func setBodyPlaceholders(r *http.Request, body []byte) {
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	repl.Set("http.request.body", string(body))
	repl.Set("http.request.body_base64", inBase64(body))
}

// inBase64 is a placeholder's value that is made when it is used.
type inBase64 []byte

func (b inBase64) String() string { return base64.StdEncoding.EncodeToString(b) }

// placeholdersRead reports whether placeholders read r, and not the request that
// a handler before has passed on a copy of.
func placeholdersRead(r *http.Request) bool {
	const mark = "buzzbip_webhook"
	proto := r.Proto
	r.Proto = mark
	read, _ := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).GetString("http.request.proto")
	r.Proto = proto
	return read == mark
}

// payload is a request body in memory. Its readers get all of it or an error: a
// transport that tries a request again must not send the rest of a body for the
// whole. Closed at its end or before it was read, it can be read again: a
// placeholder for the body reads and closes it, and replaces it only in the
// request that Caddy has.
type payload struct {
	mu     sync.Mutex // a transport may close it while it reads
	reader bytes.Reader
	closed bool
}

func newPayload(body []byte) *payload {
	p := new(payload)
	p.reader.Reset(body)
	return p
}

func (p *payload) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	return p.reader.Read(b)
}

func (p *payload) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if rest := p.reader.Len(); 0 < rest && rest < int(p.reader.Size()) {
		p.closed = true
		return nil
	}
	_, err := p.reader.Seek(0, io.SeekStart)
	return err
}
