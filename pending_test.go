package buzzbip

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/inbox/sqlite"
	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

func init() { caddy.RegisterModule(new(slowInbox)) }

// slowInbox is an inbox on a disk that hangs while inboxHangs is locked.
type slowInbox struct{ sqlite.Store }

var inboxHangs sync.RWMutex

func (*slowInbox) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.buzzbip_webhook.inboxes.slow", New: func() caddy.Module { return new(slowInbox) }}
}

func (s *slowInbox) Add(ctx context.Context, e inbox.Event, maxSize int64) (int64, error) {
	inboxHangs.RLock()
	defer inboxHangs.RUnlock()
	return s.Store.Add(context.WithoutCancel(ctx), e, maxSize)
}

// inSlowInbox returns the options of a slowInbox for which senders wait only shortly.
func inSlowInbox(t *testing.T, options string) string {
	before := keepTimeout
	keepTimeout = 50 * time.Millisecond
	t.Cleanup(func() { keepTimeout = before })
	return strings.Replace(kept(t, options), "inbox sqlite", "inbox slow", 1)
}

// hangInbox makes the disk hang until the function that it returns is called.
func hangInbox(t *testing.T) (release func()) {
	inboxHangs.Lock()
	release = sync.OnceFunc(inboxHangs.Unlock)
	t.Cleanup(release)
	return release
}

// waitForDuplicate sends an event until it is answered as a duplicate, and expects that
// it is in flight before that.
func (s *site) waitForDuplicate(body string) {
	s.t.Helper()
	client := newClient(s.t, "HTTP/1.1")
	caddytest.WaitFor(s.t, "the event to be a duplicate", func() bool {
		got := send(client, signed(s.url, body))
		result := webhook.Result(got.header.Get(webhook.ResultHeader))
		if got.status != http.StatusOK && result != webhook.ResultInFlight {
			s.t.Fatalf("%d %s", got.status, result)
		}
		return result == webhook.ResultDuplicate
	})
}

func TestEventOfWhichItIsUnknownWhetherItIsStoredIsNotDeliveredTwice(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b, working := failing(t, http.StatusInternalServerError)
		s := start(t, proxied(b, "answer_within 100ms\n"+inSlowInbox(t, "")))
		release := hangInbox(t)
		body := caddytest.NewEvent()
		expect(t, send(client, signed(s.url, body)), http.StatusInternalServerError, "")
		working.Store(true)
		expect(t, send(client, signed(s.url, body)), http.StatusServiceUnavailable, webhook.ResultInFlight)
		b.expectCount(t, 1)
		release()
		s.waitForDuplicate(body)
		waitForEmptyInbox(t)
		b.expectCount(t, 2)
		if logs := s.logs(); !strings.Contains(logs, errNoAnswer.Error()) {
			t.Error("the log does not say that the inbox did not answer")
		}
	})
}

func TestEventThatIsNotStoredInTheEndIsDeliveredWhenItComesAgain(t *testing.T) {
	b, working := failing(t, http.StatusInternalServerError)
	s := start(t, proxied(b, "answer_within 100ms\n"+inSlowInbox(t, "max_size 10B")))
	release := hangInbox(t)
	client, body := newClient(t, "HTTP/1.1"), caddytest.NewEvent()
	expect(t, send(client, signed(s.url, body)), http.StatusInternalServerError, "")
	expect(t, send(client, signed(s.url, body)), http.StatusServiceUnavailable, webhook.ResultInFlight)
	working.Store(true)
	release()
	s.waitForDuplicate(body) // which is the second delivery
	b.expectCount(t, 2)
}

// The backend takes longer than answer_within, and answers before or after it is known
// whether the event is stored.
func TestSlowBackendGetsTheEventOnceAlsoIfTheInboxDoesNotAnswer(t *testing.T) {
	for name, test := range map[string]struct {
		options      string
		answerBefore bool
	}{
		"stored, known after the answer":      {"", true},
		"stored, known before the answer":     {"", false},
		"not stored, known after the answer":  {"max_size 10B", true},
		"not stored, known before the answer": {"max_size 10B", false},
	} {
		t.Run(name, func(t *testing.T) {
			eachProtocol(t, func(t *testing.T, client *http.Client) {
				answer := make(chan struct{})
				b := newBackend(t, func(http.ResponseWriter, *http.Request) { <-answer })
				s := start(t, proxied(b, "answer_within 50ms\n"+inSlowInbox(t, test.options)))
				release := hangInbox(t)
				body := caddytest.NewEvent()
				answered := sendAsync(client, signed(s.url, body))
				caddytest.WaitFor(t, "the inbox not to answer", func() bool { return strings.Contains(s.logs(), errNoAnswer.Error()) })
				want := webhook.Result("") // that of a delivery
				if test.answerBefore {
					close(answer)
					expect(t, caddytest.Receive(t, answered, "the answer"), http.StatusOK, want)
					release()
				} else {
					release()
					if test.options == "" {
						s.waitForDuplicate(body)
						want = webhook.ResultStored
					} else {
						caddytest.WaitFor(t, "the inbox not to take the event", func() bool { return running().inboxes()[0].inbox.room.full.Load() > 0 })
					}
					close(answer)
					expect(t, caddytest.Receive(t, answered, "the answer"), http.StatusOK, want)
				}
				s.waitForDuplicate(body)
				waitForEmptyInbox(t)
				b.expectCount(t, 1)
			})
		})
	}
}

func TestSlowBackendThatFailsGetsTheEventOnceMoreIfTheInboxDoesNotAnswer(t *testing.T) {
	answer := make(chan struct{})
	var failed atomic.Bool
	b := newBackend(t, func(w http.ResponseWriter, _ *http.Request) {
		if !failed.Swap(true) {
			<-answer
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	s := start(t, proxied(b, "answer_within 50ms\n"+inSlowInbox(t, "")))
	release := hangInbox(t)
	body := caddytest.NewEvent()
	answered := sendAsync(newClient(t, "HTTP/1.1"), signed(s.url, body))
	caddytest.WaitFor(t, "the inbox not to answer", func() bool { return strings.Contains(s.logs(), errNoAnswer.Error()) })
	close(answer)
	expect(t, caddytest.Receive(t, answered, "the answer"), http.StatusInternalServerError, "")
	release()
	s.waitForDuplicate(body)
	waitForEmptyInbox(t)
	b.expectCount(t, 2)
}

// When answer_within passes, the event is in the inbox, but the sender is getting the
// failure already.
func TestFailureThatTheSenderGetsIsNotCutOffWhenItsEventIsStored(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		end := make(chan struct{})
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get(redeliveryHeader) != "" {
				return
			}
			w.WriteHeader(http.StatusInternalServerError)
			_ = http.NewResponseController(w).Flush()
			<-end
			io.WriteString(w, "failed")
		})
		s := start(t, proxied(b, "answer_within 200ms\n"+inSlowInbox(t, "")))
		release := hangInbox(t)
		body, began := caddytest.NewEvent(), time.Now()
		answered := sendAsync(client, signed(s.url, body))
		caddytest.WaitFor(t, "the inbox not to answer", func() bool { return strings.Contains(s.logs(), errNoAnswer.Error()) })
		release()
		s.waitForDuplicate(body)
		caddytest.WaitFor(t, "answer_within", func() bool { return time.Since(began) > 300*time.Millisecond })
		close(end)
		got := caddytest.Receive(t, answered, "the answer")
		expect(t, got, http.StatusInternalServerError, "")
		if got.body != "failed" {
			t.Errorf("the body is %q", got.body)
		}
	})
}

func TestEventThatIsNotTriedIsNotDeliveredWhileItIsUnknownWhetherItIsStored(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, inSlowInbox(t, "")))
	askFor[adminapi.InboxChange](t, http.MethodPost, "inbox/pause", "")
	release := hangInbox(t)
	body := caddytest.NewEvent()
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, body)), http.StatusServiceUnavailable, "")
	b.expectCount(t, 0)
	release()
	s.waitForDuplicate(body)
	askFor[adminapi.InboxChange](t, http.MethodPost, "inbox/resume", "")
	waitForEmptyInbox(t)
	b.expectCount(t, 1)
}

func TestEventKeepsItsTurnUntilItIsKnownWhetherItIsStored(t *testing.T) {
	b, working := failing(t, http.StatusInternalServerError)
	s := start(t, proxied(b, "order_by conversation.id\nanswer_within 100ms\n"+inSlowInbox(t, "")))
	release := hangInbox(t)
	client := newClient(t, "HTTP/1.1")
	first, second := caddytest.NewEvent(), caddytest.NewEvent()
	expect(t, send(client, signed(s.url, first)), http.StatusInternalServerError, "")
	working.Store(true)
	expect(t, send(client, signed(s.url, second)), http.StatusServiceUnavailable, "")
	b.expectCount(t, 1)
	release()
	s.waitForDuplicate(first)
	s.waitForDuplicate(second)
	waitForEmptyInbox(t)
	b.expectCount(t, 3)
	for _, want := range []string{first, first, second} {
		if got := caddytest.Receive(t, b.arrived, "an event"); got.body != want {
			t.Errorf("got %s, want %s", got.body, want)
		}
	}
}

func TestSenderDoesNotWaitForADiskThatHangsToKeepADeliveredEvent(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, inSlowInbox(t, "keep_delivered 1h")))
	release := hangInbox(t)
	body := caddytest.NewEvent()
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, body)), http.StatusOK, "")
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
	release()
	caddytest.WaitFor(t, "the event to be kept", func() bool { return inboxStats(t).Delivered == 1 })
	b.expectCount(t, 1)
}

func TestEventsThatAreBeingStoredTakeNoMoreMemoryThanThoseThatWait(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, "max_in_flight 4MiB\n"+inSlowInbox(t, "accept always")))
	keepTimeout = caddytest.Patience
	release := hangInbox(t)
	client, answers := newClient(t, "HTTP/2.0"), make(chan response)
	data := fmt.Sprintf(`{"text":%q}`, strings.Repeat("x", 600<<10))
	const events = 20
	for range events {
		go func() { answers <- send(client, signed(s.url, caddytest.Event{Data: data}.Body())) }()
	}
	for range events - 1 { // for two there is no room
		expect(t, caddytest.Receive(t, answers, "an answer"), http.StatusServiceUnavailable, "")
	}
	if total := underWay.total(); total > 1<<20 {
		t.Errorf("events take %d bytes", total)
	}
	release()
	expect(t, caddytest.Receive(t, answers, "the last answer"), http.StatusOK, webhook.ResultStored)
}
