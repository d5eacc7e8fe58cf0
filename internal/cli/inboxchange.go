package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/adminapi"
)

// inboxChange is a change of many events: retry or discard.
type inboxChange struct {
	inboxFlags
	filter   filterFlags
	all, yes bool
	rate     int

	path, done string // such as retry and retried
	question   string // with %s for the number of events
}

func inboxRetryCommand() *cobra.Command {
	o := inboxChange{path: "retry", done: "retried", question: "Retry %s?"}
	cmd := &cobra.Command{
		Use:   "retry [<number|id>...]",
		Short: "Delivers events in an inbox again, at once",
		Long: `Delivers events again at once, and counts their attempts from the beginning. Without
--state, these are events that wait or are dead. With --state delivered, the backend
gets events again that it has accepted.

It says how many events match, and asks before it begins; in scripts, use --yes.
Ctrl-C ends it: the other events stay as they are. If Caddy restarts, it continues
after that.

Exit code: 0 if all were retried, also if none matched; else 1.`,
		Example: `  caddy buzzbip inbox retry evt_7f3a9b2c
  caddy buzzbip inbox retry --state dead --status 422 --yes
  caddy buzzbip inbox retry --state delivered --since 2026-06-01T14:00:00Z --until 2026-06-01T15:00:00Z --rate 20`,
		RunE: o.run,
	}
	o.addTo(cmd)
	cmd.Flags().IntVar(&o.rate, "rate", 0, "how many `events` to hand over a second, at most (default no limit)")
	return cmd
}

func inboxDiscardCommand() *cobra.Command {
	o := inboxChange{path: "discard", done: "discarded", question: "Discard %s? This cannot be undone."}
	cmd := &cobra.Command{
		Use:   "discard [<number|id>...]",
		Short: "Removes events from an inbox without delivering them",
		Long: `Removes events, which the backend will not get. Without --state, these are events
that wait or are dead. To keep a copy, use "caddy buzzbip inbox export" before.

It says how many events match, and asks before it begins; in scripts, use --yes.
Ctrl-C ends it: the other events stay as they are.

Exit code: 0 if all were discarded, also if none matched; else 1.`,
		Example: `  caddy buzzbip inbox discard evt_7f3a9b2c
  caddy buzzbip inbox discard --state dead --until 7d --yes`,
		RunE: o.run,
	}
	o.addTo(cmd)
	return cmd
}

func (o *inboxChange) addTo(cmd *cobra.Command) {
	o.add(cmd)
	o.filter.add(cmd)
	cmd.Flags().BoolVar(&o.all, "all", false, "all events that wait or are dead, if there is no filter")
	cmd.Flags().BoolVar(&o.yes, "yes", false, "do not ask")
}

// unfinished are the states of the events that changes are about if none is given.
var unfinished = inbox.Values[inbox.State]{inbox.Waiting, inbox.Dead}

func (o *inboxChange) run(cmd *cobra.Command, args []string) error {
	filter, err := o.filter.filter(args, time.Now())
	switch {
	case err != nil:
		return err
	case o.rate <= 0 && cmd.Flags().Changed("rate"):
		return errors.New("--rate must be greater than zero")
	case selectsAll(filter) && !o.all:
		return errors.New("say which events, by their numbers or IDs or by a filter, or give --all")
	case len(filter.Number)+len(filter.ID)+len(filter.State) == 0:
		filter.State = unfinished
	}
	client, err := o.client()
	if err != nil {
		return err
	}
	var matching adminapi.InboxChange
	if err := client.ask(cmd.Context(), http.MethodPost, client.path("/"+o.path, url.Values{}), adminapi.InboxSelection{Filter: filter, DryRun: true}, &matching); err != nil {
		return err
	}
	if matching.Events == 0 {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), noMatch)
		return err
	}
	if err := o.confirm(cmd, matching.Events); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process
	done, err := o.change(ctx, cmd, client, filter, matching.Events)
	if err != nil {
		return fmt.Errorf("%s %s of %s: %w\nThe others are as they were", o.done, comma(done), plural(matching.Events), err)
	}
	if matching.Paused != nil && o.path == "retry" {
		fmt.Fprintln(cmd.ErrOrStderr(), "note: delivery is paused: they wait for \"caddy buzzbip inbox resume\"")
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", o.done, plural(done))
	return err
}

func selectsAll(f inbox.Filter) bool { return f.ByState() && len(f.State) == 0 }

// confirm asks whether to change so many events.
func (o *inboxChange) confirm(cmd *cobra.Command, events int) error {
	if o.yes {
		return nil
	}
	question := fmt.Sprintf(o.question, plural(events))
	if !isTerminal(cmd.InOrStdin()) {
		return fmt.Errorf("%s There is no terminal to ask at: give --yes", question)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", question)
	answer, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n') // without an answer: no
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return errors.New("nothing was changed")
	}
	return nil
}

// change changes up to total events, a page after another, and returns how many it
// has changed. Each page is one request, so that it can end between two of them.
func (o *inboxChange) change(ctx context.Context, cmd *cobra.Command, client inboxClient, filter inbox.Filter, total int) (done int, err error) {
	page, interval := adminapi.MaxInboxPage, time.Duration(0)
	if o.rate > 0 {
		page = max(1, min(o.rate/4, page))
		interval = time.Second * time.Duration(page) / time.Duration(o.rate)
	}
	progress := newPrinter(cmd.OutOrStdout(), cmd.ErrOrStderr(), false)
	defer progress.clear()
	next := time.Now()
	for s := (adminapi.InboxSelection{Filter: filter}); done < total; {
		progress.show(fmt.Sprintf("%s %s of %s", o.done, comma(done), plural(total)))
		if err := sleep(ctx, time.Until(next)); err != nil {
			return done, err
		}
		next = time.Now().Add(interval)
		s.Limit = min(page, total-done)
		var changed adminapi.InboxChange
		if err := o.askPatiently(ctx, client, s, &changed, func(err error) {
			progress.clear()
			fmt.Fprintf(cmd.ErrOrStderr(), "note: trying again for up to %s: %v\n", patience, err)
		}); err != nil {
			return done, err
		}
		done += changed.Events
		if changed.Next == 0 {
			break
		}
		s.After = changed.Next
	}
	return done, nil
}

// patience is how long a change is tried again, as while Caddy restarts.
const patience = time.Minute

// askPatiently makes one change, which is not interrupted. If it fails, it calls note
// and tries again: then the change may be made twice.
func (o *inboxChange) askPatiently(ctx context.Context, client inboxClient, s adminapi.InboxSelection, changed *adminapi.InboxChange, note func(error)) error {
	for deadline, failures := time.Now().Add(patience), 0; ; failures++ {
		err := client.ask(context.WithoutCancel(ctx), http.MethodPost, client.path("/"+o.path, url.Values{}), s, changed)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		if failures == 0 {
			note(err)
		}
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
}

// sleep waits, and returns an error if the user interrupts it.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return nil
}

func comma(n int) string { return humanize.Comma(int64(n)) }

func inboxPauseCommand() *cobra.Command {
	return inboxPauseOrResume(&cobra.Command{
		Use:   "pause",
		Short: "Stops delivery, as for maintenance of the backend",
		Long: `Stops delivery. New events are stored without being tried, and BuzzBip gets 200 for
them. Deliveries in progress continue. The pause lasts until "caddy buzzbip inbox
resume", also across reloads and restarts.`,
		Example: `  caddy buzzbip inbox pause`,
	}, "paused")
}

func inboxResumeCommand() *cobra.Command {
	return inboxPauseOrResume(&cobra.Command{
		Use:     "resume",
		Short:   "Starts delivery again after a pause",
		Long:    `Starts delivery again. Events that became due in the meantime are delivered at once.`,
		Example: `  caddy buzzbip inbox resume`,
	}, "resumed")
}

func inboxPauseOrResume(cmd *cobra.Command, done string) *cobra.Command {
	var o inboxFlags
	o.add(cmd)
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := o.client()
		if err != nil {
			return err
		}
		var answer adminapi.InboxChange
		if err := client.ask(cmd.Context(), http.MethodPost, client.path("/"+cmd.Name(), url.Values{}), nil, &answer); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s delivery: %s waiting\n", done, plural(answer.Events))
		return err
	}
	return cmd
}
