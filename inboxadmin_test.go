package buzzbip

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// slowRetries are the options of [kept], with events that stay where they are. No
// other test has the scope.
func slowRetries(t testing.TB, options string) string {
	return strings.Replace(kept(t, options), "retry 50ms 200ms", "retry 1h", 1) + "\nscope " + t.Name()
}

// askFor asks the admin API for JSON.
func askFor[T any](t testing.TB, method, path, body string) (answer T) {
	t.Helper()
	text, err := ask(t, method, path, body)
	if err == nil {
		err = json.Unmarshal([]byte(text), &answer)
	}
	if err != nil {
		t.Fatalf("%s %s: %v: %s", method, path, err, text)
	}
	return answer
}

func TestInboxSummarySaysWhatWaitsAndWhy(t *testing.T) {
	refused := caddytest.FreeAddress(t)
	resets, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer resets.Close()
	go func() {
		for {
			conn, err := resets.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				_, _ = io.Copy(io.Discard, r.Body)
			}
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
		}
	}()
	s := start(t, "buzzbip_webhook "+caddytest.Secret+" {\n"+slowRetries(t, "dead_on 422")+`
}
handle /refused {
	reverse_proxy `+refused+`
}
handle /resets* {
	reverse_proxy `+resets.Addr().String()+`
}
handle /invalid {
	error 422
}`)
	began := time.Now()
	for _, path := range []string{"/resets1", "/resets2", "/resets3", "/refused", "/refused", "/invalid"} {
		r := signed(s.url, caddytest.NewEvent())
		r.URL.Path = path
		expect(t, send(newClient(t, "HTTP/1.1"), r), http.StatusOK, webhook.ResultStored)
	}
	var got adminapi.InboxSummary
	caddytest.WaitFor(t, "the attempts to be recorded", func() bool {
		got = askFor[adminapi.InboxSummary](t, http.MethodGet, "inbox/summary", "")
		return got.Inboxes[0].Dead == 1
	})
	in := got.Inboxes[0]
	if len(got.Inboxes) != 1 || !strings.HasPrefix(in.Inbox, "sqlite /") || in.Waiting != 5 || in.Bytes < 300 || in.Oldest == nil || in.Paused != nil || in.Error != "" || len(in.Groups) != 4 {
		t.Fatalf("got %+v", got)
	}
	wants := []adminapi.InboxGroup{
		{State: "waiting", Cause: "connection_broken", Error: "read tcp " + resets.Addr().String() + ": read: connection reset by peer", Events: 3},
		{State: "waiting", Cause: "unreachable", Error: "dial tcp " + refused + ": connect: connection refused", Events: 1},
		{State: "waiting", Events: 1}, // stored without an attempt, while the backend is known to be down
		{State: "dead", Status: 422, Cause: "status_4xx", Events: 1},
	}
	for _, want := range wants {
		found := false
		for _, g := range in.Groups {
			if g.State != want.State || g.Cause != want.Cause {
				continue
			}
			found = true
			if g.Status != want.Status || g.Error != want.Error || g.Events != want.Events || g.Since.Before(began) || (g.Next == nil) != (g.State == "dead") {
				t.Errorf("got %+v, want %+v", g, want)
			}
		}
		if !found {
			t.Errorf("%+v is not in %+v", want, in.Groups)
		}
	}
}

func TestInboxSummaryTellsThatRedeliveryIsPaused(t *testing.T) {
	start(t, proxied(newBackend(t, nil), kept(t, "")))
	if got, err := ask(t, http.MethodPost, "inbox/pause", ""); err != nil {
		t.Fatal(got, err)
	}
	text, err := ask(t, http.MethodGet, "inbox/summary", "")
	if err != nil || !strings.Contains(text, `"waiting":0,"dead":0,"delivered":0,"bytes":0,"oldest":null,"paused":"`) || !strings.Contains(text, `"error":"","groups":[]}]}`) {
		t.Errorf("got %s, error %v", text, err)
	}
}

func TestInboxSummaryWithoutAnInboxIsEmpty(t *testing.T) {
	start(t, proxied(newBackend(t, nil), ""))
	if text, err := ask(t, http.MethodGet, "inbox/summary", ""); err != nil || text != `{"inboxes":[]}`+"\n" {
		t.Errorf("got %s, error %v", text, err)
	}
}

// storeEvents sends events that a backend does not take.
func storeEvents(t testing.TB, s *site, events ...caddytest.Event) {
	t.Helper()
	for _, e := range events {
		expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, e.Body())), http.StatusOK, webhook.ResultStored)
	}
}

func idsOf(events []adminapi.InboxEvent) string {
	var ids []string
	for _, e := range events {
		ids = append(ids, e.ID)
	}
	return strings.Join(ids, " ")
}

func TestInboxIsListedInPages(t *testing.T) {
	b, _ := failing(t, http.StatusInternalServerError)
	s := start(t, proxied(b, slowRetries(t, "")))
	storeEvents(t, s, caddytest.Event{ID: "a"}, caddytest.Event{ID: "b", Type: "message.sent"}, caddytest.Event{ID: "c"}, caddytest.Event{ID: "d"})
	list := func(query string) adminapi.Inbox {
		t.Helper()
		return askFor[adminapi.Inbox](t, http.MethodGet, "inbox?"+query, "")
	}
	first := list("limit=3")
	if idsOf(first.Events) != "a b c" || first.Next == 0 || first.Waiting != 4 {
		t.Errorf("the first page is %+v", first)
	}
	if last := list(fmt.Sprint("limit=3&after=", first.Next)); idsOf(last.Events) != "d" || last.Next != 0 {
		t.Errorf("the last page is %+v", last)
	}
	for query, want := range map[string]string{
		"":                     "a b c d",
		"type=message.sent":    "b",
		"id=a&id=d&id=unknown": "a d",
		"state=dead":           "",
		"state=dead&state=waiting&status=500&limit=1": "a",
		"status=0":                   "",
		"since=2100-01-01T00:00:00Z": "",
		"until=2100-01-01T00:00:00Z&type=message.received": "a c d",
		fmt.Sprint("number=", first.Events[1].Number):      "b",
	} {
		if got := list(query); idsOf(got.Events) != want {
			t.Errorf("%s: got %s, want %s", query, idsOf(got.Events), want)
		}
	}
	for query, want := range map[string]string{
		"limit=501":  "limit: it may be from 1 to 500",
		"limit=-1":   "limit: it may be from 1 to 500",
		"limit=many": "limit: ",
		"state=ded":  `there is no state "ded": there are waiting, dead, accepted and delivered`,
		"stat=dead":  "unknown parameter",
		"since=now":  "since: ",
		"number=x":   "number: ",
	} {
		if text, err := ask(t, http.MethodGet, "inbox?"+query, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v %s", query, err, text)
		}
	}
}

func TestInboxChangesTakeFiltersWithSingleValuesAndLists(t *testing.T) {
	b, _ := failing(t, http.StatusInternalServerError)
	s := start(t, proxied(b, slowRetries(t, "")))
	storeEvents(t, s, caddytest.Event{ID: "a"}, caddytest.Event{ID: "b"}, caddytest.Event{ID: "c"})
	change := func(path, filter string, want int) adminapi.InboxChange {
		t.Helper()
		got := askFor[adminapi.InboxChange](t, http.MethodPost, "inbox/"+path, filter)
		if got.Events != want {
			t.Errorf("%s %s: %d events, want %d", path, filter, got.Events, want)
		}
		return got
	}
	change("retry", `{"state":"waiting","dry_run":true}`, 3)
	change("discard", `{"id":["a","b"],"status":500,"dry_run":true}`, 2)
	change("discard", `{"id":"a","state":["dead"]}`, 0)
	if n := inboxStats(t).Waiting; n != 3 {
		t.Errorf("a dry run left %d events", n)
	}
	for filter, want := range map[string]string{
		`{"id":[]}`:                       "leave the name out to select all",
		`{"id":null}`:                     "leave the name out to select all",
		`null`:                            "it is null",
		``:                                "give a filter as a JSON object",
		`[]`:                              "give a filter as a JSON object",
		`{"ids":["a"]}`:                   "unknown field",
		`{"id":1}`:                        "give a filter as a JSON object",
		`{"id":"a"} {"id":"b"}`:           "after the filter",
		`{"state":["waiting","ded"]}`:     `there is no state "ded": there are waiting`,
		`{"state":"waiting","limit":501}`: "limit: it may be from 1 to 500",
	} {
		if text, err := ask(t, http.MethodPost, "inbox/discard", filter); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v %s", filter, err, text)
		}
	}
	if n := inboxStats(t).Waiting; n != 3 {
		t.Errorf("filters that are wrong left %d events", n)
	}
	next := change("discard", `{"state":"waiting","limit":2}`, 2).Next
	if next == 0 {
		t.Error("there is no next page")
	}
	if last := change("retry", fmt.Sprintf(`{"limit":2,"after":%d}`, next), 1); last.Next != 0 {
		t.Errorf("there is a page after the last one: %+v", last)
	}
	change("retry", `{"limit":2,"after":1000}`, 0)
	if got := askFor[adminapi.Inbox](t, http.MethodGet, "inbox", ""); idsOf(got.Events) != "c" {
		t.Errorf("left are %s", idsOf(got.Events))
	}
}

func TestInboxIsExportedAsLinesOfWholeEvents(t *testing.T) {
	b, _ := failing(t, http.StatusInternalServerError)
	s := start(t, proxied(b, slowRetries(t, "")))
	const events = adminapi.MaxInboxPage + 3 // more than a page
	bodies := make(map[string]string)
	for n := range events {
		e := caddytest.Event{ID: fmt.Sprint("evt_", n), Created: time.Now(), Data: `{"text":"<é\u2028\ud83d>"}`}
		bodies[e.ID] = e.Body()
		storeEvents(t, s, e)
	}
	export := func(query string) (got []adminapi.InboxEvent) {
		t.Helper()
		text, err := ask(t, http.MethodGet, "inbox/export?"+query, "")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(text) {
			var e adminapi.InboxEvent
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			got = append(got, e)
		}
		return got
	}
	all := export("")
	for _, e := range all {
		if string(e.Payload()) != bodies[e.ID] || e.Request.Header.Get(webhook.SignatureHeader) == "" || e.Request.URI == "" {
			t.Errorf("exported %+v, want %s", e, bodies[e.ID])
		}
		delete(bodies, e.ID)
	}
	if len(bodies) > 0 {
		t.Errorf("%d events are missing", len(bodies))
	}
	if got := idsOf(export(fmt.Sprint("after=", all[events-2].Number))); got != "evt_502" {
		t.Errorf("exported %s", got)
	}
	if got := export("state=dead"); len(got) != 0 {
		t.Errorf("exported %s", idsOf(got))
	}
}

func TestBodiesThatAreNotTextAreExported(t *testing.T) {
	for body, want := range map[string]string{"{}": `"body":"{}"`, "\xff": `"body_base64":"/w=="`} {
		var e adminapi.InboxEvent
		e.SetBody([]byte(body))
		text, err := json.Marshal(e)
		if err != nil || !strings.Contains(string(text), want) || string(e.Payload()) != body {
			t.Errorf("got %s, error %v", text, err)
		}
	}
}
