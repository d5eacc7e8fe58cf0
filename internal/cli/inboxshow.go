package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/adminapi"
)

func inboxShowCommand() *cobra.Command {
	var o inboxFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show <number|id>",
		Short: "Shows an event in an inbox: its payload, headers and attempts",
		Long: `Shows an event in an inbox, by its number or its ID: the first and the last attempt
to deliver it, the request that it arrived with, its headers, and its payload,
indented. With --json, the payload is as it arrived.`,
		Example: `  caddy buzzbip inbox show evt_7f3a9b2c
  caddy buzzbip inbox show 4711 --json | jq -r .body`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			event, err := client.event(cmd, args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return encodeLine(cmd, event)
			}
			return printEvent(cmd.OutOrStdout(), event)
		},
	}
	o.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// event returns an event with its payload.
func (c inboxClient) event(cmd *cobra.Command, numberOrID string) (event adminapi.InboxEvent, err error) {
	number := numberOrID
	if _, ids := numbersAndIDs([]string{numberOrID}); len(ids) > 0 {
		page, err := c.page(cmd.Context(), adminapi.InboxSelection{Filter: inbox.Filter{ID: ids}})
		if err != nil {
			return event, err
		}
		switch len(page.Events) {
		case 0:
			return event, errors.New("no event in the inbox has this ID")
		case 1:
		default:
			err = errors.New("several events have this ID: give a number")
			for _, e := range page.Events {
				err = fmt.Errorf("%w\n%d: %s, arrived %s", err, e.Number, e.State, e.Arrived.Format(time.RFC3339))
			}
			return event, err
		}
		number = strconv.FormatInt(page.Events[0].Number, 10)
	}
	err = c.ask(cmd.Context(), http.MethodGet, c.path("/"+number, url.Values{}), nil, &event)
	if err == nil && event.Request == nil {
		err = c.wrongEndpoint()
	}
	return event, err
}

func printEvent(out io.Writer, e adminapi.InboxEvent) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	state := e.State
	switch {
	case e.Due != nil:
		state += ", next attempt " + e.Due.Format(time.RFC3339)
	case e.Settled != nil:
		state += " since " + e.Settled.Format(time.RFC3339)
	}
	rows := [][2]string{{"number", strconv.FormatInt(e.Number, 10)}, {"state", state}, {"ID", e.ID}, {"type", e.Type}}
	if e.Key != "" {
		rows = append(rows, [2]string{"key", e.Key})
	}
	rows = append(rows, [2]string{"arrived", e.Arrived.Format(time.RFC3339)}, [2]string{"attempts", strconv.Itoa(e.Attempts)})
	if e.Attempts > 1 {
		rows = append(rows, [2]string{"first", timedAttempt(e.First)})
	}
	if e.Attempts > 0 {
		rows = append(rows, [2]string{"last", timedAttempt(e.Last)})
	}
	if e.Request.Host != "" {
		scheme := map[bool]string{false: "http", true: "https"}[e.Request.TLS]
		rows = append(rows, [2]string{"request", fmt.Sprintf("%s://%s%s from %s", scheme, e.Request.Host, e.Request.URI, e.Request.RemoteAddr)})
	}
	for _, row := range rows {
		fmt.Fprintf(w, "%s\t%s\n", row[0], singleLine(row[1]))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(e.Request.Header) > 0 {
		fmt.Fprintln(out)
	}
	for _, name := range slices.Sorted(maps.Keys(e.Request.Header)) {
		for _, value := range e.Request.Header[name] {
			fmt.Fprintf(out, "%s: %s\n", singleLine(name), singleLine(value))
		}
	}
	return printPayload(out, e.Payload())
}

func timedAttempt(a *inbox.Attempt) string {
	return fmt.Sprintf("%s %s, after %.3fs", a.Time.Format(time.RFC3339), attemptText(a), a.Duration)
}

// printPayload indents JSON. Its strings cannot have control characters of ASCII.
func printPayload(out io.Writer, payload []byte) error {
	if payload == nil {
		_, err := fmt.Fprintln(out, "\nThe payload is gone: the backend has accepted the event.")
		return err
	}
	var indented bytes.Buffer
	if json.Indent(&indented, payload, "", "  ") != nil {
		indented.Reset()
		fmt.Fprintf(&indented, "%q", payload)
	}
	_, err := fmt.Fprintf(out, "\n%s\n", indented.Bytes())
	return err
}
