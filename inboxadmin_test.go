package buzzbip

import (
	"bufio"
	"encoding/json"
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

// slowRetries are the options of [kept], with events that stay where they are.
func slowRetries(t testing.TB, options string) string {
	return strings.Replace(kept(t, options), "retry 50ms 200ms", "retry 1h", 1)
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
	refused, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused.Close()
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
	reverse_proxy `+refused.Addr().String()+`
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
		{State: "waiting", Cause: "unreachable", Error: "dial tcp " + refused.Addr().String() + ": connect: connection refused", Events: 1},
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
