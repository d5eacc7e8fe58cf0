package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"

	"github.com/buzzbip/caddy-webhook/internal/option"
)

type checkOptions struct {
	secrets   secretFlags
	eventType string
	insecure  bool
	oversize  int // in bytes
	slow      time.Duration
	json      bool
}

func checkCommand() *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:   "check <url>",
		Short: "Tests how an endpoint handles webhooks, and reports what it does wrong",
		Long: `Sends an endpoint what BuzzBip sends, and what others may send in its name. The
endpoint is this plugin, or a receiver that you wrote yourself. For each check it
prints what was expected and what was seen:

  ok    the check passed
  warn  it passed only because of --insecure: BuzzBip itself would not deliver
  FAIL  it failed; a hint says what is likely wrong, where that is known

"stored" in an answer is an acknowledgment as well: the event is in the inbox of this
plugin, which delivers it later. A hint says so.

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
		RunE: o.run,
	}
	o.secrets.add(cmd)
	cmd.Flags().StringVar(&o.eventType, "type", "message.received", "type of the events")
	cmd.Flags().BoolVar(&o.insecure, "insecure", false, "accept plain HTTP and any certificate, for tests; BuzzBip does not")
	cmd.Flags().IntVar(&o.oversize, "oversize", 8<<20, "size of the body that is too large, in bytes")
	cmd.Flags().DurationVar(&o.slow, "slow", 30*time.Second, "how long an endpoint may wait for a body that does not arrive")
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func (o *checkOptions) run(cmd *cobra.Command, args []string) error {
	url := args[0]
	if err := checkURL(url); err != nil {
		return err
	}
	if err := option.Positive("--oversize", o.oversize); err != nil {
		return err
	}
	if err := option.Positive("--slow", caddy.Duration(o.slow)); err != nil {
		return err
	}
	secret, err := o.secrets.one(cmd)
	if err != nil {
		return err
	}
	c := &checker{options: o, client: newClient(o.insecure), url: url, secret: secret}
	defer c.client.CloseIdleConnections()
	p := newPrinter(cmd.OutOrStdout(), cmd.ErrOrStderr(), o.json)
	report := c.run(cmd.Context(), p)
	if o.json {
		if err := json.NewEncoder(cmd.OutOrStdout()).Encode(report); err != nil {
			return err
		}
	}
	switch {
	case report.Failed > 0:
		return fmt.Errorf("%d of %d checks failed", report.Failed, len(report.Checks))
	case report.Warnings > 0:
		p.line("\nno check failed, but BuzzBip itself would not deliver to this URL: see the warning")
	default:
		p.line("\nno check failed")
	}
	if report.stored {
		p.line("some events are in the inbox, which delivers them later: see the hints")
	}
	return nil
}

// checkReport is what `caddy buzzbip check --json` prints.
type checkReport struct {
	URL      string    `json:"url"`
	Failed   int       `json:"failed"`
	Warnings int       `json:"warnings"`
	Checks   []outcome `json:"checks"`
	stored   bool      // events are in an inbox
}

// outcome is the part of a report for one check.
type outcome struct {
	Name     string  `json:"name"`
	OK       bool    `json:"ok"`
	Warning  bool    `json:"warning,omitempty"`
	Expected string  `json:"expected"`
	Seen     string  `json:"seen"`
	Hint     string  `json:"hint,omitempty"`
	Seconds  float64 `json:"seconds"`
}

// run makes the checks, and prints each outcome at once.
func (c *checker) run(ctx context.Context, p *printer) checkReport {
	report := checkReport{URL: c.url, Checks: []outcome{}}
	for i, check := range checks {
		if ctx.Err() != nil {
			break
		}
		stop := p.waiting(check.name)
		start := time.Now()
		f := check.run(c)
		stop()
		o := outcome{check.name, f.ok, f.warning, check.expected, f.seen, f.hint, time.Since(start).Seconds()}
		report.Checks = append(report.Checks, o)
		p.outcome(o)
		report.stored = report.stored || o.Hint == storedHint
		if o.Warning {
			report.Warnings++
		}
		if !o.OK {
			report.Failed++
			if i < prerequisites {
				p.line("nothing else was checked")
				break
			}
		}
	}
	return report
}
