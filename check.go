package buzzbip

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
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
this plugin, or a receiver that you wrote yourself. One line for each check says
what was expected and what was seen. Fails if a check fails.

The endpoint's backend gets a few events whose ids begin with evt_check_. What it
does with copies of one event shows only in part: this plugin says so in its
answers, of other receivers look at what they stored.`,
		Example: `  caddy buzzbip check https://hooks.example.com/webhooks/buzzbip --secret-file /run/secrets/buzzbip
  caddy buzzbip check https://localhost:8443/webhooks/buzzbip --insecure
  caddy buzzbip check https://hooks.example.com/webhooks/buzzbip --json | jq '.checks[] | select(.ok == false)'`,
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
	run      func(p *player) (seen string, ok bool)
}

// outcome is the line of a report for one check.
type outcome struct {
	Name     string  `json:"name"`
	OK       bool    `json:"ok"`
	Expected string  `json:"expected"`
	Seen     string  `json:"seen"`
	Seconds  float64 `json:"seconds"`
}

// checkReport is what `caddy buzzbip check --json` prints.
type checkReport struct {
	URL    string    `json:"url"`
	Failed int       `json:"failed"`
	Checks []outcome `json:"checks"`
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
	{"unknown type", "an event of a type that is not documented yet: " + accepted, func(p *player) (string, bool) {
		body := p.eventOf("check.unknown", "{}")
		return sees(p.send(body, Sign(p.secret, body)), reply.success)
	}},
	{"unsigned", "an event without a signature: 4xx", func(p *player) (string, bool) {
		return sees(p.send(p.event(), ""), reply.refused)
	}},
	{"malformed", "a signature that is none: 4xx", func(p *player) (string, bool) {
		return sees(p.send(p.event(), "not-a-signature"), reply.refused)
	}},
	{"forged", "an event that is signed with another secret: 4xx", func(p *player) (string, bool) {
		body := p.event()
		return sees(p.send(body, Sign(append([]byte("not "), p.secret...), body)), reply.refused)
	}},
	{"tampered", "an event that was changed after it was signed: 4xx", func(p *player) (string, bool) {
		body := p.event()
		signature := Sign(p.secret, body)
		return sees(p.send(bytes.Replace(body, []byte(`"data":{}`), []byte(`"data":{"amount":1}`), 1), signature), reply.refused)
	}},
	{"concurrent", "8 copies of an event at once: 2xx for one at least, else 2xx or 5xx, and one delivery", (*player).concurrent},
	{"retried", "a retry after the sender hung up: " + accepted, (*player).retried},
	{"wrong method", "a signed GET: 4xx", (*player).wrongMethod},
	{"oversize", "a body that is too large: 4xx, or the connection closed", (*player).oversized},
	{"slow body", "a body that does not arrive: 4xx, or the connection closed", (*player).slowBody},
}

// sees compares a reply with what is right.
func sees(r reply, right func(reply) bool) (string, bool) { return r.String(), right(r) }

func (r reply) refused() bool { return r.err == nil && r.status/100 == 4 }

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

// do makes a request and hangs up after a time.
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
	return reply{sent: true, status: res.StatusCode, result: res.Header.Get(ResultHeader), header: res.Header, body: body}
}

func (p *player) https() (string, bool) {
	if !strings.HasPrefix(p.url, "https:") {
		return "plain HTTP, which BuzzBip refuses", p.insecure
	}
	strict := newSender(false)
	defer strict.CloseIdleConnections()
	r, err := http.NewRequest(http.MethodHead, p.url, nil)
	if err != nil {
		return err.Error(), false
	}
	got := do(strict, r, senderTimeout)
	if invalid := (*tls.CertificateVerificationError)(nil); errors.As(got.err, &invalid) && p.insecure {
		return "a certificate that BuzzBip would not accept, as --insecure allows", true
	}
	if got.err != nil {
		return got.String(), false
	}
	return "a valid certificate", true
}

func (p *player) accepted() (string, bool) {
	p.delivered = p.event()
	return sees(p.send(p.delivered, Sign(p.secret, p.delivered)), reply.success)
}

func (p *player) replayed() (string, bool) {
	got := p.send(p.delivered, Sign(p.secret, p.delivered))
	if got.success() && got.result == "" {
		return got.String() + ": see for yourself that it was not processed twice", true
	}
	return sees(got, reply.success)
}

func (p *player) concurrent() (string, bool) {
	body := p.event()
	signature := Sign(p.secret, body)
	replies := make([]reply, 8)
	var copies sync.WaitGroup
	for i := range replies {
		copies.Go(func() { replies[i] = p.send(body, signature) })
	}
	copies.Wait()
	var seen []string
	counts := make(map[string]int)
	successes, others, told := 0, 0, 0
	for _, r := range replies {
		text := r.String()
		if counts[text]++; counts[text] == 1 {
			seen = append(seen, text)
		}
		switch {
		case r.success():
			successes++
			if r.result != "" {
				told++
			}
		case r.err != nil || r.status/100 != 5:
			others++
		}
	}
	for i, text := range seen {
		seen[i] = fmt.Sprintf("%d times %s", counts[text], text)
	}
	text := strings.Join(seen, ", ")
	if told == 0 {
		text += ": see for yourself that it was not processed twice"
	}
	// who says which are duplicates must have delivered one and no more
	return text, successes > 0 && others == 0 && (told == 0 || successes-told <= 1)
}

// retried hangs up as soon as the request is on its way.
func (p *player) retried() (string, bool) {
	body := p.event()
	signature := Sign(p.secret, body)
	post(p.client, p.url, signature, bytes.NewReader(body), 20*time.Millisecond)
	got := p.send(body, signature)
	for end := time.Now().Add(2 * senderTimeout); got.err == nil && got.status/100 == 5 && time.Now().Before(end); {
		time.Sleep(time.Second) // it may be busy with the first copy: BuzzBip comes again too
		got = p.send(body, signature)
	}
	return sees(got, reply.success)
}

func (p *player) wrongMethod() (string, bool) {
	r, err := http.NewRequest(http.MethodGet, p.url, nil)
	if err != nil {
		return err.Error(), false
	}
	r.Header.Set(SignatureHeader, Sign(p.secret, nil))
	return sees(do(p.client, r, senderTimeout), reply.refused)
}

// closed reports whether an endpoint ended a request without an answer.
func (r reply) closed() bool { return r.err != nil && !errors.As(r.err, new(unansweredError)) }

type unansweredError struct{ within time.Duration }

func (e unansweredError) Error() string { return fmt.Sprintf("no answer within %s", e.within) }

func (p *player) oversized() (string, bool) {
	body := p.eventOf(p.typ, `{"text":"`+strings.Repeat("x", p.oversize)+`"}`)
	got := post(p.client, p.url, Sign(p.secret, body), bytes.NewReader(body), 2*senderTimeout)
	return sees(got, func(r reply) bool { return r.refused() || r.closed() })
}

// slowBody promises more than it sends.
func (p *player) slowBody() (string, bool) {
	body := p.event()
	signature := Sign(p.secret, body)
	reading, writing := io.Pipe()
	// the client would wait for the body longer than for an answer
	giveUp := time.AfterFunc(p.slow, func() { writing.CloseWithError(context.DeadlineExceeded) })
	defer giveUp.Stop()
	defer writing.Close()
	r, err := http.NewRequest(http.MethodPost, p.url, reading)
	if err != nil {
		return err.Error(), false
	}
	r.ContentLength = int64(len(body))
	r.Header.Set(SignatureHeader, signature)
	go func() { _, _ = writing.Write(body[:len(body)/2]) }()
	start := time.Now()
	got := do(p.client, r, p.slow)
	seen, ok := sees(got, func(r reply) bool { return r.refused() || r.closed() })
	return fmt.Sprintf("%s after %s", seen, time.Since(start).Round(100*time.Millisecond)), ok
}

// play makes the checks, and tells of each as soon as it is done.
func (p *player) play(ctx context.Context, screen *screen) checkReport {
	report := checkReport{URL: p.url, Checks: []outcome{}}
	for i, c := range checks {
		if ctx.Err() != nil {
			break
		}
		stop := screen.wait(c.name)
		start := time.Now()
		seen, ok := c.run(p)
		stop()
		o := outcome{c.name, ok, c.expected, seen, time.Since(start).Seconds()}
		report.Checks = append(report.Checks, o)
		screen.show(o)
		if !ok {
			report.Failed++
			if i < 2 { // the rest would tell nothing
				screen.say("nothing else was checked: first make it accept a signed event")
				break
			}
		}
	}
	return report
}

// screen is where people see how a check goes. Colours and the line that tells
// what is being waited for are for terminals only.
type screen struct {
	out, progress io.Writer
	silent        bool
	colours       bool
	terminal      bool
}

func newScreen(out, progress io.Writer, silent bool) *screen {
	return &screen{
		out: out, progress: progress, silent: silent,
		colours:  isTerminal(out) && os.Getenv("NO_COLOR") == "",
		terminal: isTerminal(progress),
	}
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

func (s *screen) show(o outcome) {
	if s.silent {
		return
	}
	mark, colour := "ok  ", "\x1b[32m"
	if !o.OK {
		mark, colour = "FAIL", "\x1b[31m"
	}
	if s.colours {
		mark = colour + mark + "\x1b[0m"
	}
	fmt.Fprintf(s.out, "%s  %-12s  %s\n                    seen: %s\n", mark, o.Name, o.Expected, o.Seen)
}

func (s *screen) say(text string) {
	if !s.silent {
		fmt.Fprintln(s.out, text)
	}
}

// wait shows how long a check has lasted, once that is a second, until it is
// stopped.
func (s *screen) wait(name string) (stop func()) {
	if !s.terminal {
		return func() {}
	}
	ended := make(chan struct{})
	var shown sync.WaitGroup
	shown.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for seconds := 1; ; seconds++ {
			select {
			case <-ended:
				if seconds > 1 {
					fmt.Fprint(s.progress, "\r\x1b[K")
				}
				return
			case <-tick.C:
				fmt.Fprintf(s.progress, "\r....  %-12s  waiting, %ds\x1b[K", name, seconds)
			}
		}
	})
	return func() {
		close(ended)
		shown.Wait()
	}
}
