package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

func withHint(err error, hint string) error {
	if hint == "" {
		return err
	}
	return fmt.Errorf("%w\n%s", err, hint)
}

// reply is the answer of an endpoint.
type reply struct {
	sent     bool // the whole request, or enough of it for an answer
	status   int
	result   string // of webhook.ResultHeader
	location string // where it redirects to, or empty
	header   http.Header
	body     []byte
	err      error
}

func (r reply) success() bool { return r.err == nil && r.status/100 == 2 }

func (r reply) String() string {
	if r.err != nil {
		return plain(r.err).Error()
	}
	text := fmt.Sprintf("%d %s", r.status, http.StatusText(r.status))
	if r.result != "" {
		text += " (" + r.result + ")"
	}
	return strings.TrimSpace(text)
}

// maxReply is how much of an answer is read, in bytes.
const maxReply = 64 << 10

// post sends a body. Without a signature there is no header.
func post(client *http.Client, to, signature string, body io.Reader, timeout time.Duration) reply {
	r, err := http.NewRequest(http.MethodPost, to, body)
	if err != nil {
		return reply{err: err}
	}
	r.Header.Set("Content-Type", "application/json")
	if signature != "" {
		r.Header.Set(webhook.SignatureHeader, signature)
	}
	return do(client, r, timeout)
}

// plain drops the URL, which the user has just typed, from an error.
func plain(err error) error {
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

// do makes a request and disconnects after a time.
func do(client *http.Client, r *http.Request, timeout time.Duration) reply {
	var sent atomic.Bool
	ctx, cancel := context.WithTimeout(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		WroteRequest: func(written httptrace.WroteRequestInfo) { sent.Store(written.Err == nil) },
	}), timeout)
	defer cancel()
	res, err := client.Do(r.WithContext(ctx))
	if errors.Is(err, context.DeadlineExceeded) {
		err = unansweredError{timeout}
	}
	if err != nil {
		return reply{sent: sent.Load(), err: err}
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(res.Body, maxReply)) // the status is what counts
	got := reply{sent: true, status: res.StatusCode, result: res.Header.Get(webhook.ResultHeader), header: res.Header, body: body}
	if to, err := res.Location(); err == nil {
		got.location = to.String()
	}
	return got
}

type unansweredError struct{ within time.Duration }

func (e unansweredError) Error() string { return fmt.Sprintf("no answer within %s", e.within) }
