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
	body  []byte
	token string // in deliveryHeader; "": none
	// idempotencyKey means that the latest attempt has sent a header that makes
	// net/http repeat it even if the backend may have processed it.
	idempotencyKey atomic.Bool
}

// trace returns a context in which transports report their attempts to s.
func (s *sending) trace(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { s.idempotencyKey.Store(false) },
		// net/http repeats a POST over HTTP/1.1 that has one of these headers
		// (https://go.dev/issue/19943). HTTP/2 spells them in lower case, and
		// repeats only what was not processed.
		WroteHeaderField: func(name string, _ []string) {
			if name == "Idempotency-Key" || name == "X-Idempotency-Key" {
				s.idempotencyKey.Store(true)
			}
		},
	})
}

var errNotRepeated = errors.New("not repeated: the backend may have processed it")

// prepare gives r the event's body. A transport can get it again if the backend
// has certainly not processed the request, such as a refused HTTP/2 stream.
func (s *sending) prepare(r *http.Request) {
	if s.token != "" {
		r.Header[deliveryHeader] = append(r.Header[deliveryHeader], s.token)
	}
	setBody(r, s.body)
	given := r.Body.(*payload) // a verified event is never empty
	r.GetBody = func() (io.ReadCloser, error) {
		if s.idempotencyKey.Load() {
			return nil, errNotRepeated
		}
		if r.Body != given || given.discarded() { // in r, or in a copy of r
			return nil, errors.New("not repeated: the body was replaced")
		}
		return newPayload(s.body), nil
	}
	if !placeholdersRead(r) {
		setBodyPlaceholders(r, s.body)
	}
}
