package cli

import (
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/buzzbip/caddy-webhook/internal/adminapi"
)

func inboxExportCommand() *cobra.Command {
	var o inboxFlags
	var filter filterFlags
	var after int64
	cmd := &cobra.Command{
		Use:   "export [<number|id>...]",
		Short: "Writes whole events in an inbox as lines of JSON",
		Long: `Writes events with their requests, headers and payloads to standard output, as lines
of JSON: those that a filter selects, or all. They stay in the inbox. The payload is
"body", or "body_base64" if it is not UTF-8. "caddy buzzbip send --export" posts them
to another endpoint.

Exit code: 0 if all were written; else 1.`,
		Example: `  caddy buzzbip inbox export --state dead > dead.jsonl
  caddy buzzbip send https://staging.example.com/webhooks/buzzbip --export dead.jsonl`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s := adminapi.InboxSelection{After: after}
			var err error
			if s.Filter, err = filter.filter(args, time.Now()); err != nil {
				return err
			}
			client, err := o.client()
			if err != nil {
				return err
			}
			events, err := client.open(cmd.Context(), http.MethodGet, client.path("/export", queryOf(s)), nil)
			if err != nil {
				return err
			}
			defer events.Close()
			if _, err := io.Copy(cmd.OutOrStdout(), events); err != nil {
				return fmt.Errorf("the export is not complete: %w\nGo on with --after and the number of the last whole line", err)
			}
			return nil
		},
	}
	o.add(cmd)
	filter.add(cmd)
	cmd.Flags().Int64Var(&after, "after", 0, "begin after the event with this `number`")
	return cmd
}
