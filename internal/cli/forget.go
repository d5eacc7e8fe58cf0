package cli

import (
	"fmt"
	"io"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/buzzbip/caddy-webhook/internal/adminapi"
)

func forgetCommand() *cobra.Command {
	var o eventOptions
	cmd := &cobra.Command{
		Use:   "forget <id>",
		Short: "Makes a running Caddy forget an event, so that a redelivery passes",
		Long: `Makes the running Caddy forget that an event was delivered, in every scope. If it
is sent again, it is delivered again. A delivery that is under way continues.

Exit code: 0 if all stores answered, also if none remembered the event; else 1.`,
		Example: `  caddy buzzbip forget evt_7f3a9b2c`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.request(cmd, http.MethodDelete, args[0], printForgotten)
		},
	}
	o.add(cmd)
	return cmd
}

func printForgotten(w io.Writer, scopes []adminapi.EventState) {
	fmt.Fprintln(w, "SCOPE\tSTORE\tFORGOTTEN")
	for _, s := range scopes {
		forgotten := "unknown"
		if s.Forgotten != nil {
			forgotten = map[bool]string{true: "yes", false: "no: it was not remembered"}[*s.Forgotten]
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", s.Scope, s.Store, forgotten)
	}
}
