package cli

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/spf13/cobra"
)

func lookupCommand() *cobra.Command {
	var admin adminFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "lookup <id>",
		Short: "Shows what a running Caddy knows of an event",
		Long: `Shows what the running Caddy knows of an event, in each scope: whether it was
delivered, and until when that is remembered, is being delivered now, or was not
delivered, with the status or the cause of the last failed attempt. Failures are
in the memory of this instance: the last 4096 since Caddy was started, for as long
as the retention. An event is unseen if it never arrived, failed longer ago than
that, has been forgotten, or was delivered under a secret that is no longer
configured.

Exit code: 0 if all stores answered, also if none knows the event; else 1.`,
		Example: `  caddy buzzbip lookup evt_7f3a9b2c
  caddy buzzbip lookup evt_7f3a9b2c --json --address localhost:2019`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return admin.ask(cmd, asJSON, http.MethodGet, args[0], func(w io.Writer, answer adminapi.Event) {
				fmt.Fprintln(w, "SCOPE\tSTORE\tSTATE\tREMEMBERED UNTIL")
				for _, s := range answer.Scopes {
					until := "-"
					if s.Expires != nil {
						until = s.Expires.Format(time.RFC3339)
					}
					state := strings.ReplaceAll(s.State, "_", " ")
					if s.LastFailure != nil {
						state += ": last attempt failed " + s.LastFailure.String()
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.Scope, s.Store, state, until)
				}
			})
		},
	}
	admin.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func forgetCommand() *cobra.Command {
	var admin adminFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "forget <id>",
		Short: "Makes a running Caddy forget an event, so that a redelivery passes",
		Long: `Makes the running Caddy forget that an event was delivered, in every scope. If it
is sent again, it goes to the backend again. A delivery that is under way goes on.

Exit code: 0 if all stores answered, also if none remembered the event; else 1.`,
		Example: `  caddy buzzbip forget evt_7f3a9b2c`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return admin.ask(cmd, asJSON, http.MethodDelete, args[0], func(w io.Writer, answer adminapi.Event) {
				fmt.Fprintln(w, "SCOPE\tSTORE\tFORGOTTEN")
				for _, s := range answer.Scopes {
					said := "unknown"
					if s.Forgotten != nil {
						said = map[bool]string{true: "yes", false: "no: it was not remembered"}[*s.Forgotten]
					}
					fmt.Fprintf(w, "%s\t%s\t%s\n", s.Scope, s.Store, said)
				}
			})
		},
	}
	admin.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
