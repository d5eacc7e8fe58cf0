package cli

import (
	"context"
	"crypto/tls"
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

// senderTimeout is when BuzzBip disconnects (developer documentation, "Webhooks",
// updated 2026-06-01: "within 10 seconds").
const senderTimeout = 10 * time.Second

// maxReply bounds how much of the body of an answer is read, in bytes.
const maxReply = 64 << 10

// reply is the answer of an endpoint, or why there is none.
type reply struct {
	sent     bool // the whole request, or enough of it for an answer
	status   int
	result   string // of webhook.ResultHeader
	location string // where it redirects to, or empty
	header   http.Header
	body     []byte
	err      error // if there is no answer
}

func (r reply) success() bool { return r.err == nil && r.status/100 == 2 }

// stored reports whether the event is in an inbox: it is acknowledged, but the backend
// has not accepted it.
func (r reply) stored() bool { return r.success() && r.result == string(webhook.ResultStored) }

func (r reply) rejected() bool { return r.err == nil && r.status/100 == 4 }

func (r reply) serverError() bool { return r.err == nil && r.status/100 == 5 }

// timedOut reports whether the endpoint neither answered nor disconnected in time.
func (r reply) timedOut() bool { return errors.As(r.err, new(unansweredError)) }

// disconnected reports whether the request ended without an answer before the
// timeout.
func (r reply) disconnected() bool { return r.err != nil && !r.timedOut() }

func (r reply) String() string {
	if r.err != nil {
		return withoutURL(r.err).Error()
	}
	text := fmt.Sprintf("%d %s", r.status, http.StatusText(r.status))
	if r.result != "" {
		text += " (" + r.result + ")"
	}
	return strings.TrimSpace(text)
}

// newClient returns a client that, as BuzzBip, follows no redirects.
func newClient(insecure bool) *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: insecure}
	transport.MaxConnsPerHost = 0
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// post sends a body with a signature, or without the header if it is empty.
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

// do sends a request and disconnects after timeout.
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

// withoutURL drops the URL from an error: the user has just typed it.
func withoutURL(err error) error {
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

// checkURL returns an error that says how to write a URL, if text is none.
func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return fmt.Errorf("%q is not a URL: write it as https://hooks.example.com/webhooks/buzzbip", text)
	}
	return nil
}

func isPlainHTTP(to string) bool {
	u, err := url.Parse(to)
	return err == nil && u.Scheme == "http"
}
