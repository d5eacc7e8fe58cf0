package cli

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
	"github.com/spf13/cobra"
)

// senderTimeout is when BuzzBip disconnects (developer documentation, "Webhooks",
// updated 2026-06-01: "within 10 seconds").
const senderTimeout = 10 * time.Second

// newEventID returns an ID that BuzzBip does not use.
func newEventID(prefix string) string { return prefix + strings.ToLower(rand.Text()[:12]) }

// newEvent returns the body of an event, as BuzzBip documents it.
func newEvent(id, typ string, created time.Time, data json.RawMessage) ([]byte, error) {
	return json.Marshal(struct {
		ID        string          `json:"id"`
		Type      string          `json:"type"`
		CreatedAt string          `json:"createdAt"`
		Data      json.RawMessage `json:"data"`
	}{id, typ, created.UTC().Format(time.RFC3339), data})
}

// newSender returns a client that behaves as BuzzBip does: it follows no
// redirects.
func newSender(insecure bool) *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: insecure}
	transport.MaxConnsPerHost = 0
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// checkURL returns an error that says how to write a URL.
func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return fmt.Errorf("%q is not a URL: write it as https://hooks.example.com/webhooks/buzzbip", text)
	}
	return nil
}

func sendCommand() *cobra.Command {
	var secrets secretFlags
	var id, typ, data, created, bodyFile string
	var timeout time.Duration
	var insecure bool
	cmd := &cobra.Command{
		Use:   "send <url>",
		Short: "Builds and posts a signed event",
		Long: `Sends an event as BuzzBip does, and shows the answer.

The event is a new one, made from the flags, or what is in --body-file, byte for
byte. Nothing is sent again: to see a duplicate, give the same --id and
--created-at twice. Plain HTTP works too, for tests: BuzzBip needs HTTPS.

Exit code: 0 if the answer is a 2xx; 1 if it is another or there is none, with a
hint where the status has a usual cause.`,
		Example: `  caddy buzzbip send https://hooks.example.com/webhooks/buzzbip
  caddy buzzbip send https://localhost:8443/webhooks/buzzbip --insecure --type contact.created --data '{"contact":{"id":"con_1"}}'
  caddy buzzbip send https://hooks.example.com/webhooks/buzzbip --body-file captured.json --secret-file secret.txt`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkURL(args[0]); err != nil {
				return err
			}
			var body []byte
			var err error
			if bodyFile != "" {
				for _, flag := range []string{"id", "type", "data", "created-at"} {
					if cmd.Flags().Changed(flag) {
						return fmt.Errorf("--%s is for new events: leave it out, or --body-file", flag)
					}
				}
				body, err = readBody(cmd, bodyFile, secrets)
			} else {
				at := time.Now()
				if created != "" {
					if at, err = webhook.ParseTime([]byte(created)); err != nil {
						return fmt.Errorf("--created-at %q is not a time such as 2026-06-01T14:32:00Z", created)
					}
				}
				if id == "" {
					id = newEventID("evt_test_")
				}
				if body, err = newEvent(id, typ, at, json.RawMessage(data)); err != nil {
					err = errors.New("--data is not valid JSON")
				}
			}
			if err != nil {
				return err
			}
			secret, err := secrets.one(cmd)
			if err != nil {
				return err
			}
			if isPlainHTTP(args[0]) {
				fmt.Fprintln(cmd.ErrOrStderr(), "note: BuzzBip does not deliver to plain HTTP; this is a test only")
			}
			start := time.Now()
			got := post(newSender(insecure), args[0], webhook.Sign(secret, body), bytes.NewReader(body), timeout)
			out := cmd.OutOrStdout()
			if bodyFile == "" && got.sent {
				fmt.Fprintf(out, "sent     %s %s\n", typ, id)
			}
			if got.err != nil {
				return withHint(fmt.Errorf("no answer after %s: %w", time.Since(start).Round(time.Millisecond), plain(got.err)), got.hint())
			}
			fmt.Fprintf(out, "answered %s in %s\n", got, time.Since(start).Round(time.Millisecond))
			if len(bytes.TrimSpace(got.body)) > 0 {
				fmt.Fprintf(out, "\n%s\n", bytes.TrimRight(got.body, "\n"))
			}
			if !got.success() {
				return withHint(errors.New("BuzzBip would send the event again: only 2xx is a success"), got.hint())
			}
			if got.unrouted() {
				fmt.Fprintln(cmd.ErrOrStderr(), "note: "+unroutedHint+": check that the backend got the event")
			}
			return nil
		},
	}
	secrets.add(cmd)
	cmd.Flags().StringVar(&id, "id", "", "ID of the event (default a new one)")
	cmd.Flags().StringVar(&typ, "type", "message.received", "type of the event")
	cmd.Flags().StringVar(&data, "data", "{}", "data of the event, JSON")
	cmd.Flags().StringVar(&created, "created-at", "", "when the event was created, such as 2026-06-01T14:32:00Z (default now)")
	cmd.Flags().StringVar(&bodyFile, "body-file", "", "`file` with the body to send, instead of a new event; - is standard input")
	cmd.Flags().DurationVar(&timeout, "timeout", senderTimeout, "when to disconnect; BuzzBip does after 10s")
	cmd.Flags().BoolVar(&insecure, "insecure", false, "accept any certificate, for tests; BuzzBip does not")
	return cmd
}
