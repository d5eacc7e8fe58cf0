package buzzbip

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

func TestOrderKeyIsTheFirstStringOrNumber(t *testing.T) {
	o, err := newOrderBy([]string{"conversation.id", `a\.b`, "contacts.0.id"})
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 256)
	for data, want := range map[string]string{
		`{"conversation":{"id":"conv_1"},"contacts":[{"id":"c_1"}]}`: "conv_1",
		`{"conversation":{"id":17}}`:                                 "17",
		`{"conversation":{"id":9007199254740993}}`:                   "9007199254740993", // no float64
		`{"conversation":{"id":"a\u00e9\"\ud83c\udf89"}}`:            "aé\"🎉",
		`{"a.b":"dot","contacts":[{"id":"c_1"}]}`:                    "dot",
		`{"conversation":null,"contacts":[{"id":"c_1"}]}`:            "c_1",
		`{"conversation":{"id":""},"contacts":[{"id":"c_1"}]}`:       "c_1",
		`{"conversation":{"id":true},"contacts":[{"id":"c_1"}]}`:     "c_1",
		`{"conversation":{"id":{"x":1}},"contacts":[{"id":"c_1"}]}`:  "c_1",
		`{"conversation":{"id":[1]},"contacts":[{"id":"c_1"}]}`:      "c_1",
		`{"contact":{"id":"c_1"}}`:                                   "",
		`{}`:                                                         "",
		``:                                                           "",
		`{"conversation":{"id":"` + long + `"}}`:                     long,
		`{"conversation":{"id":"` + long + `x"}}`:                    fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(long+"x"))),
	} {
		if got := o.key([]byte(data)); got != want {
			t.Errorf("the key of %.70s is %q, want %q", data, got, want)
		}
	}
}

// of returns a new event with data of a conversation.
func of(conversation string) string {
	return caddytest.Event{Data: fmt.Sprintf(`{"conversation":{"id":%q}}`, conversation)}.Body()
}

// hangingFor returns a backend that answers each event with what is sent to the channel
// of its conversation, a or b.
func hangingFor(t *testing.T) (b *backend, release map[string]chan int) {
	release = map[string]chan int{"a": make(chan int), "b": make(chan int)}
	b = newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		for conversation, answers := range release {
			if strings.Contains(string(body), fmt.Sprintf(`{"id":%q}`, conversation)) {
				w.WriteHeader(<-answers)
			}
		}
	})
	return b, release
}

const byConversation = "order_by conversation.id\n"

// awaitWaiting waits until events take so much memory that wait for something.
func awaitWaiting(t *testing.T, bytes int64) {
	t.Helper()
	caddytest.WaitFor(t, fmt.Sprintf("%d bytes to wait", bytes), func() bool {
		underWay.mu.Lock()
		defer underWay.mu.Unlock()
		return underWay.waiting == bytes
	})
}

func TestEventsWithOneKeyAreDeliveredOneAtATimeInOrderOfArrival(t *testing.T) {
	for _, status := range []int{http.StatusOK, http.StatusInternalServerError} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			b, release := hangingFor(t)
			s := start(t, proxied(b, byConversation+"answer_within 1h"))
			client := newClient(t, "HTTP/1.1")
			var bodies []string
			var answers []<-chan response
			var waiting int64
			for i := range 5 {
				bodies = append(bodies, of("a"))
				answers = append(answers, sendAsync(client, signed(s.url, bodies[i])))
				if i > 0 {
					waiting += costOf(bodies[i])
				}
				awaitWaiting(t, waiting)
				if i == 0 {
					caddytest.Receive(t, b.arrived, "the first event")
				}
			}
			other := sendAsync(client, signed(s.url, of("b")))
			caddytest.Receive(t, b.arrived, "an event of another conversation")
			release["b"] <- http.StatusOK
			expect(t, caddytest.Receive(t, other, "its answer"), http.StatusOK, "")
			b.expectCount(t, 2)
			for i := range bodies {
				release["a"] <- status
				expect(t, caddytest.Receive(t, answers[i], "an answer"), status, "")
				if i+1 < len(bodies) {
					if got := caddytest.Receive(t, b.arrived, "the next event"); got.body != bodies[i+1] {
						t.Errorf("after event %d, the backend got %s", i, got.body)
					}
				}
			}
		})
	}
}

func TestEventThatWaitsTooLongForItsTurnIsAskedToRetry(t *testing.T) {
	b, release := hanging(t)
	s := start(t, proxied(b, byConversation+"answer_within 100ms")+explained)
	client := newClient(t, "HTTP/1.1")
	first := sendAsync(client, signed(s.url, of("a")))
	caddytest.Receive(t, b.arrived, "the first event")
	second := of("a")
	got := send(client, signed(s.url, second))
	expectRejection(t, got, webhook.ReasonOverloaded)
	if got.header.Get("Retry-After") == "" {
		t.Error("there is no Retry-After")
	}
	release <- http.StatusOK
	expect(t, caddytest.Receive(t, first, "the first answer"), http.StatusOK, "")
	retry := sendAsync(client, signed(s.url, second))
	caddytest.Receive(t, b.arrived, "the second event")
	release <- http.StatusOK
	expect(t, caddytest.Receive(t, retry, "the second answer"), http.StatusOK, "")
}

func TestOrderIsKeptAcrossAReload(t *testing.T) {
	for _, options := range []string{"", "store sqlite " + t.TempDir() + "/ids.db\n"} {
		b, release := hanging(t)
		directives := proxied(b, byConversation+options+"answer_within 1h")
		s := start(t, directives)
		s.reload(directives)
		client := newClient(t, "HTTP/1.1")
		host := func(r *http.Request) *http.Request { r.Host = "localhost"; return r } // the port changes
		first := sendAsync(client, host(signed(s.url, of("a"))))
		caddytest.Receive(t, b.arrived, "the first event")
		s.reload(directives)
		body := of("a")
		second := sendAsync(client, host(signed(s.url, body)))
		awaitWaiting(t, costOf(body))
		b.expectCount(t, 1)
		release <- http.StatusOK
		expect(t, caddytest.Receive(t, first, "the first answer"), http.StatusOK, "")
		release <- http.StatusOK
		expect(t, caddytest.Receive(t, second, "the second answer"), http.StatusOK, "")
	}
}

// Those that wait for one key leave room for others to wait in.
func TestHotKeyDoesNotTakeTheMemoryOfOthersThatWait(t *testing.T) {
	b, release := hanging(t)
	limit := 5 * laneShare / 2 * costOf(of("a"))
	s := start(t, proxied(b, fmt.Sprintf("%sanswer_within 1h\nmax_in_flight %d", byConversation, limit))+explained)
	client := newClient(t, "HTTP/1.1")
	var answers []<-chan response
	var taken int64
	for i, key := range []string{"hot", "hot", "hot", "b", "b"} {
		body := of(key)
		answers = append(answers, sendAsync(client, signed(s.url, body)))
		taken += costOf(body)
		caddytest.WaitFor(t, "the event", func() bool { return underWay.total() == taken })
		if i == 2 {
			expectRejection(t, send(client, signed(s.url, of(key))), webhook.ReasonOverloaded)
		}
	}
	caddytest.WaitFor(t, "both conversations", func() bool { return b.count() == 2 })
	for range answers {
		release <- http.StatusOK
	}
	for _, answer := range answers {
		expect(t, caddytest.Receive(t, answer, "an answer"), http.StatusOK, "")
	}
}

func TestSenderThatDisconnectsWhileItWaitsForItsTurnLeavesNothingBehind(t *testing.T) {
	b, release := hanging(t)
	s := start(t, proxied(b, byConversation+"answer_within 1h"))
	first := sendAsync(newClient(t, "HTTP/1.1"), signed(s.url, of("a")))
	caddytest.Receive(t, b.arrived, "the first event")
	impatient := newClient(t, "HTTP/1.1")
	impatient.Timeout = 100 * time.Millisecond
	if got := send(impatient, signed(s.url, of("a"))); got.err == nil {
		t.Error("it was answered", got.status)
	}
	awaitWaiting(t, 0)
	third := sendAsync(newClient(t, "HTTP/1.1"), signed(s.url, of("a")))
	release <- http.StatusOK
	expect(t, caddytest.Receive(t, first, "the first answer"), http.StatusOK, "")
	release <- http.StatusOK
	expect(t, caddytest.Receive(t, third, "the third answer"), http.StatusOK, "")
	b.expectCount(t, 2)
}

// Two handlers in the path of one request, each with a store of its own: the second
// would wait for the turn that the first one has.
func TestInnerHandlerDoesNotWaitForTheTurnOfItsOwnDelivery(t *testing.T) {
	b := newBackend(t, nil)
	directive := "buzzbip_webhook " + caddytest.Secret + " {\n" + byConversation + "answer_within 1h\n%s\n}\n"
	s := start(t, "route {\n"+fmt.Sprintf(directive, "")+fmt.Sprintf(directive, "store sqlite "+t.TempDir()+"/ids.db")+fmt.Sprintf(directive, "")+"reverse_proxy "+b.address()+"\n}")
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, of("a"))), http.StatusOK, "")
	b.expectCount(t, 1)
}

func TestWithAnInboxAnEventIsStoredBehindTheOneThatIsUnderWay(t *testing.T) {
	b, release := hangingFor(t)
	s := start(t, proxied(b, byConversation+"answer_within 1h\n"+kept(t, "")))
	client := newClient(t, "HTTP/1.1")
	bodies := []string{of("a"), of("a"), of("a"), of("b")}
	first := sendAsync(client, signed(s.url, bodies[0]))
	caddytest.Receive(t, b.arrived, "the first event")
	expect(t, send(client, signed(s.url, bodies[1])), http.StatusOK, webhook.ResultStored)
	expect(t, send(client, signed(s.url, bodies[2])), http.StatusOK, webhook.ResultStored)
	other := sendAsync(client, signed(s.url, bodies[3]))
	caddytest.Receive(t, b.arrived, "an event of another conversation")
	release["b"] <- http.StatusOK
	expect(t, caddytest.Receive(t, other, "its answer"), http.StatusOK, "")
	b.expectCount(t, 2)
	release["a"] <- http.StatusInternalServerError // now the first is stored before the others
	expect(t, caddytest.Receive(t, first, "the first answer"), http.StatusOK, webhook.ResultStored)
	for i := range 3 {
		if got := caddytest.Receive(t, b.arrived, "the next event"); got.body != bodies[i] {
			t.Errorf("the backend got %s, want event %d", got.body, i)
		}
		release["a"] <- http.StatusOK
	}
	waitForEmptyInbox(t)
	last := sendAsync(client, signed(s.url, of("a")))
	release["a"] <- http.StatusOK
	expect(t, caddytest.Receive(t, last, "the last answer"), http.StatusOK, "")
}

func TestWithAFullInboxEventsWaitForTheirTurn(t *testing.T) {
	b, release := hanging(t)
	s := start(t, proxied(b, byConversation+"answer_within 1h\n"+kept(t, "max_size 1")))
	client := newClient(t, "HTTP/1.1")
	first := sendAsync(client, signed(s.url, of("a")))
	caddytest.Receive(t, b.arrived, "the first event")
	body := of("a")
	second := sendAsync(client, signed(s.url, body))
	awaitWaiting(t, costOf(body))
	release <- http.StatusInternalServerError
	expect(t, caddytest.Receive(t, first, "the first answer"), http.StatusInternalServerError, "")
	release <- http.StatusOK
	expect(t, caddytest.Receive(t, second, "the second answer"), http.StatusOK, "")
}

// It cannot be delivered before the one that waits, nor be stored behind it.
func TestWithAFullInboxAnEventBehindOneThatWaitsIsAskedToRetry(t *testing.T) {
	b, working := failing(t, http.StatusInternalServerError)
	body := of("a")
	s := start(t, proxied(b, fmt.Sprintf("%sanswer_within 1h\n%s", byConversation, kept(t, "max_size 2KiB")))+explained)
	client := newClient(t, "HTTP/1.1")
	expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultStored)
	second := of("a")
	expectRejection(t, send(client, signed(s.url, second)), webhook.ReasonOverloaded)
	working.Store(true)
	waitForEmptyInbox(t)
	// the redelivery of the first may still be ending, and then the second is stored behind it
	if got := send(client, signed(s.url, second)); got.status != http.StatusOK {
		t.Errorf("answered %d %q, want 200", got.status, got.result())
	}
	waitForEmptyInbox(t)
	b.mu.Lock()
	defer b.mu.Unlock()
	if last := b.requests[len(b.requests)-1]; last.body != second {
		t.Errorf("the last event that the backend got is %s", last.body)
	}
}

func TestDeadEventLetsTheNextOfItsConversationPassAndTheLogSaysSo(t *testing.T) {
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("X-Poison"), "yes") {
			w.WriteHeader(http.StatusUnprocessableEntity)
		}
	})
	s := start(t, proxied(b, byConversation+kept(t, "accept always\ndead_on 422")))
	client := newClient(t, "HTTP/1.1")
	poison := signed(s.url, of("a"))
	poison.Header.Set("X-Poison", "yes")
	expect(t, send(client, poison), http.StatusOK, webhook.ResultStored)
	expect(t, send(client, signed(s.url, of("a"))), http.StatusOK, webhook.ResultStored)
	waitForEmptyInbox(t)
	b.expectCount(t, 2)
	if n := inboxStats(t).Dead; n != 1 {
		t.Errorf("%d are dead", n)
	}
	if !strings.Contains(s.logs(), "the next event with the same key of order_by passes it") {
		t.Errorf("the log is\n%s", s.logs())
	}
}

func TestDiscardedEventLetsTheNextOfItsConversationPassAndTheLogSaysSo(t *testing.T) {
	b, working := failing(t, http.StatusInternalServerError)
	s := start(t, proxied(b, byConversation+kept(t, "")))
	client := newClient(t, "HTTP/1.1")
	expect(t, send(client, signed(s.url, of("a"))), http.StatusOK, webhook.ResultStored)
	body := of("a")
	expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultStored)
	n, err := running().inboxes()[0].inbox.dispatcher.Discard(t.Context(), inbox.Filter{Number: []int64{1}})
	if n != 1 || err != nil {
		t.Fatalf("%d were discarded, error %v", n, err)
	}
	working.Store(true)
	waitForEmptyInbox(t)
	b.mu.Lock()
	defer b.mu.Unlock()
	if last := b.requests[len(b.requests)-1]; last.body != body {
		t.Errorf("the backend got %s", last.body)
	}
	if !strings.Contains(s.logs(), "those with a key of order_by let the next ones with their keys pass") {
		t.Errorf("the log is\n%s", s.logs())
	}
}

// The file says of itself in which order events wait, and is checked when it is opened.
func TestInboxWithReplaysOfAKeyOpensAgain(t *testing.T) {
	b := newBackend(t, nil)
	site := proxied(b, "order_by conversation.id\n"+kept(t, "keep_delivered 1h"))
	s := start(t, site)
	client := newClient(t, "HTTP/1.1")
	first, second := caddytest.NewID(), caddytest.NewID()
	for _, id := range []string{first, second} {
		expect(t, send(client, signed(s.url, caddytest.Event{ID: id}.Body())), http.StatusOK, "")
	}
	askFor[adminapi.InboxChange](t, http.MethodPost, "inbox/pause", "")
	for _, id := range []string{second, first} {
		askFor[adminapi.InboxChange](t, http.MethodPost, "inbox/retry", fmt.Sprintf(`{"id":%q}`, id))
	}
	s.reload("respond gone 404")
	s.reload(site)
	if n := inboxStats(t).Waiting; n != 2 {
		t.Errorf("%d events wait", n)
	}
}

func TestPathsThatNoEventHasAreReported(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, "order_by conversation.identifier"))
	client := newClient(t, "HTTP/1.1")
	const warning = "no event so far has one of the members that order_by names"
	for range unorderedEvents - 1 {
		expect(t, send(client, signed(s.url, of("a"))), http.StatusOK, "")
	}
	if strings.Contains(s.logs(), warning) {
		t.Error("it is reported too early")
	}
	expect(t, send(client, signed(s.url, of("a"))), http.StatusOK, "")
	if n := strings.Count(s.logs(), warning); n != 1 {
		t.Errorf("it is reported %d times", n)
	}
}
