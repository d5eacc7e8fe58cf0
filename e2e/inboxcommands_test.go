package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// desk is a Caddy whose inbox has events that its backend did not take.
type desk struct {
	*caddytest.Caddy
	t      *testing.T
	url    string
	status atomic.Int64 // of the backend

	mu       sync.Mutex
	accepted []string // the IDs of the events, in order
	attempts []string // the headers Redelivery-Attempt of those
}

// newDesk starts one. Events are not delivered again before an hour has passed, and
// die of a 422.
func newDesk(t *testing.T, options string) *desk {
	d := &desk{t: t}
	d.status.Store(http.StatusServiceUnavailable)
	b := caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		status := int(d.status.Load())
		if status == http.StatusOK {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.accepted = append(d.accepted, r.Header.Get("X-Event"))
			d.attempts = append(d.attempts, r.Header.Get("Redelivery-Attempt"))
		}
		w.WriteHeader(status)
	})
	address := caddytest.FreeAddress(t)
	d.url = "http://" + address
	d.Caddy = caddytest.Start(t, "", "", fmt.Sprintf(`
http://%s {
	buzzbip_webhook %s {
		inbox sqlite {
			retry 1h
			dead_on 422
			%s
		}
	}
	reverse_proxy %s {
		header_up X-Event {http.buzzbip_webhook.event.id}
	}
}`, address, caddytest.Secret, options, b.Address()))
	return d
}

// send sends events, of which the backend answers each with a status.
func (d *desk) send(status int, ids ...string) {
	d.t.Helper()
	d.status.Store(int64(status))
	for _, id := range ids {
		if got := caddytest.Post(d.t.Context(), d.url, caddytest.Event{ID: id}.Body()); got.Status != http.StatusOK {
			d.t.Fatalf("%s: %+v", id, got)
		}
	}
}

// sendMany sends n events with IDs that begin with a prefix.
func (d *desk) sendMany(status, n int, prefix string) {
	d.t.Helper()
	for i := range n {
		d.send(status, fmt.Sprintf("%s%03d", prefix, i))
	}
}

// inbox runs `caddy buzzbip inbox`.
func (d *desk) inbox(args ...string) ran {
	d.t.Helper()
	return run(d.t, "", d.args(args...)...)
}

func (d *desk) args(args ...string) []string {
	return append([]string{"inbox", args[0], "--address", d.Admin}, args[1:]...)
}

// atTerminal runs `caddy buzzbip inbox` at a terminal where a user types input.
func (d *desk) atTerminal(input string, args ...string) ran {
	d.t.Helper()
	cmd := exec.Command("script", "-qec", caddytest.Binary+" buzzbip "+strings.Join(d.args(args...), " "), "/dev/null")
	cmd.Stdin = strings.NewReader(input)
	cmd.Env = append(os.Environ(), "COLUMNS=200")
	out, _ := cmd.CombinedOutput() // the exit code counts
	return ran{out: strings.ReplaceAll(string(out), "\r\n", "\n"), code: cmd.ProcessState.ExitCode()}
}

// lines returns the lines of JSON that a command has printed.
func lines(t *testing.T, r ran) (all []map[string]any) {
	t.Helper()
	if r.code != 0 {
		t.Errorf("it ended with %d: %s", r.code, r.err)
	}
	for line := range strings.Lines(r.out) {
		var object map[string]any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, object)
	}
	return all
}

// lists fails the test unless a command lists events with these IDs, in this order.
func (r ran) lists(t *testing.T, ids ...string) {
	t.Helper()
	var got []string
	for _, e := range lines(t, r) {
		got = append(got, e["id"].(string))
	}
	if strings.Join(got, " ") != strings.Join(ids, " ") {
		t.Errorf("it lists %q, want %q", got, ids)
	}
}

// expectAccepted waits until the backend has accepted events and no others, in any
// order. One may be accepted twice.
func (d *desk) expectAccepted(ids ...string) {
	d.t.Helper()
	caddytest.WaitFor(d.t, "the backend to accept the events", func() bool { return d.count() >= len(ids) })
	d.mu.Lock()
	defer d.mu.Unlock()
	want, got := make(map[string]bool), make(map[string]bool)
	for _, id := range ids {
		want[id] = true
	}
	for _, id := range d.accepted {
		got[id] = true
	}
	if !maps.Equal(got, want) {
		d.t.Errorf("the backend accepted %v, want %v", d.accepted, ids)
	}
}

// expectKept waits until these events are left in the inbox, and no others.
func (d *desk) expectKept(ids ...string) {
	d.t.Helper()
	caddytest.WaitFor(d.t, "the accepted events to leave the inbox", func() bool { return len(lines(d.t, d.inbox("list"))) <= len(ids) })
	d.inbox("list").lists(d.t, ids...)
}

func (d *desk) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.accepted)
}

func TestInboxList(t *testing.T) {
	d := newDesk(t, "")
	began := time.Now().UTC()
	d.send(http.StatusUnprocessableEntity, "dead1", "dead2")
	d.send(http.StatusInternalServerError, "wait1", "7")
	d.inbox("list").lists(t, "dead1", "dead2", "wait1", "7")
	first := lines(t, d.inbox("list", "--limit", "1"))[0]
	if first["state"] != "dead" || first["type"] != "message.received" || first["attempts"] != 1.0 || first["last"].(map[string]any)["status"] != 422.0 || first["body"] != nil {
		t.Errorf("the first one is %v", first)
	}
	d.inbox("list", "--limit", "3").says(t, 0, "there may be more: add --after 3\n")
	d.inbox("list", "--limit", "3", "--after", "3").lists(t, "7")
	for args, want := range map[string]string{
		"--state dead":                 "dead1 dead2",
		"--state dead,waiting":         "dead1 dead2 wait1 7",
		"--state dead --state waiting": "dead1 dead2 wait1 7",
		"--status 500":                 "wait1 7",
		"--status 500 --id 7":          "7",
		"--type message.sent":          "",
		"--key x":                      "",
		"--since 1h --until 1d":        "",
		"--since 1h":                   "dead1 dead2 wait1 7",
		"--until 2h":                   "",
		"--until 2100-01-01T00:00:00Z": "dead1 dead2 wait1 7",
		"--since " + began.Add(time.Hour).Format(time.RFC3339): "",
		"dead2 wait1": "dead2 wait1",
		"2 3":         "dead2 wait1",
	} {
		var ids []string
		if want != "" {
			ids = strings.Split(want, " ")
		}
		d.inbox(append([]string{"list"}, strings.Fields(args)...)...).lists(t, ids...)
	}
	d.inbox("list", "--since", "yesterday").says(t, 1, `--since "yesterday" is neither a time such as 2026-06-01T14:32:00Z nor how long ago, such as 2h or 3d`)
	d.inbox("list", "--state", "ded").says(t, 1, `there is no state "ded": there are waiting, dead, accepted and delivered`)
	d.inbox("list", "--type", "message.*").says(t, 1, `--type takes full types such as message.received, not "message.*"`)
	d.inbox("list", "--inbox", "none").says(t, 1, `there is no inbox "none": say which, of "sqlite `)
	d.inbox("list", "--address", "http://"+d.Admin).says(t, 1, "is not the address of an admin endpoint, such as localhost:2019")
	d.inbox("list", "2", "dead1").says(t, 1, "either numbers or IDs")
	d.inbox("list", "--address", caddytest.FreeAddress(t)).says(t, 1, "Is Caddy running")
	if got := d.atTerminal("", "list", "--type", "mesage.received"); got.code != 0 || got.out != "no event matches\n2 waiting, 2 dead\n" {
		t.Errorf("for a type that no event has, it prints %+v", got)
	}
	table := d.atTerminal("", "list", "--state", "dead")
	table.says(t, 0, "NUMBER  STATE  TYPE              ID     ARRIVED               ATTEMPTS  LAST ATTEMPT\n",
		"1       dead   message.received  dead1  "+began.Format("2006-01-02T"), "1         422 status_4xx: 422 Unprocessable Entity from 127.0.0.1:", "2 waiting, 2 dead\n")
	d.inbox("pause").says(t, 0, "paused delivery: 2 events waiting\n")
	d.atTerminal("", "list").says(t, 0, "2 waiting, 2 dead; paused since 20")
	if got := d.atTerminal("", "list", "--json"); strings.Contains(got.out, "NUMBER") {
		t.Errorf("with --json, it prints %s", got.out)
	}
}

func TestInboxShow(t *testing.T) {
	d := newDesk(t, "")
	d.send(http.StatusUnprocessableEntity, "evt_show", "other")
	for _, which := range []string{"evt_show", "1"} {
		d.inbox("show", which).says(t, 0, "number    1\n", "state     dead since 20", "ID        evt_show\n", "attempts  1\n",
			" 422 status_4xx: 422 Unprocessable Entity from 127.0.0.1:", ", after 0.", "request   "+d.url+"/ from 127.0.0.1:", "\nX-Buzzbip-Signature: ", "\n{\n  \"id\": \"evt_show\",\n")
	}
	var event struct{ Body string }
	got := d.inbox("show", "evt_show", "--json")
	if err := json.Unmarshal([]byte(got.out), &event); err != nil || !strings.Contains(event.Body, `{"id":"evt_show"`) {
		t.Errorf("%v: %+v", err, got)
	}
	d.inbox("show", "unknown").says(t, 1, "no event in the inbox has this ID")
	d.inbox("show", "99").says(t, 1, "no such event in the inbox")
	d.inbox("show").says(t, 1, "Usage: caddy buzzbip inbox show <number|id>")
}

func TestInboxRetryAndDiscard(t *testing.T) {
	d := newDesk(t, "")
	d.send(http.StatusUnprocessableEntity, "a", "b", "c", "d")
	d.send(http.StatusInternalServerError, "e")
	d.status.Store(http.StatusOK)
	for _, change := range []string{"retry", "discard"} {
		d.inbox(change).says(t, 1, "say which events, by their numbers or IDs or by a filter, or give --all")
		d.inbox(change, "--state", "dead").says(t, 1, "4 events? ", "There is no terminal to ask at: give --yes")
		d.inbox(change, "unknown", "--yes").says(t, 0, "no event matches\n")
		d.inbox(change, "--state", "delivered", "--yes").says(t, 0, "no event matches\n")
	}
	d.inbox("retry", "b", "--yes").says(t, 0, "retried 1 event\n")
	d.expectAccepted("b")
	d.inbox("discard", "--id", "c", "--state", "dead", "--yes").says(t, 0, "discarded 1 event\n")
	d.expectKept("a", "d", "e")
	d.atTerminal("n\n", "discard", "--state", "dead").says(t, 1, "Discard 2 events? This cannot be undone. [y/N] ", "nothing was changed")
	d.atTerminal("\n", "retry", "a").says(t, 1, "Retry 1 event? [y/N] ", "nothing was changed")
	d.expectKept("a", "d", "e")
	d.atTerminal("y\n", "discard", "a").says(t, 0, "discarded 1 event\n")
	d.atTerminal("yes\n", "retry", "--all").says(t, 0, "Retry 2 events?", "retried 0 of 2 events", "retried 2 events\n")
	d.expectAccepted("b", "d", "e")
	d.expectKept()
	d.inbox("retry", "--all", "--yes").says(t, 0, "no event matches")
}

func TestInboxCommandsTakeMoreThanAPage(t *testing.T) {
	const events = 520 // a page of the admin API has at most 500
	d := newDesk(t, "")
	d.sendMany(http.StatusUnprocessableEntity, events, "evt_")
	got := d.inbox("list", "--limit", "510")
	if got.says(t, 0, "add --after 510\n"); len(lines(t, got)) != 510 {
		t.Errorf("%d events are listed", len(lines(t, got)))
	}
	if got := d.inbox("list", "--limit", "9999"); len(lines(t, got)) != events || got.err != "" {
		t.Errorf("%d events are listed: %s", len(lines(t, got)), got.err)
	}
	if got := lines(t, d.inbox("export")); len(got) != events {
		t.Errorf("%d events are exported", len(got))
	}
	d.status.Store(http.StatusOK)
	d.inbox("discard", "--state", "dead", "--until", "1h", "--yes").says(t, 0, "no event matches")
	d.inbox("retry", "--state", "dead", "--yes").says(t, 0, "retried 520 events\n")
	caddytest.WaitFor(t, "all events to be accepted", func() bool { return d.count() == events })
	d.inbox("list", "--limit", "0").says(t, 1, "--limit must be greater than zero")
	d.inbox("retry", "--all", "--rate", "0").says(t, 1, "--rate must be greater than zero")
}

// retryAtARate begins to retry dead events, and returns when the backend has accepted
// the first of them.
func (d *desk) retryAtARate(rate string) (cmd *exec.Cmd, out caddytest.Output) {
	d.t.Helper()
	d.status.Store(http.StatusOK)
	cmd = exec.Command(caddytest.Binary, append([]string{"buzzbip"}, d.args("retry", "--state", "dead", "--rate", rate, "--yes")...)...)
	out = caddytest.Capture(d.t, cmd)
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = cmd.Process.Kill() })
	caddytest.WaitFor(d.t, "the first event", func() bool { return d.count() >= 1 })
	return cmd, out
}

func TestInboxRetryAtARateCanBeInterrupted(t *testing.T) {
	const events = 30
	d := newDesk(t, "")
	d.sendMany(http.StatusUnprocessableEntity, events, "evt_")
	cmd, out := d.retryAtARate("3")
	_ = cmd.Process.Signal(os.Interrupt)
	err := cmd.Wait()
	var done int
	if _, scanErr := fmt.Sscanf(out.String(), "Error: retried %d of 30 events: interrupted\nThe others are as they were", &done); err == nil || scanErr != nil || done < 1 || done >= events {
		t.Fatalf("%v, %v: %s", err, scanErr, out.String())
	}
	caddytest.WaitFor(t, "the retried events to be accepted", func() bool { return d.count() == done })
	if got := len(lines(t, d.inbox("list", "--state", "dead"))); got != events-done {
		t.Errorf("%d are dead, want %d", got, events-done)
	}
	d.inbox("retry", "--state", "dead", "--yes").says(t, 0, fmt.Sprintf("retried %d events\n", events-done))
	caddytest.WaitFor(t, "all events to be accepted", func() bool { return d.count() == events })
}

func TestInboxRetryAtARateSurvivesACrash(t *testing.T) {
	d := newDesk(t, "")
	d.send(http.StatusUnprocessableEntity, "a", "b", "c", "d", "e")
	cmd, out := d.retryAtARate("1")
	d.Kill()
	caddytest.WaitFor(t, "the command to notice", func() bool { return strings.Contains(out.String(), "note: trying again for up to 1m0s: ") })
	d.Restart()
	if err := cmd.Wait(); err != nil || !strings.HasSuffix(out.String(), "\nretried 5 events\n") {
		t.Errorf("%v: %s", err, out.String())
	}
	caddytest.WaitFor(t, "all events to be accepted", func() bool {
		return d.Metric(`inbox_events{state="waiting"}`)+d.Metric(`inbox_events{state="dead"}`) == 0
	})
	d.expectAccepted("a", "b", "c", "d", "e")
}

func TestInboxPauseAndResume(t *testing.T) {
	d := newDesk(t, "")
	d.inbox("pause").says(t, 0, "paused delivery: 0 events waiting\n")
	d.send(http.StatusOK, "a", "b")
	d.inbox("retry", "--all", "--yes").says(t, 0, "retried 2 events\n", `note: delivery is paused: they wait for "caddy buzzbip inbox resume"`)
	if n := d.count(); n != 0 {
		t.Errorf("%d events were delivered", n)
	}
	d.Kill()
	d.Restart()
	d.inbox("resume").says(t, 0, "resumed delivery: 2 events waiting\n")
	d.expectAccepted("a", "b")
}

func TestInboxExportCanBeSentElsewhere(t *testing.T) {
	d := newDesk(t, "")
	d.send(http.StatusUnprocessableEntity, "a", "b")
	d.send(http.StatusInternalServerError, "c")
	exported := d.inbox("export", "--status", "422")
	events := lines(t, exported)
	if len(events) != 2 || events[1]["id"] != "b" || !strings.HasPrefix(events[1]["body"].(string), `{"id":"b"`) || events[1]["request"].(map[string]any)["header"] == nil {
		t.Errorf("exported %v", events)
	}
	url, _ := endpoint(t, "")
	run(t, "", "send", url, "--export", write(t, exported.out)).says(t, 0, "a  200 OK\nb  200 OK\n2 of 2 events accepted\n")
	run(t, d.inbox("export").out, "send", url, "--export", "-").says(t, 0, "a  200 OK (duplicate)\nb  200 OK (duplicate)\nc  200 OK\n3 of 3 events accepted\n")
	runWith(t, []string{"BUZZBIP_SECRET=another"}, exported.out, "send", url, "--export", "-").says(t, 1, "a  401 Unauthorized\nb  401 Unauthorized\n0 of 2 events accepted\n", "send them again")
	run(t, `{"id":"x"}`, "send", url, "--export", "-").says(t, 1, "after 0 events: not an export: an event has no body")
	run(t, "x", "send", url, "--export", "-").says(t, 1, "after 0 events: not an export")
	run(t, "", "send", url, "--export", "-", "--id", "x").says(t, 1, "--id is for new events: leave it out, or --export")
	run(t, "", "send", url, "--export", "-", "--body-file", "-").says(t, 1, "either --export or --body-file")
}

func TestInboxCommandsAreAboutOneOfSeveralInboxes(t *testing.T) {
	dir, sites := t.TempDir(), make([]string, 2)
	var caddyfile strings.Builder
	for i := range sites {
		sites[i] = caddytest.FreeAddress(t)
		fmt.Fprintf(&caddyfile, "http://%s {\n\tbuzzbip_webhook %s {\n\t\tscope site%d\n\t\tinbox sqlite %s {\n\t\t\tdead_on 422\n\t\t}\n\t}\n\terror 422\n}\n",
			sites[i], caddytest.Secret, i, filepath.Join(dir, fmt.Sprint(i, ".db")))
	}
	c := caddytest.Start(t, "", "", caddyfile.String())
	caddytest.Post(t.Context(), "http://"+sites[1], caddytest.Event{ID: "evt_1"}.Body())
	one := "sqlite " + filepath.Join(dir, "1.db")
	for _, args := range [][]string{{"list"}, {"show", "evt_1"}, {"retry", "--all"}, {"discard", "--all"}, {"pause"}, {"resume"}, {"export"}} {
		args = append([]string{"inbox", args[0], "--address", c.Admin}, args[1:]...)
		run(t, "", args...).says(t, 1, `there are several inboxes: say which, of "sqlite `, `"`+one+`"`)
	}
	run(t, "", "inbox", "list", "--address", c.Admin, "--inbox", one).lists(t, "evt_1")
	run(t, "", "inbox", "list", "--address", c.Admin, "--inbox", "sqlite "+filepath.Join(dir, "0.db")).lists(t)
	run(t, "", "inbox", "discard", "evt_1", "--yes", "--address", c.Admin, "--inbox", one).says(t, 0, "discarded 1 event")
	run(t, "", "inbox", "pause", "--address", c.Admin, "--inbox", one).says(t, 0, "paused")
	run(t, "", "inbox", "export", "--address", c.Admin, "--inbox", one).says(t, 0)
	run(t, "", "inbox", "resume", "--address", c.Admin, "--inbox", one).says(t, 0, "resumed")
}

// An operator replays what was delivered, after a bug in the backend.
func TestInboxReplaysDeliveredEvents(t *testing.T) {
	d := newDesk(t, "keep_delivered 1h")
	d.send(http.StatusOK, "a", "b")
	d.send(http.StatusServiceUnavailable, "c")
	d.status.Store(http.StatusOK)
	d.inbox("retry", "c", "--yes").says(t, 0, "retried 1 event\n")
	delivered := func(n float64) {
		t.Helper()
		caddytest.WaitFor(t, "the events to be delivered", func() bool { return d.Metric(`inbox_events{state="delivered"}`) == n })
	}
	delivered(3)
	d.inbox("list", "--state", "delivered").lists(t, "a", "b", "c")
	d.inbox("retry", "--all", "--yes").says(t, 0, "no event matches\n") // without --state, they are not meant
	d.inbox("retry", "--state", "delivered", "--since", "1h", "--rate", "100", "--yes").says(t, 0, "retried 3 events\n")
	caddytest.WaitFor(t, "the replay", func() bool { return d.count() == 6 })
	delivered(3)
	if got := d.Series("inbox_attempts_total")[`result="accepted"`]; got != 4 {
		t.Errorf("%v attempts are counted", got)
	}
	d.send(http.StatusOK, "a") // a duplicate of BuzzBip is one as before
	d.mu.Lock()
	if got := strings.Join(d.attempts[3:], " "); len(d.attempts) != 6 || got != "1 1 1" || d.attempts[0] != "" {
		t.Errorf("the attempts are marked as %q", d.attempts)
	}
	d.mu.Unlock()
	d.inbox("list", "--state", "delivered").lists(t, "a", "b", "c")

	d.status.Store(http.StatusServiceUnavailable) // a replay that fails is tried again
	d.inbox("retry", "b", "--yes").says(t, 0, "retried 1 event\n")
	caddytest.WaitFor(t, "the failure to be recorded", func() bool { return len(lines(t, d.inbox("list", "--state", "waiting", "--status", "503"))) == 1 })
	d.status.Store(http.StatusOK)
	d.inbox("retry", "b", "--yes")
	delivered(3)
}
