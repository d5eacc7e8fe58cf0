package cli

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/buzzbip/caddy-webhook/internal/adminapi"
)

func lookupCommand() *cobra.Command {
	var o eventOptions
	cmd := &cobra.Command{
		Use:   "lookup <id>",
		Short: "Shows what a running Caddy knows about an event",
		Long: `Shows what the running Caddy knows about an event, in each scope:

  delivered      the backend has accepted it, or you have discarded it
  in flight      it is being delivered
  redelivering   it was delivered, and is being delivered with another body
  stored         it waits in the inbox
  dead           it is in the inbox, and is not delivered unless you retry it
  not delivered  its last attempt failed; Caddy keeps the last 4096 failures in memory
  unseen         it never arrived, its failure or its ID is forgotten, or its secret is
                 no longer configured
  unknown        the store does not answer

Exit code: 0 if all stores answered, also if none knows the event; else 1.`,
		Example: `  caddy buzzbip lookup evt_7f3a9b2c
  caddy buzzbip lookup evt_7f3a9b2c --json --address localhost:2019`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.request(cmd, http.MethodGet, args[0], printStates)
		},
	}
	o.add(cmd)
	return cmd
}

func printStates(w io.Writer, scopes []adminapi.EventState) {
	fmt.Fprintln(w, "SCOPE\tSTORE\tSTATE\tREMEMBERED UNTIL\tDETAILS")
	for _, s := range scopes {
		until := "-"
		if s.Expires != nil {
			until = s.Expires.Format(time.RFC3339)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.Scope, s.Store, strings.ReplaceAll(s.State, "_", " "), until, eventDetails(s))
	}
}

func eventDetails(s adminapi.EventState) string {
	var details []string
	switch {
	case s.State == adminapi.StateDead:
		details = append(details, "in the inbox until you retry or discard it")
	case s.State == adminapi.StateStored && s.Due == nil:
		details = append(details, "waits in the inbox, which is paused")
	case s.State == adminapi.StateStored:
		details = append(details, "waits in the inbox, next attempt at "+s.Due.Format(time.RFC3339))
	}
	if s.Attempts > 0 {
		details = append(details, fmt.Sprintf("attempts: %d", s.Attempts))
	}
	if s.LastFailure != nil {
		details = append(details, "last attempt failed "+s.LastFailure.String())
	}
	return strings.Join(details, ", ")
}
