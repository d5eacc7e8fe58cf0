package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
	"github.com/spf13/cobra"
)

func checkCommand() *cobra.Command {
	var secrets secretFlags
	var typ string
	var insecure, asJSON bool
	var oversize int
	var slow time.Duration
	cmd := &cobra.Command{
		Use:   "check <url>",
		Short: "Plays BuzzBip against an endpoint, and reports what it does wrong",
		Long: `Sends what BuzzBip sends, and what others may send in its name, to an endpoint:
this plugin, or a receiver that you wrote yourself. For each check it prints what
was expected and what was seen:

  ok    the check passed
  warn  it passed only because of --insecure: BuzzBip itself would not deliver
  FAIL  it failed; a hint says what is likely wrong, where that is known

Exit code: 0 if no check failed, also with a warning; else 1.

With --json it prints one object with url, failed and warnings (numbers), and
checks, a list of objects with name, ok, warning, expected, seen, hint and
seconds. ok is false for what failed, and only for that; warning and hint are left
out where there is none.

The endpoint's backend gets a few events whose IDs begin with evt_check_. What it
does with duplicates shows only in part: this plugin says so in its answers; for
other receivers, look at what they stored.`,
		Example: `  caddy buzzbip check https://hooks.example.com/webhooks/buzzbip --secret-file /run/secrets/buzzbip
  caddy buzzbip check https://localhost:8443/webhooks/buzzbip --insecure
  caddy buzzbip check https://hooks.example.com/webhooks/buzzbip --json | jq '.checks[] | select(.ok == false or .warning)'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkURL(args[0]); err != nil {
				return err
			}
			if oversize <= 0 || slow <= 0 {
				return errors.New("--oversize and --slow must be greater than zero")
			}
			secret, err := secrets.one(cmd)
			if err != nil {
				return err
			}
			p := &player{client: newSender(insecure), url: args[0], secret: secret, typ: typ, insecure: insecure, oversize: oversize, slow: slow}
			defer p.client.CloseIdleConnections()
			screen := newScreen(cmd.OutOrStdout(), cmd.ErrOrStderr(), asJSON)
			report := p.play(cmd.Context(), screen)
			if asJSON {
				if err := json.NewEncoder(cmd.OutOrStdout()).Encode(report); err != nil {
					return err
				}
			}
			if report.Failed > 0 {
				return fmt.Errorf("%d of %d checks failed", report.Failed, len(report.Checks))
			}
			if report.Warnings > 0 {
				screen.say("\nno check failed, but BuzzBip itself would not deliver to this URL: see the warning")
			} else {
				screen.say("\nno check failed")
			}
			return nil
		},
	}
	secrets.add(cmd)
	cmd.Flags().StringVar(&typ, "type", "message.received", "type of the events")
	cmd.Flags().BoolVar(&insecure, "insecure", false, "accept plain HTTP and any certificate, for tests; BuzzBip does not")
	cmd.Flags().IntVar(&oversize, "oversize", 8<<20, "size of the body that is too large, in bytes")
	cmd.Flags().DurationVar(&slow, "slow", 30*time.Second, "how long an endpoint may wait for a body that does not arrive")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// check is one thing that an endpoint must do.
type check struct {
	name     string
	expected string
	run      func(p *player) finding
}

// finding is how a check went.
type finding struct {
	seen    string
	ok      bool
	warning bool   // ok for a test, but BuzzBip would not deliver
	hint    string // what is likely wrong, if that is known
}

// outcome is the line of a report for one check.
type outcome struct {
	Name     string  `json:"name"`
	OK       bool    `json:"ok"`
	Warning  bool    `json:"warning,omitempty"`
	Expected string  `json:"expected"`
	Seen     string  `json:"seen"`
	Hint     string  `json:"hint,omitempty"`
	Seconds  float64 `json:"seconds"`
}

// checkReport is what `caddy buzzbip check --json` prints.
type checkReport struct {
	URL      string    `json:"url"`
	Failed   int       `json:"failed"`
	Warnings int       `json:"warnings"`
	Checks   []outcome `json:"checks"`
}

// player plays BuzzBip against an endpoint.
type player struct {
	client   *http.Client
	url      string
	secret   []byte
	typ      string
	insecure bool
	oversize int
	slow     time.Duration

	delivered []byte // an event that was accepted
}

const accepted = "2xx within 10s"

// checks are in the order in which they are made: the first finds out whether
// there is anything to check.
var checks = []check{
	{"https", "HTTPS with a valid certificate", (*player).https},
	{"accepted", "a signed event: " + accepted, (*player).accepted},
	{"replayed", "the same event again: " + accepted + ", and no second delivery", (*player).replayed},
	{"unknown type", "an event of a type that is not documented yet: " + accepted, func(p *player) finding {
		body := p.eventOf("check.unknown", "{}")
		return accepts(p.send(body, webhook.Sign(p.secret, body)))
	}},
	{"unsigned", "an event without a signature: 4xx", func(p *player) finding {
		return rejects(p.send(p.event(), ""))
	}},
	{"malformed", "a signature that is none: 4xx", func(p *player) finding {
		return rejects(p.send(p.event(), "not-a-signature"))
	}},
	{"forged", "an event that is signed with another secret: 4xx", func(p *player) finding {
		body := p.event()
		return rejects(p.send(body, webhook.Sign(append([]byte("not "), p.secret...), body)))
	}},
	{"tampered", "an event that was changed after it was signed: 4xx", func(p *player) finding {
		body := p.event()
		signature := webhook.Sign(p.secret, body)
		return rejects(p.send(bytes.Replace(body, []byte(`"data":{}`), []byte(`"data":{"amount":1}`), 1), signature))
	}},
	{"concurrent", "one event 8 times at once: 2xx for one at least, else 2xx or 5xx, and one delivery", (*player).concurrent},
	{"retried", "a retry after the sender disconnected: " + accepted, (*player).retried},
	{"wrong method", "a signed GET: 4xx", (*player).wrongMethod},
	{"oversize", "a body that is too large: 4xx, or the connection closed", (*player).oversized},
	{"slow body", "a body that does not arrive: 4xx, or the connection closed", (*player).slowBody},
}

// accepts is the finding where only a 2xx is right.
func accepts(r reply) finding {
	if r.success() {
		return finding{seen: r.String(), ok: true}
	}
	return finding{seen: r.String(), hint: r.hint()}
}

// rejects is the finding where only a 4xx is right.
func rejects(r reply) finding {
	f := finding{seen: r.String(), ok: r.rejected()}
	if r.unrouted() {
		f.hint = unroutedHint + ": is there a buzzbip_webhook for this URL?"
	}
	return f
}

// rejectsOrCloses is the finding where the end of the connection is right too.
func rejectsOrCloses(r reply) finding {
	f := rejects(r)
	f.ok = f.ok || r.closed()
	return f
}

func (r reply) rejected() bool { return r.err == nil && r.status/100 == 4 }

func (p *player) eventOf(typ, data string) []byte {
	body, err := newEvent(newEventID("evt_check_"), typ, time.Now(), json.RawMessage(data))
	if err != nil {
		panic(err) // data is a constant
	}
	return body
}

func (p *player) event() []byte { return p.eventOf(p.typ, "{}") }

func (p *player) send(body []byte, signature string) reply {
	return post(p.client, p.url, signature, bytes.NewReader(body), senderTimeout)
}

func (p *player) https() finding {
	if isPlainHTTP(p.url) {
		return p.insecurely("plain HTTP, to which BuzzBip does not deliver", "BuzzBip needs HTTPS; for tests, --insecure does without")
	}
	strict := newSender(false)
	defer strict.CloseIdleConnections()
	r, err := http.NewRequest(http.MethodHead, p.url, nil)
	if err != nil {
		return finding{seen: err.Error()}
	}
	got := do(strict, r, senderTimeout)
	switch {
	case got.err == nil:
		return finding{seen: "a valid certificate", ok: true}
	case rejectedCertificate(got.err):
		return p.insecurely("a certificate that BuzzBip would not accept: "+got.String(), got.hint())
	}
	return finding{seen: got.String(), hint: got.hint()}
}

// insecurely is the finding where BuzzBip would not deliver, but --insecure does.
func (p *player) insecurely(seen, hint string) finding {
	if p.insecure {
		return finding{seen: seen, ok: true, warning: true}
	}
	return finding{seen: seen, hint: hint}
}

func (p *player) accepted() finding {
	p.delivered = p.event()
	return accepts(p.send(p.delivered, webhook.Sign(p.secret, p.delivered)))
}

func (p *player) replayed() finding {
	got := p.send(p.delivered, webhook.Sign(p.secret, p.delivered))
	f := accepts(got)
	if f.ok && got.result == "" {
		f.seen += ": see for yourself that it was not processed twice"
	}
	return f
}

func (p *player) concurrent() finding {
	body := p.event()
	signature := webhook.Sign(p.secret, body)
	replies := make([]reply, 8)
	var sending sync.WaitGroup
	for i := range replies {
		sending.Go(func() { replies[i] = p.send(body, signature) })
	}
	sending.Wait()
	var seen []string
	counts := make(map[string]int)
	successes, others, duplicates := 0, 0, 0
	for _, r := range replies {
		text := r.String()
		if counts[text]++; counts[text] == 1 {
			seen = append(seen, text)
		}
		switch {
		case r.success():
			successes++
			if r.result != "" {
				duplicates++
			}
		case r.err != nil || r.status/100 != 5:
			others++
		}
	}
	for i, text := range seen {
		if counts[text] > 1 {
			seen[i] = fmt.Sprintf("%d times %s", counts[text], text)
		}
	}
	text := strings.Join(seen, ", ")
	if duplicates == 0 {
		text += ": see for yourself that it was not processed twice"
	}
	// a receiver that says which are duplicates must have delivered one and no more
	return finding{seen: text, ok: successes > 0 && others == 0 && (duplicates == 0 || successes-duplicates <= 1)}
}

// retried disconnects as soon as the request is on its way.
func (p *player) retried() finding {
	body := p.event()
	signature := webhook.Sign(p.secret, body)
	post(p.client, p.url, signature, bytes.NewReader(body), 20*time.Millisecond)
	got := p.send(body, signature)
	for end := time.Now().Add(2 * senderTimeout); got.err == nil && got.status/100 == 5 && time.Now().Before(end); {
		time.Sleep(time.Second) // it may be busy with the first request: BuzzBip retries too
		got = p.send(body, signature)
	}
	return accepts(got)
}

func (p *player) wrongMethod() finding {
	r, err := http.NewRequest(http.MethodGet, p.url, nil)
	if err != nil {
		return finding{seen: err.Error()}
	}
	r.Header.Set(webhook.SignatureHeader, webhook.Sign(p.secret, nil))
	return rejects(do(p.client, r, senderTimeout))
}

// closed reports whether an endpoint ended a request without an answer.
func (r reply) closed() bool { return r.err != nil && !errors.As(r.err, new(unansweredError)) }

func (p *player) oversized() finding {
	body := p.eventOf(p.typ, `{"text":"`+strings.Repeat("x", p.oversize)+`"}`)
	return rejectsOrCloses(post(p.client, p.url, webhook.Sign(p.secret, body), bytes.NewReader(body), 2*senderTimeout))
}

// slowBody promises more than it sends.
func (p *player) slowBody() finding {
	body := p.event()
	signature := webhook.Sign(p.secret, body)
	reading, writing := io.Pipe()
	// the client would wait for the body longer than for an answer
	giveUp := time.AfterFunc(p.slow, func() { writing.CloseWithError(context.DeadlineExceeded) })
	defer giveUp.Stop()
	defer writing.Close()
	r, err := http.NewRequest(http.MethodPost, p.url, reading)
	if err != nil {
		return finding{seen: err.Error()}
	}
	r.ContentLength = int64(len(body))
	r.Header.Set(webhook.SignatureHeader, signature)
	go func() { _, _ = writing.Write(body[:len(body)/2]) }()
	start := time.Now()
	got := do(p.client, r, p.slow)
	f := rejectsOrCloses(got)
	if !errors.As(got.err, new(unansweredError)) {
		f.seen += fmt.Sprintf(" after %s", time.Since(start).Round(100*time.Millisecond))
	}
	return f
}

// play makes the checks, and shows each as soon as it is done.
func (p *player) play(ctx context.Context, screen *screen) checkReport {
	report := checkReport{URL: p.url, Checks: []outcome{}}
	for i, c := range checks {
		if ctx.Err() != nil {
			break
		}
		stop := screen.wait(c.name)
		start := time.Now()
		f := c.run(p)
		stop()
		o := outcome{c.name, f.ok, f.warning, c.expected, f.seen, f.hint, time.Since(start).Seconds()}
		report.Checks = append(report.Checks, o)
		screen.show(o)
		if o.Warning {
			report.Warnings++
		}
		if !o.OK {
			report.Failed++
			if i < 2 { // the others would show nothing
				screen.say("nothing else was checked")
				break
			}
		}
	}
	return report
}
