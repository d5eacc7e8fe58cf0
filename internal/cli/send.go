package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

type sendOptions struct {
	secrets                        secretFlags
	id, eventType, data, createdAt string // of a new event
	bodyFile, export               string // instead of a new event
	timeout                        time.Duration
	insecure                       bool
}

func sendCommand() *cobra.Command {
	var o sendOptions
	cmd := &cobra.Command{
		Use:   "send <url>",
		Short: "Builds and posts a signed event",
		Long: `Sends an event as BuzzBip does, and shows the answer.

The event is built from the flags, or is the content of --body-file, byte for
byte. It is sent once: to see a duplicate, give the same --id and --created-at
twice. Plain HTTP works too, for tests: BuzzBip needs HTTPS.

"stored" in the answer means that the event is in the inbox of this plugin, which
delivers it later.

With --export, it sends the events that "caddy buzzbip inbox export" has written, one
after another, with their bodies as they were, signed with the secret given here.

Exit code: 0 if the answer is a 2xx, also if the event was stored; else 1, with a hint
where the status has a usual cause.`,
		Example: `  caddy buzzbip send https://hooks.example.com/webhooks/buzzbip
  caddy buzzbip send https://localhost:8443/webhooks/buzzbip --insecure --type contact.created --data '{"contact":{"id":"con_1"}}'
  caddy buzzbip send https://hooks.example.com/webhooks/buzzbip --body-file captured.json --secret-file secret.txt
  caddy buzzbip inbox export --state dead | caddy buzzbip send https://staging.example.com/webhooks/buzzbip --export -`,
		Args: cobra.ExactArgs(1),
		RunE: o.run,
	}
	o.secrets.add(cmd)
	cmd.Flags().StringVar(&o.id, "id", "", "ID of the event (default a new one)")
	cmd.Flags().StringVar(&o.eventType, "type", "message.received", "type of the event")
	cmd.Flags().StringVar(&o.data, "data", "{}", "data of the event, JSON")
	cmd.Flags().StringVar(&o.createdAt, "created-at", "", "when the event was created, such as 2026-06-01T14:32:00Z (default now)")
	cmd.Flags().StringVar(&o.bodyFile, "body-file", "", "`file` with the body to send, instead of a new event; - is standard input")
	cmd.Flags().StringVar(&o.export, "export", "", "`file` of \"caddy buzzbip inbox export\", whose events to send; - is standard input")
	cmd.Flags().DurationVar(&o.timeout, "timeout", senderTimeout, "when to disconnect; BuzzBip does after 10s")
	cmd.Flags().BoolVar(&o.insecure, "insecure", false, "accept any certificate, for tests; BuzzBip does not")
	return cmd
}

func (o *sendOptions) run(cmd *cobra.Command, args []string) error {
	url := args[0]
	if err := checkURL(url); err != nil {
		return err
	}
	var body []byte
	events, err := o.exported(cmd)
	if err == nil && events == nil {
		body, err = o.body(cmd)
	}
	if err != nil {
		return err
	}
	secret, err := o.secrets.one(cmd)
	if err != nil {
		return err
	}
	if isPlainHTTP(url) {
		fmt.Fprintln(cmd.ErrOrStderr(), "note: BuzzBip does not deliver to plain HTTP; this is a test only")
	}
	if events != nil {
		defer events.Close()
		return o.sendAll(cmd, url, secret, events)
	}
	start := time.Now()
	got := post(newClient(o.insecure), url, webhook.Sign(secret, body), bytes.NewReader(body), o.timeout)
	return o.report(cmd, got, time.Since(start).Round(time.Millisecond))
}

// body returns the body to send.
func (o *sendOptions) body(cmd *cobra.Command) ([]byte, error) {
	if o.bodyFile == "" {
		return o.newBody()
	}
	if err := o.noNewEvent(cmd, "body-file"); err != nil {
		return nil, err
	}
	return readBody(cmd, o.bodyFile, o.secrets)
}

// noNewEvent returns an error if there are flags for a new event beside another one.
func (o *sendOptions) noNewEvent(cmd *cobra.Command, instead string) error {
	for _, flag := range []string{"id", "type", "data", "created-at"} {
		if cmd.Flags().Changed(flag) {
			return fmt.Errorf("--%s is for new events: leave it out, or --%s", flag, instead)
		}
	}
	return nil
}

// exported opens the file of --export. It returns nil if there is none.
func (o *sendOptions) exported(cmd *cobra.Command) (io.ReadCloser, error) {
	if o.export == "" {
		return nil, nil
	}
	if o.bodyFile != "" {
		return nil, errors.New("give either --export or --body-file")
	}
	if err := o.noNewEvent(cmd, "export"); err != nil {
		return nil, err
	}
	return openInput(cmd, o.export, "events", o.secrets)
}

// sendAll sends exported events one after another, and says what the answers are. It
// goes on after one that is not accepted.
func (o *sendOptions) sendAll(cmd *cobra.Command, url string, secret []byte, events io.Reader) error {
	client := newClient(o.insecure)
	sent, accepted := 0, 0
	for lines := json.NewDecoder(events); ; {
		var e adminapi.InboxEvent
		switch err := lines.Decode(&e); {
		case err == io.EOF:
			fmt.Fprintf(cmd.OutOrStdout(), "%s of %s accepted\n", comma(accepted), plural(sent))
			if accepted < sent {
				return errors.New("not all events were accepted: send them again, those that were are duplicates")
			}
			return nil
		case err != nil:
			return fmt.Errorf("after %s: not an export: %w", plural(sent), err)
		case e.Payload() == nil:
			return fmt.Errorf("after %s: not an export: an event has no body", plural(sent))
		}
		body := e.Payload()
		got := post(client, url, webhook.Sign(secret, body), bytes.NewReader(body), o.timeout)
		sent++
		if got.success() {
			accepted++
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s  %s\n", singleLine(e.ID), got)
	}
}

// newBody returns a new event, whose ID is in o.id then.
func (o *sendOptions) newBody() ([]byte, error) {
	created := time.Now()
	if o.createdAt != "" {
		var err error
		if created, err = webhook.ParseTime([]byte(o.createdAt)); err != nil {
			return nil, fmt.Errorf("--created-at %q is not a time such as 2026-06-01T14:32:00Z", o.createdAt)
		}
	}
	if o.id == "" {
		o.id = newEventID("evt_test_")
	}
	body, err := newEvent(o.id, o.eventType, created, json.RawMessage(o.data))
	if err != nil {
		return nil, errors.New("--data is not valid JSON")
	}
	return body, nil
}

// report prints the answer, and returns an error unless it is a success.
func (o *sendOptions) report(cmd *cobra.Command, got reply, took time.Duration) error {
	out := cmd.OutOrStdout()
	if o.bodyFile == "" && got.sent {
		fmt.Fprintf(out, "sent     %s %s\n", o.eventType, o.id)
	}
	if got.err != nil {
		return withHint(fmt.Errorf("no answer after %s: %w", took, withoutURL(got.err)), got.hint())
	}
	fmt.Fprintf(out, "answered %s in %s\n", got, took)
	if len(bytes.TrimSpace(got.body)) > 0 {
		fmt.Fprintf(out, "\n%s\n", bytes.TrimRight(got.body, "\n"))
	}
	if !got.success() {
		return withHint(errors.New("BuzzBip would send the event again: only 2xx is a success"), got.hint())
	}
	switch {
	case got.stored():
		fmt.Fprintln(cmd.ErrOrStderr(), "note: "+storedHint)
	case got.unrouted():
		fmt.Fprintln(cmd.ErrOrStderr(), "note: "+unroutedHint+": check that the backend got the event")
	}
	return nil
}
