package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// check is one thing that an endpoint must do.
type check struct {
	name     string
	expected string
	run      func(c *checker) finding
}

// finding is what a check has found.
type finding struct {
	seen    string
	ok      bool
	warning bool   // ok only because of --insecure
	hint    string // what is likely wrong, if that is known
}

// checker sends requests to an endpoint as BuzzBip, or as others in its name.
type checker struct {
	options   *checkOptions
	client    *http.Client
	url       string
	secret    []byte
	delivered []byte // the event that was accepted
}

// accepted is what BuzzBip expects of an endpoint.
const accepted = "2xx within 10s"

// checks are in the order in which they are made.
var checks = []check{
	{"https", "HTTPS with a valid certificate", (*checker).https},
	{"accepted", "a signed event: " + accepted, (*checker).accepted},
	{"replayed", "the same event again: " + accepted + ", and no second delivery", (*checker).replayed},
	{"unknown type", "an event of a type that is not documented yet: " + accepted, (*checker).unknownType},
	{"unsigned", "an event without a signature: 4xx", (*checker).unsigned},
	{"malformed", "a signature that is none: 4xx", (*checker).malformed},
	{"forged", "an event that is signed with another secret: 4xx", (*checker).forged},
	{"tampered", "an event that was changed after it was signed: 4xx", (*checker).tampered},
	{"concurrent", "one event 8 times at once: 2xx for one at least, else 2xx or 5xx, and one delivery", (*checker).concurrent},
	{"retried", "a retry after the sender disconnected: " + accepted, (*checker).retried},
	{"wrong method", "a signed GET: 4xx", (*checker).wrongMethod},
	{"oversize", "a body that is too large: 4xx, or the connection closed", (*checker).oversized},
	{"slow body", "a body that does not arrive: 4xx, or the connection closed", (*checker).slowBody},
}

// prerequisites is how many of the checks come first because the others have no
// meaning where one of them fails.
const prerequisites = 2

// mustAccept is the finding where only a 2xx is right.
func mustAccept(r reply) finding {
	switch {
	case r.stored():
		return finding{seen: r.String(), ok: true, hint: storedHint}
	case r.success():
		return finding{seen: r.String(), ok: true}
	}
	return finding{seen: r.String(), hint: r.hint()}
}

// mustReject is the finding where only a 4xx is right.
func mustReject(r reply) finding {
	f := finding{seen: r.String(), ok: r.rejected()}
	if r.unrouted() {
		f.hint = unroutedHint + ": is there a buzzbip_webhook for this URL?"
	}
	return f
}

// mustRejectOrDisconnect is the finding where a 4xx is right, and the end of the
// connection too.
func mustRejectOrDisconnect(r reply) finding {
	f := mustReject(r)
	f.ok = f.ok || r.disconnected()
	return f
}

// eventOf returns a new event.
func (c *checker) eventOf(eventType, data string) []byte {
	body, err := newEvent(newEventID("evt_check_"), eventType, time.Now(), json.RawMessage(data))
	if err != nil {
		panic(err) // data is a constant
	}
	return body
}

func (c *checker) event() []byte { return c.eventOf(c.options.eventType, "{}") }

func (c *checker) sign(body []byte) string { return webhook.Sign(c.secret, body) }

func (c *checker) send(body []byte, signature string) reply {
	return post(c.client, c.url, signature, bytes.NewReader(body), senderTimeout)
}

func (c *checker) sendSigned(body []byte) reply { return c.send(body, c.sign(body)) }

func (c *checker) https() finding {
	if isPlainHTTP(c.url) {
		return c.undeliverable("plain HTTP, to which BuzzBip does not deliver", "BuzzBip needs HTTPS; for tests, --insecure does without")
	}
	strict := newClient(false)
	defer strict.CloseIdleConnections()
	r, err := http.NewRequest(http.MethodHead, c.url, nil)
	if err != nil {
		return finding{seen: err.Error()}
	}
	got := do(strict, r, senderTimeout)
	switch {
	case got.err == nil:
		return finding{seen: "a valid certificate", ok: true}
	case rejectedCertificate(got.err):
		return c.undeliverable("a certificate that BuzzBip would not accept: "+got.String(), got.hint())
	}
	return finding{seen: got.String(), hint: got.hint()}
}

// undeliverable is the finding where BuzzBip would not deliver: a warning with
// --insecure, else a failure.
func (c *checker) undeliverable(seen, hint string) finding {
	if c.options.insecure {
		return finding{seen: seen, ok: true, warning: true}
	}
	return finding{seen: seen, hint: hint}
}

func (c *checker) accepted() finding {
	c.delivered = c.event()
	return mustAccept(c.sendSigned(c.delivered))
}

// unknownDeliveries is added to what was seen where the answers do not say which
// are duplicates.
const unknownDeliveries = ": see for yourself that it was not processed twice"

func (c *checker) replayed() finding {
	got := c.sendSigned(c.delivered)
	f := mustAccept(got)
	if f.ok && got.result == "" {
		f.seen += unknownDeliveries
	}
	return f
}

func (c *checker) unknownType() finding {
	return mustAccept(c.sendSigned(c.eventOf("check.unknown", "{}")))
}

func (c *checker) unsigned() finding {
	return mustReject(c.send(c.event(), ""))
}

func (c *checker) malformed() finding {
	return mustReject(c.send(c.event(), "not-a-signature"))
}

func (c *checker) forged() finding {
	body := c.event()
	return mustReject(c.send(body, webhook.Sign(append([]byte("not "), c.secret...), body)))
}

func (c *checker) tampered() finding {
	body := c.event()
	tampered := bytes.Replace(body, []byte(`"data":{}`), []byte(`"data":{"amount":1}`), 1)
	return mustReject(c.send(tampered, c.sign(body)))
}

func (c *checker) concurrent() finding {
	body := c.event()
	signature := c.sign(body)
	replies := make([]reply, 8)
	var sending sync.WaitGroup
	for i := range replies {
		sending.Go(func() { replies[i] = c.send(body, signature) })
	}
	sending.Wait()
	// results counts the answers that name the result for the event
	successes, accepted, results, unexpected := 0, 0, 0, 0
	hint := ""
	for _, r := range replies {
		if r.success() {
			successes++
		} else if !r.serverError() {
			unexpected++
		}
		if r.success() && r.result != "" {
			results++
		}
		if r.success() && r.result == "" || r.stored() {
			accepted++
		}
		if r.stored() {
			hint = storedHint
		}
	}
	seen := summary(replies)
	if results == 0 {
		seen += unknownDeliveries
	}
	// a receiver that says which are duplicates must not have accepted it twice
	ok := successes > 0 && unexpected == 0 && (results == 0 || accepted <= 1)
	return finding{seen: seen, ok: ok, hint: hint}
}

// summary lists different answers, each with how often it was given.
func summary(replies []reply) string {
	var texts []string
	counts := make(map[string]int)
	for _, r := range replies {
		text := r.String()
		if counts[text]++; counts[text] == 1 {
			texts = append(texts, text)
		}
	}
	for i, text := range texts {
		if counts[text] > 1 {
			texts[i] = fmt.Sprintf("%d times %s", counts[text], text)
		}
	}
	return strings.Join(texts, ", ")
}

// retried disconnects early, and sends the event again.
func (c *checker) retried() finding {
	body := c.event()
	post(c.client, c.url, c.sign(body), bytes.NewReader(body), 20*time.Millisecond)
	got := c.sendSigned(body)
	for end := time.Now().Add(2 * senderTimeout); got.serverError() && time.Now().Before(end); {
		time.Sleep(time.Second) // it may be busy with the first request: BuzzBip retries too
		got = c.sendSigned(body)
	}
	return mustAccept(got)
}

func (c *checker) wrongMethod() finding {
	r, err := http.NewRequest(http.MethodGet, c.url, nil)
	if err != nil {
		return finding{seen: err.Error()}
	}
	r.Header.Set(webhook.SignatureHeader, c.sign(nil))
	return mustReject(do(c.client, r, senderTimeout))
}

func (c *checker) oversized() finding {
	body := c.eventOf(c.options.eventType, `{"text":"`+strings.Repeat("x", c.options.oversize)+`"}`)
	return mustRejectOrDisconnect(post(c.client, c.url, c.sign(body), bytes.NewReader(body), 2*senderTimeout))
}

// slowBody sends half of the body that it declares.
func (c *checker) slowBody() finding {
	body := c.event()
	reading, writing := io.Pipe()
	// without this, the client would wait for the body and not disconnect
	timeout := time.AfterFunc(c.options.slow, func() { writing.CloseWithError(context.DeadlineExceeded) })
	defer timeout.Stop()
	defer writing.Close()
	r, err := http.NewRequest(http.MethodPost, c.url, reading)
	if err != nil {
		return finding{seen: err.Error()}
	}
	r.ContentLength = int64(len(body))
	r.Header.Set(webhook.SignatureHeader, c.sign(body))
	go func() { _, _ = writing.Write(body[:len(body)/2]) }()
	start := time.Now()
	got := do(c.client, r, c.options.slow)
	f := mustRejectOrDisconnect(got)
	if !got.timedOut() {
		f.seen += fmt.Sprintf(" after %s", time.Since(start).Round(100*time.Millisecond))
	}
	return f
}
