package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

func reportCommand() *cobra.Command {
	var admin adminFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Tells what the plugin would do with your traffic, while enforce is off",
		Long: `Sums up what would have become of the requests that a running Caddy got since it
was started, at handlers with enforce off: how many would have been rejected, and
why, and how many duplicates would not have reached the backend.

Exit code: 1 if there is no such Caddy, or none of its handlers was asked anything
with enforce off.`,
		Example: `  caddy buzzbip report
  caddy buzzbip report --json --address localhost:2019`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := admin.client()
			if err != nil {
				return err
			}
			answer, err := client.request(http.MethodGet, "scopes")
			if err != nil {
				return err
			}
			var overview adminapi.Overview
			if json.Unmarshal(answer, &overview) != nil || overview.Scopes == nil {
				return client.wrongEndpoint()
			}
			switch {
			case overview.Observed != nil && asJSON:
				return json.NewEncoder(cmd.OutOrStdout()).Encode(overview.Observed)
			case overview.Observed != nil:
				return printReport(cmd.OutOrStdout(), overview)
			case overview.NotEnforced:
				return fmt.Errorf("no request has arrived since Caddy was started, at %s", overview.Since.Format(time.RFC3339))
			}
			return errors.New("no buzzbip_webhook has enforce off: there is a report once one has it and gets requests")
		},
	}
	admin.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// wouldBeTexts continue "n requests".
var wouldBeTexts = map[webhook.Result]string{
	webhook.ResultDelivered: "would have been delivered",
	webhook.ResultFailed:    "would have failed, as they did: the backend did not accept them",
	webhook.ResultStored:    "would have been stored in the inbox, and delivered later",
	webhook.ResultDuplicate: "would have been answered as duplicates, without the backend",
	webhook.ResultConflict:  "would have been alarms: the ID of a delivered event, but another body",
	webhook.ResultIgnored:   "would have been acknowledged and dropped, because of the option events",
	webhook.ResultInFlight:  "would have waited for a delivery of the same event",
	webhook.ResultRejected:  "would have been rejected",
	webhook.WouldBeUnknown:  "are not known: the backend did not read them to their end",
}

// reasonTexts say what to look at.
var reasonTexts = map[webhook.Reason]string{
	webhook.ReasonSignatureMissing:  "not sent by BuzzBip, or a proxy in front removes the header",
	webhook.ReasonSignatureMismatch: "forged, or the secret is not that of the webhook: see caddy buzzbip explain",
	webhook.ReasonMethodNotAllowed:  "not sent by BuzzBip; if it is a health check, match it before buzzbip_webhook",
	webhook.ReasonEnvelopeInvalid:   "see the log for what is invalid, and the option envelope",
	webhook.ReasonBodyTooLarge:      "see the option max_body_size",
	webhook.ReasonEventStale:        "see the option max_age",
}

func printReport(out io.Writer, overview adminapi.Overview) error {
	o := overview.Observed
	count := func(n uint64) string { return humanize.Comma(int64(n)) }
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(out, "%s requests since %s, %s would be rejected, %s duplicates would have been answered\n\n", count(o.Requests),
		overview.Since.Format(time.RFC3339), count(o.WouldBe[webhook.ResultRejected]), count(o.WouldBe[webhook.ResultDuplicate]))
	for _, result := range append(webhook.Results, webhook.WouldBeUnknown) {
		if n := o.WouldBe[result]; n > 0 {
			fmt.Fprintf(w, "%s\t %s\n", count(n), wouldBeTexts[result])
		}
		if result != webhook.ResultRejected {
			continue
		}
		for _, reason := range webhook.Reasons {
			if n := o.Reasons[reason]; n > 0 && reason != webhook.ReasonUnhandled && reason != webhook.ReasonInFlight {
				text := string(reason)
				if hint := reasonTexts[reason]; hint != "" {
					text += ": " + hint
				}
				fmt.Fprintf(w, "%s\t   %s\n", count(n), text)
			}
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if !overview.NotEnforced {
		_, err := fmt.Fprintln(out, "\nNow no buzzbip_webhook has enforce off.")
		return err
	}
	return nil
}
