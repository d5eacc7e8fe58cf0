package cli

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/buzzbip/caddy-webhook/internal/adminapi"
)

type inboxListOptions struct {
	inboxFlags
	filter filterFlags
	limit  int
	after  int64
	json   bool
}

func inboxListCommand() *cobra.Command {
	var o inboxListOptions
	cmd := &cobra.Command{
		Use:   "list [<number|id>...]",
		Short: "Lists the events in an inbox",
		Long: `Lists events in the order in which they were stored: on a terminal as a table, else
as lines of JSON. Filters that are combined must all match. An event is waiting, dead
or, with keep_delivered, delivered; it is accepted for the moment in between.

If there are more events than --limit, standard error says how to go on.`,
		Example: `  caddy buzzbip inbox list
  caddy buzzbip inbox list --state waiting --status 502 --since 2h
  caddy buzzbip inbox list --type message.received --limit 1000 | jq -r .id`,
		RunE: o.run,
	}
	o.add(cmd)
	o.filter.add(cmd)
	cmd.Flags().IntVar(&o.limit, "limit", 100, "how many events to list at most")
	cmd.Flags().Int64Var(&o.after, "after", 0, "list events with numbers greater than this `number`")
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON also on a terminal")
	return cmd
}

func (o *inboxListOptions) run(cmd *cobra.Command, args []string) error {
	filter, err := o.filter.filter(args, time.Now())
	if err != nil {
		return err
	}
	if o.limit <= 0 {
		return errors.New("--limit must be greater than zero")
	}
	client, err := o.client()
	if err != nil {
		return err
	}
	table := isTerminal(cmd.OutOrStdout()) && !o.json
	s := adminapi.InboxSelection{Filter: filter, After: o.after}
	for left := o.limit; ; left -= s.Limit {
		s.Limit = min(left, adminapi.MaxInboxPage)
		page, err := client.page(cmd.Context(), s)
		if err != nil {
			return err
		}
		if table {
			err = printEvents(cmd.OutOrStdout(), page.Events)
		} else {
			for _, e := range page.Events {
				if err = encodeLine(cmd, e); err != nil {
					break
				}
			}
		}
		if err != nil {
			return err
		}
		if page.Next == 0 || left == s.Limit {
			if table {
				fmt.Fprintln(cmd.ErrOrStderr(), stateText(page.InboxState))
			}
			if page.Next != 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "there may be more: add --after %d\n", page.Next)
			}
			return nil
		}
		s.After = page.Next
	}
}

// noMatch is what commands print if there is no event that they are about.
const noMatch = "no event matches"

func printEvents(out io.Writer, events []adminapi.InboxEvent) error {
	if len(events) == 0 {
		_, err := fmt.Fprintln(out, noMatch)
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	keys := slices.ContainsFunc(events, func(e adminapi.InboxEvent) bool { return e.Key != "" })
	key := func(text string) string {
		if !keys {
			return ""
		}
		return singleLine(text) + "\t"
	}
	fmt.Fprintf(w, "NUMBER\tSTATE\tTYPE\tID\t%sARRIVED\tATTEMPTS\tLAST ATTEMPT\n", key("KEY"))
	for _, e := range events {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s%s\t%d\t%s\n", e.Number, e.State, singleLine(e.Type), singleLine(e.ID), key(e.Key), e.Arrived.Format(time.RFC3339), e.Attempts, attemptText(e.Last))
	}
	return w.Flush()
}

// stateText sums up an inbox.
func stateText(s adminapi.InboxState) string {
	parts := []string{comma(s.Waiting) + " waiting", comma(s.Dead) + " dead"}
	if s.Delivered > 0 {
		parts = append(parts, comma(s.Delivered)+" delivered")
	}
	text := strings.Join(parts, ", ")
	if s.Paused != nil {
		text += "; paused since " + s.Paused.Format(time.RFC3339)
	}
	if s.Error != "" {
		text += "; it cannot keep events: " + s.Error
	}
	return text
}
