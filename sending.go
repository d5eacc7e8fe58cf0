package buzzbip

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
)

// sending is what is known of a request that transports send to backends.
type sending struct {
	body []byte
	// conn is the connection that the latest try used.
	conn atomic.Pointer[net.Conn]
	// repeatable means that a transport repeats the latest try although the
	// backend may have processed it.
	repeatable atomic.Bool
}

// trace returns a context in which transports report to s.
func (s *sending) trace(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			s.conn.Store(&info.Conn)
			s.repeatable.Store(false)
		},
		// net/http takes these for a license to repeat a POST over HTTP/1.1,
		// where headers are spelled as in a [http.Header]
		// (https://go.dev/issue/19943)
		WroteHeaderField: func(name string, _ []string) {
			if name == "Idempotency-Key" || name == "X-Idempotency-Key" {
				s.repeatable.Store(true)
			}
		},
	})
}

var errNotRepeated = errors.New("not repeated: the backend may have processed it")

// setBody makes the body that of r, and lets a transport send it again if the
// backend has certainly not processed it, such as a stream that an HTTP/2
// backend refused.
func (s *sending) setBody(r *http.Request) {
	setBody(r, s.body)
	given := r.Body
	r.GetBody = func() (io.ReadCloser, error) {
		if s.repeatable.Load() {
			return nil, errNotRepeated
		}
		if r.Body != given {
			return nil, errors.New("not repeated: the body was replaced")
		}
		return newPayload(s.body), nil
	}
	if !placeholdersRead(r) {
		setBodyPlaceholders(r, s.body)
	}
}
