package buzzbip

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

const (
	// firstRead is how much memory a request gets before any of its body arrived.
	firstRead = 4 << 10

	// A buffer that is full grows by such a factor, but not beyond the declared
	// length. So of 64 KiB only the first 4 are copied if they were declared, and
	// no byte more than twice otherwise.
	growthDeclared   = 16
	growthUndeclared = 8
)

// readBody reads the whole body of r, which the handler got at start.
func (h *Handler) readBody(w http.ResponseWriter, r *http.Request, start time.Time) ([]byte, webhook.Reason, error) {
	if r.ContentLength > h.maxBodySize {
		return nil, webhook.ReasonBodyTooLarge, webhook.ErrBodyTooLarge
	}
	if r.Body == nil {
		return nil, "", nil
	}
	limitReading(w, r, start, h.readTimeout)
	body, err := readAll(r.Body, r.ContentLength, h.maxBodySize)
	if err == nil {
		return body, "", nil
	}
	reason, err := bodyRejection(err)
	return nil, reason, err
}

// bodyRejection returns the reason of an error that ended the reading of a body. Errors
// are not wrapped, for a HandlerError would bring its own status.
func bodyRejection(err error) (webhook.Reason, error) {
	var timeout net.Error
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, webhook.ErrBodyTooLarge), errors.As(err, &tooLarge):
		return webhook.ReasonBodyTooLarge, err
	case errors.As(err, &timeout) && timeout.Timeout():
		return webhook.ReasonBodyTimeout, fmt.Errorf("the body did not arrive within read_timeout: %v", err)
	}
	return webhook.ReasonBodyIncomplete, fmt.Errorf("the body did not arrive whole: %v", err)
}

// limitReading sets a deadline for reading the body of r, in addition to those of
// the server. Caddy and net/http clear it at the end of the body. Clearing it here
// would restore the deadline of the server, which then expires during the delivery
// and is taken for a disconnect.
func limitReading(w http.ResponseWriter, r *http.Request, start time.Time, timeout time.Duration) {
	if reader, _ := caddyhttp.IdleTimeoutsFromContext(r.Context()); reader != nil {
		_ = reader.SetReadDeadline(start.Add(timeout)) // it overwrites any other
		return
	}
	if server, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok && server.ReadTimeout > 0 && time.Duration(server.ReadTimeout) <= timeout {
		if r.ProtoMajor < 3 {
			return // the server has set it
		}
		timeout = time.Duration(server.ReadTimeout)
	}
	_ = http.NewResponseController(w).SetReadDeadline(start.Add(timeout))
}

// readAll reads body to its end. What it allocates grows with what arrives,
// not with the length that was declared, which is negative if none was.
func readAll(body io.Reader, declared, limit int64) ([]byte, error) {
	longest, growth := limit+1, int64(growthUndeclared) // one more, to see that it is too large
	if declared >= 0 {
		longest, growth = declared, growthDeclared
	}
	buf := newBuffer(min(firstRead, longest))
	for {
		var n int
		var err error
		if int64(len(buf)) == declared {
			var probe [1]byte // its end may be still to be read
			n, err = body.Read(probe[:])
			buf = append(buf, probe[:n]...)
		} else {
			if len(buf) == cap(buf) {
				size := growth * int64(cap(buf))
				if int64(len(buf)) < longest {
					size = min(size, longest)
				}
				buf = append(newBuffer(size), buf...)
			}
			free := buf[len(buf):cap(buf)]
			if int64(len(buf)) < declared {
				free = free[:min(int64(len(free)), declared-int64(len(buf)))]
			}
			n, err = body.Read(free)
			buf = buf[:len(buf)+n]
		}
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

// buffers are those of bodies that nothing can read any more.
var buffers sync.Pool

// recycle takes the buffer of a body that nothing can read any more, such as one that
// had no valid signature.
func recycle(body []byte) {
	if cap(body) > firstRead {
		buffers.Put(&body)
	}
}

// minReuse is the size of the smallest verified body whose buffer is used again.
// Below it, the garbage collector is cheaper.
const minReuse = 16 << 10

// content is the body of a verified event. A transport may read it after the response,
// and placeholders until the end of the request; both do so through its lock, so that
// its buffer can be used again after that.
type content struct {
	mu              sync.RWMutex
	bytes           []byte // nil once it was released
	data, createdAt []byte // parts of bytes, or nil
	shared          bool   // something has the bytes that does not ask
}

// cost returns what an event with this body takes of the memory for events under way.
func (c *content) cost() int64 { return allowance + int64(cap(c.bytes)) }

// readAt copies from the body, and returns 0 once it was released.
func (c *content) readAt(b []byte, offset int) int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return copy(b, c.bytes[min(offset, len(c.bytes)):])
}

// reuseAfter lets the buffer be used again once the server has ended the request of
// ctx. A sender that disconnects ends ctx early, when handlers around this one may still
// want placeholders: if it has done so, the buffer is left to the garbage collector.
func (c *content) reuseAfter(ctx context.Context) {
	if cap(c.bytes) < minReuse || c.shared || ctx.Err() != nil {
		return
	}
	context.AfterFunc(ctx, c.release)
}

func (c *content) release() {
	c.mu.Lock()
	body := c.bytes
	c.bytes, c.data, c.createdAt = nil, nil, nil
	c.mu.Unlock()
	recycle(body)
}

// newBuffer returns an empty buffer, of a size that is not much larger than size.
func newBuffer(size int64) []byte {
	if size > firstRead {
		if b, ok := buffers.Get().(*[]byte); ok && int64(cap(*b)) >= size && int64(cap(*b)) <= 2*size {
			return (*b)[:0]
		}
	}
	return make([]byte, 0, size)
}

// setBody makes body the body of r.
func setBody(r *http.Request, body io.ReadCloser, length int) {
	r.Body, r.GetBody, r.ContentLength = body, nil, int64(length)
	var digits [20]byte
	text := strconv.AppendInt(digits[:0], int64(length), 10)
	if declared := r.Header["Content-Length"]; len(declared) != 1 || declared[0] != string(text) {
		r.Header["Content-Length"] = []string{string(text)}
	}
	r.TransferEncoding = nil
	r.Trailer = nil // not signed, and not possible with a length
	delete(r.Header, "Expect")
}

// setBodyPlaceholders gives the placeholders for the request body fixed values.
// Otherwise they read and replace the body of Caddy's own request.
func setBodyPlaceholders(r *http.Request, body *content) {
	body.shared = true
	repl := replacerOf(r.Context())
	repl.Set("http.request.body", string(body.bytes))
	repl.Set("http.request.body_base64", inBase64(body.bytes))
}

// inBase64 is the value of a placeholder, encoded when it is used.
type inBase64 []byte

func (b inBase64) String() string { return base64.StdEncoding.EncodeToString(b) }

// placeholdersRead reports whether placeholders read r. If a handler before has
// passed on a copy, they read the original.
func placeholdersRead(r *http.Request) bool {
	const mark = "buzzbip_webhook"
	proto := r.Proto
	r.Proto = mark
	read, _ := replacerOf(r.Context()).GetString("http.request.proto")
	r.Proto = proto
	return read == mark
}

// payload is a request body in memory. It is read as a whole or not at all: after
// it was closed in the middle, reads fail, so that a transport cannot send the
// rest of it as a whole body. Closed at its end or before the first read, it can
// be read again, because placeholders read and close the body.
type payload struct {
	mu      sync.Mutex // transports close bodies while another goroutine reads
	content *content
	size    int
	offset  int // how much was read
	closed  bool
	read    bool // at least in part
	unread  bool // closed before it was read: another body has taken its place
}

func newPayload(c *content) *payload { return &payload{content: c, size: len(c.bytes)} }

func (p *payload) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	p.read = true
	if p.offset == p.size {
		return 0, io.EOF
	}
	n := p.content.readAt(b, p.offset)
	p.offset += n
	if n == 0 && len(b) > 0 {
		return 0, http.ErrBodyReadAfterClose // the request has ended
	}
	return n, nil
}

func (p *payload) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unread = p.unread || !p.read
	if 0 < p.offset && p.offset < p.size {
		p.closed = true
	}
	p.offset = 0
	return nil
}

// discarded reports whether the body was closed before anyone read it, as handlers
// do that replace it.
func (p *payload) discarded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unread
}
