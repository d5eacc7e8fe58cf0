package buzzbip

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
)

// sending is a request that transports send to backends.
type sending struct {
	token [1]string // the value of deliveryHeader
	given payload   // the body that the next handlers get
	// idempotencyKey means that an attempt has sent a header that makes net/http
	// repeat it even if the backend may have processed it.
	idempotencyKey atomic.Bool
	clientTrace    httptrace.ClientTrace
}

// trace returns a context in which transports report their attempts to s.
func (s *sending) trace(ctx context.Context) context.Context {
	s.clientTrace.WroteHeaderField = s.wroteHeaderField
	return httptrace.WithClientTrace(ctx, &s.clientTrace)
}

// net/http repeats a POST over HTTP/1.1 that has one of these headers
// (https://go.dev/issue/19943). HTTP/2 spells them in lower case, and repeats only
// what was not processed.
func (s *sending) wroteHeaderField(name string, _ []string) {
	if name == "Idempotency-Key" || name == "X-Idempotency-Key" {
		s.idempotencyKey.Store(true)
	}
}

var errNotRepeated = errors.New("not repeated: the backend may have processed it")

// prepare gives r the event's body. A transport can get it again if the backend
// has certainly not processed the request, such as a refused HTTP/2 stream.
func (s *sending) prepare(r *http.Request, body *content) {
	r.Header[deliveryHeader] = append(s.token[:], r.Header[deliveryHeader]...)
	s.given.content, s.given.size = body, len(body.bytes)
	setBody(r, &s.given, s.given.size)
	r.GetBody = func() (io.ReadCloser, error) {
		if s.idempotencyKey.Load() {
			return nil, errNotRepeated
		}
		if r.Body != &s.given || s.given.discarded() { // in r, or in a copy of r
			return nil, errors.New("not repeated: the body was replaced")
		}
		return newPayload(body), nil
	}
}
