package cli

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"syscall"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// statusHints say what is likely wrong with an endpoint that does not accept a
// genuine event.
var statusHints = map[int]string{
	http.StatusBadRequest: `the envelope of the event is invalid, or the body was cut off: "caddy buzzbip explain" says which`,
	http.StatusUnauthorized: `the endpoint does not accept this signature: is the secret that was given here the endpoint's? ` +
		`"caddy buzzbip explain" finds mistakes in a secret`,
	http.StatusForbidden:             "the event is older than max_age or ahead of the clock, or a firewall before the endpoint rejects it",
	http.StatusNotFound:              "no route of the endpoint, or of its backend, has this URL: compare its host and path with the Caddyfile",
	http.StatusMethodNotAllowed:      "the endpoint takes no POST at this URL: compare its path with the Caddyfile",
	http.StatusRequestEntityTooLarge: "the body is larger than max_body_size, or than a proxy before Caddy allows",
	http.StatusInternalServerError:   "the backend failed: see its log",
	http.StatusBadGateway:            "the backend is down or cannot be reached, or no handler after buzzbip_webhook answers: see Caddy's log",
	http.StatusGatewayTimeout:        "the backend took longer than delivery_timeout, or than a proxy before Caddy waits",
}

// hint returns what is likely wrong with an endpoint that did not accept a genuine
// event, and what to do, or an empty string if that is unknown.
func (r reply) hint() string {
	switch {
	case r.err != nil:
		return connectionHint(r.err)
	case r.status == http.StatusBadRequest && bytes.Contains(r.body, []byte("HTTP request to an HTTPS server")):
		return "this port serves HTTPS: use https://"
	case r.status/100 == 3:
		if r.location != "" {
			return "BuzzBip does not follow redirects: use the URL that this one leads to, " + r.location
		}
		return "BuzzBip does not follow redirects: use the final URL"
	case r.status == http.StatusServiceUnavailable:
		hint := "the store does not answer or is full, or the backend is overloaded: see Caddy's log"
		if r.result == string(webhook.ResultInFlight) {
			hint = "this event is still being delivered"
		}
		if seconds, err := strconv.Atoi(r.header.Get("Retry-After")); err == nil {
			hint += "; try again after " + strconv.Itoa(seconds) + "s"
		}
		return hint
	}
	return statusHints[r.status]
}

// rejectedCertificate reports whether the connection failed because of a
// certificate that --insecure would accept.
func rejectedCertificate(err error) bool {
	return errors.As(err, new(*tls.CertificateVerificationError))
}

// wsaECONNREFUSED is what Windows says for ECONNREFUSED. Elsewhere no error has
// this number.
const wsaECONNREFUSED = syscall.Errno(10061)

func connectionHint(err error) string {
	if rejectedCertificate(err) {
		return "BuzzBip would not accept this certificate; for tests, --insecure does"
	}
	if alert := (*net.OpError)(nil); errors.As(err, &alert) && alert.Op == "remote error" { // as crypto/tls reports an alert
		return "the server has no certificate for this host: use the name of its site"
	}
	switch {
	case errors.Is(err, http.ErrSchemeMismatch):
		return "this port serves plain HTTP: BuzzBip needs HTTPS"
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, wsaECONNREFUSED):
		return "nothing listens there: is Caddy running, and is the port right?"
	}
	return ""
}

// unrouted reports whether the answer looks like Caddy's where no route matches,
// which is a success.
func (r reply) unrouted() bool {
	return r.status == http.StatusOK && len(r.body) == 0 && r.result == "" && r.header.Get("Server") == "Caddy" && r.header.Get("Via") == ""
}

const unroutedHint = "Caddy answers 200 with no content where no route matches"

// storedHint says what the result stored means.
const storedHint = `the event is in the inbox, which delivers it later, and BuzzBip will not send it again; ` +
	`"caddy buzzbip inbox list", on the machine of Caddy, says why`

// withHint adds a hint, which may be empty, to an error.
func withHint(err error, hint string) error {
	if hint == "" {
		return err
	}
	return fmt.Errorf("%w\n%s", err, hint)
}
