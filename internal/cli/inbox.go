package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"

	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

func inboxCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inbox <command>",
		Short: "Lists, retries, discards and exports the events in an inbox",
		Long:  `Works with the inbox of a running Caddy: the events that the backend has not accepted.`,
		Example: `  caddy buzzbip inbox list --state dead
  caddy buzzbip inbox retry --state dead --rate 50`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(inboxListCommand(), inboxShowCommand(), inboxRetryCommand(), inboxDiscardCommand(),
		inboxPauseCommand(), inboxResumeCommand(), inboxExportCommand())
	return cmd
}

// inboxFlags say which inbox a command is about.
type inboxFlags struct {
	admin adminFlags
	inbox string
}

func (f *inboxFlags) add(cmd *cobra.Command) {
	f.admin.add(cmd)
	cmd.Flags().StringVar(&f.inbox, "inbox", "", "the `inbox`, if there are several: an error lists their names")
}

// inboxClient sends requests about one inbox.
type inboxClient struct {
	*adminClient
	inbox string
}

func (f *inboxFlags) client() (inboxClient, error) {
	client, err := f.admin.client()
	return inboxClient{client, f.inbox}, err
}

// path returns a path of the admin API with a query.
func (c inboxClient) path(below string, query url.Values) string {
	if c.inbox != "" {
		query.Set("inbox", c.inbox)
	}
	if len(query) > 0 {
		below += "?" + query.Encode()
	}
	return "inbox" + below
}

// page asks for a page of events.
func (c inboxClient) page(ctx context.Context, s adminapi.InboxSelection) (answer adminapi.Inbox, err error) {
	err = c.ask(ctx, http.MethodGet, c.path("", queryOf(s)), nil, &answer)
	if err == nil && answer.Events == nil {
		err = c.wrongEndpoint()
	}
	return answer, err
}

// queryOf returns a selection as a query.
func queryOf(s adminapi.InboxSelection) url.Values {
	query := url.Values{"id": s.ID, "type": s.Type, "key": s.Key}
	for _, number := range s.Number {
		query.Add("number", strconv.FormatInt(number, 10))
	}
	for _, state := range s.State {
		query.Add("state", string(state))
	}
	for _, status := range s.Status {
		query.Add("status", strconv.Itoa(status))
	}
	for name, t := range map[string]time.Time{"since": s.Since, "until": s.Until} {
		if !t.IsZero() {
			query.Set(name, t.Format(time.RFC3339Nano))
		}
	}
	if s.Limit > 0 {
		query.Set("limit", strconv.Itoa(s.Limit))
	}
	if s.After > 0 {
		query.Set("after", strconv.FormatInt(s.After, 10))
	}
	return query
}

// filterFlags select events.
type filterFlags struct {
	states, types, ids, keys []string
	statuses                 []int
	since, until             string
}

func (f *filterFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&f.states, "state", nil, "`state` of the events: waiting, dead or delivered (repeatable)")
	cmd.Flags().StringSliceVar(&f.types, "type", nil, "`type` of the events, in full (repeatable)")
	cmd.Flags().StringArrayVar(&f.ids, "id", nil, "`ID` of an event (repeatable)")
	cmd.Flags().StringArrayVar(&f.keys, "key", nil, "`key` by which events are ordered (repeatable)")
	cmd.Flags().IntSliceVar(&f.statuses, "status", nil, "`status` of the last attempt; 0: no response (repeatable)")
	cmd.Flags().StringVar(&f.since, "since", "", "arrived at this `time` or later, such as 2026-06-01T14:32:00Z, or 2h for two hours ago")
	cmd.Flags().StringVar(&f.until, "until", "", "arrived before this `time`")
}

// filter returns what the flags and the arguments select: numbers or IDs of events.
func (f *filterFlags) filter(args []string, now time.Time) (filter inbox.Filter, err error) {
	filter = inbox.Filter{Type: f.types, ID: f.ids, Key: f.keys, Status: f.statuses}
	for _, state := range f.states {
		filter.State = append(filter.State, inbox.State(state))
	}
	for _, eventType := range f.types {
		if strings.Contains(eventType, "*") {
			return filter, fmt.Errorf("--type takes full types such as message.received, not %q", eventType)
		}
	}
	numbers, ids := numbersAndIDs(args)
	filter.Number, filter.ID = numbers, append(filter.ID, ids...)
	if len(numbers) > 0 && len(filter.ID) > 0 {
		return filter, errors.New("give either numbers or IDs of events, not both")
	}
	if filter.Since, err = timeFlag("since", f.since, now); err != nil {
		return filter, err
	}
	filter.Until, err = timeFlag("until", f.until, now)
	return filter, err
}

// numbersAndIDs tells numbers of events from their IDs.
func numbersAndIDs(args []string) (numbers []int64, ids []string) {
	for _, arg := range args {
		if number, err := strconv.ParseInt(arg, 10, 64); err == nil {
			numbers = append(numbers, number)
		} else {
			ids = append(ids, arg)
		}
	}
	return numbers, ids
}

// timeFlag returns the time that a flag means: a time, or how long ago it was.
func timeFlag(name, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := caddy.ParseDuration(text); err == nil && ago > 0 {
		return now.Add(-ago), nil
	}
	t, err := webhook.ParseTime([]byte(text))
	if err != nil {
		return t, fmt.Errorf("--%s %q is neither a time such as 2026-06-01T14:32:00Z nor how long ago, such as 2h or 3d", name, text)
	}
	return t, nil
}

// attemptText describes the last attempt to deliver an event.
func attemptText(a *inbox.Attempt) string {
	if a == nil {
		return "not tried"
	}
	var parts []string
	if a.Status != 0 {
		parts = append(parts, strconv.Itoa(a.Status))
	}
	if a.Cause != "" {
		parts = append(parts, a.Cause)
	}
	text := cmp.Or(strings.Join(parts, " "), "no response")
	if a.Error != "" {
		text += ": " + a.Error
	}
	return singleLine(text)
}

// singleLine replaces what would break a line of a table, or control a terminal.
func singleLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, text)
}

// plural returns a count of events.
func plural(n int) string {
	if n == 1 {
		return "1 event"
	}
	return comma(n) + " events"
}

// encodeLine writes a value as one line of JSON.
func encodeLine(cmd *cobra.Command, value any) error {
	lines := json.NewEncoder(cmd.OutOrStdout())
	lines.SetEscapeHTML(false)
	return lines.Encode(value)
}
