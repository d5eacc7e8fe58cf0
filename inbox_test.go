package buzzbip

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// The backend hangs, and delivery_timeout is longer than anybody waits for Caddy to
// stop.
func TestStopCutsOffRedeliveriesAfterTheirGracePeriod(t *testing.T) {
	before := exitGrace
	exitGrace = 100 * time.Millisecond
	t.Cleanup(func() { exitGrace = before })
	var hanging atomic.Bool
	attempts := make(chan string, 10)
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if !hanging.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		attempts <- r.Header.Get(redeliveryHeader)
		<-r.Context().Done()
	})
	directives := proxied(b, "delivery_timeout 1h\n"+kept(t, ""))
	s := start(t, directives)
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
	hanging.Store(true)
	cutOff := caddytest.Receive(t, attempts, "a redelivery")
	stopped := make(chan error, 1)
	go func() { stopped <- caddy.Stop() }()
	if err := caddytest.Receive(t, stopped, "Caddy to stop"); err != nil {
		t.Fatal(err)
	}
	s.reload(directives)
	if again := caddytest.Receive(t, attempts, "the redelivery after that"); again != cutOff {
		t.Errorf("attempt %s was cut off, and the next one is %s: it should not count", cutOff, again)
	}
}

// The inbox is removed and put back while the backend is asked.
func TestEventIsNotLeftInAnInboxThatWasRemovedInTheMeantime(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		release := make(chan struct{})
		b := newBackend(t, func(w http.ResponseWriter, _ *http.Request) {
			<-release
			w.WriteHeader(http.StatusInternalServerError)
		})
		site := proxied(b, kept(t, ""))
		s := start(t, site)
		answered := sendAsync(client, signed(s.url, caddytest.NewEvent()))
		caddytest.Receive(t, b.arrived, "the event")
		s.reload("respond gone 404")
		s.reload(site)
		close(release)
		got := caddytest.Receive(t, answered, "the answer")
		if got.result() == string(webhook.ResultStored) {
			caddytest.Receive(t, b.arrived, "the redelivery")
			return
		}
		expect(t, got, http.StatusInternalServerError, "")
	})
}

func TestLateSuccessCountsAlsoIfTheInboxWasRemovedInTheMeantime(t *testing.T) {
	defer func(d time.Duration) { exitGrace = d }(exitGrace)
	exitGrace = 0
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		release := make(chan struct{})
		b := newBackend(t, func(w http.ResponseWriter, _ *http.Request) { <-release })
		site := proxied(b, "answer_within 50ms\n"+kept(t, ""))
		s := start(t, site)
		expect(t, send(client, signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
		s.reload("respond gone 404")
		close(release)
		caddytest.WaitFor(t, "the end of the delivery", func() bool { return deliveries.count() == 0 })
		s.reload(site)
		waitForEmptyInbox(t)
		b.expectCount(t, 1)
	})
}

// optionTest is a site whose inbox gets other options by a reload.
type optionTest struct {
	testing.TB
	backend *backend
	path    string
	client  *http.Client
	site    *site
	// working means that the backend accepts events.
	working atomic.Bool
	// accept is called for events that it accepts, if it is not nil.
	accept func()
}

func newOptionTest(t testing.TB) *optionTest {
	o := &optionTest{TB: t, path: filepath.Join(t.TempDir(), "inbox.db"), client: newClient(t, "HTTP/1.1")}
	o.backend = newBackend(t, func(w http.ResponseWriter, _ *http.Request) {
		switch {
		case !o.working.Load():
			w.WriteHeader(http.StatusInternalServerError)
		case o.accept != nil:
			o.accept()
		}
	})
	return o
}

// load loads the site with these options.
func (o *optionTest) load(options string) {
	o.Helper()
	directives := proxied(o.backend, fmt.Sprintf("inbox sqlite %s {\n%s\n}", o.path, options))
	if o.site == nil {
		o.site = start(o, directives)
		return
	}
	o.site.reload(directives)
}

func (o *optionTest) send(events, status int, result webhook.Result) {
	o.Helper()
	for range events {
		expect(o, send(o.client, signed(o.site.url, caddytest.NewEvent())), status, result)
	}
}

// store has events stored.
func (o *optionTest) store(events int) {
	o.Helper()
	o.working.Store(false)
	o.send(events, http.StatusOK, webhook.ResultStored)
}

func (o *optionTest) retryAll() {
	o.Helper()
	o.working.Store(true)
	if got, err := ask(o, http.MethodPost, "inbox/retry", "{}"); err != nil {
		o.Fatal(got, err)
	}
}

func (o *optionTest) waitForDead(n int) {
	o.Helper()
	caddytest.WaitFor(o, fmt.Sprintf("%d dead events", n), func() bool { return inboxStats(o).Dead == n })
}

func TestReloadChangesEachOptionOfTheInbox(t *testing.T) {
	const soon = "retry 20ms 50ms\n"
	for option, run := range map[string]func(o *optionTest){
		"accept": func(o *optionTest) {
			o.working.Store(true)
			o.load("accept on_failure")
			o.send(1, http.StatusOK, "")
			o.load("accept always")
			o.send(1, http.StatusOK, webhook.ResultStored)
		},
		"retry": func(o *optionTest) {
			o.load("retry 1h")
			o.store(1)
			o.load(soon)
			caddytest.WaitFor(o, "the event to be delivered again", func() bool { return o.backend.count() > 2 })
		},
		"dead_after": func(o *optionTest) {
			o.load("retry 1h\ndead_after 2h")
			o.store(1)
			o.load(soon + "dead_after 60ms")
			o.waitForDead(1)
		},
		"dead_on": func(o *optionTest) {
			o.load(soon)
			o.store(1)
			caddytest.WaitFor(o, "the event to be delivered again", func() bool { return o.backend.count() > 2 })
			o.waitForDead(0)
			o.load(soon + "dead_on 500")
			o.waitForDead(1)
		},
		"concurrency": testReloadOfConcurrency,
		"rate": func(o *optionTest) {
			const events = 100 // at one a second, they take longer than a test waits
			o.load("retry 1h\nrate 1")
			o.store(events)
			o.retryAll()
			caddytest.WaitFor(o, "a redelivery", func() bool { return inboxStats(o).Waiting < events })
			if n := inboxStats(o).Waiting; n < events/2 {
				o.Errorf("only %d events still wait", n)
			}
			o.load("retry 1h")
			waitForEmptyInbox(o)
		},
		"max_size": func(o *optionTest) {
			o.load("max_size 10B")
			o.send(1, http.StatusInternalServerError, "")
			o.load("max_size 1MiB")
			o.store(1)
		},
		"keep_delivered": func(o *optionTest) {
			o.load(soon)
			o.store(1)
			o.working.Store(true)
			waitForEmptyInbox(o)
			o.load(soon + "keep_delivered 1h")
			o.store(1)
			o.working.Store(true)
			caddytest.WaitFor(o, "the event to be delivered and kept", func() bool { return inboxStats(o).Delivered == 1 })
		},
		"keep_dead": func(o *optionTest) {
			o.load(soon + "dead_on 500")
			o.store(1)
			o.waitForDead(1)
			o.load(soon + "dead_on 500\nkeep_dead 1ms")
			o.waitForDead(0)
		},
	} {
		t.Run(option, func(t *testing.T) { run(newOptionTest(t)) })
	}
}

func testReloadOfConcurrency(o *optionTest) {
	var mu sync.Mutex
	atOnce, peak, calls := 0, 0, 0
	all := make(chan struct{})
	together := 0 // how many must arrive together after the first two, or 0
	o.accept = func() {
		mu.Lock()
		calls++
		atOnce++
		peak = max(peak, atOnce)
		waits := together > 0 && calls > 2
		if waits && atOnce == together {
			close(all)
		}
		mu.Unlock()
		if waits {
			<-all
		}
		mu.Lock()
		defer mu.Unlock()
		atOnce--
	}
	o.load("retry 1h\nconcurrency 1")
	o.store(4)
	o.retryAll()
	waitForEmptyInbox(o)
	if peak != 1 {
		o.Errorf("%d redeliveries at once, want 1", peak)
	}
	mu.Lock()
	calls, together = 0, 3
	mu.Unlock()
	o.load("retry 1h\nconcurrency 3")
	o.store(2 + together)
	o.retryAll()
	waitForEmptyInbox(o)
}

// twoInboxes is a site with two handlers, whose inboxes have these options.
func twoInboxes(b *backend, options, others string) string {
	return "handle /webhooks/buzzbip {\n" + proxied(b, options) + "\n}\nhandle /other {\n" + proxied(b, others+"\nscope other") + "\n}"
}

func TestHandlersWithOneInboxMustGiveItTheSameOptions(t *testing.T) {
	b := newBackend(t, nil)
	file := filepath.Join(t.TempDir(), "inbox.db")
	inbox := func(options string) string { return fmt.Sprintf("inbox sqlite %s {\n%s\n}", file, options) }
	s := start(t, "respond gone 404")
	for _, test := range []struct{ options, others, message string }{
		{"accept always", "", `but accept is "always" in one and "on_failure" in the other`},
		{"retry 5s", "retry 5s 10m", `but retry is "5s 15m0s" in one and "5s 10m0s" in the other`},
		{"dead_after 1h", "", `but dead_after is "1h0m0s" in one and "72h0m0s" in the other`},
		{"dead_on 422", "dead_on 422 4xx", `but dead_on is "[422]" in one and "[4 422]" in the other`},
		{"", "concurrency 2", `but concurrency is "8" in one and "2" in the other`},
		{"rate 5", "", `but rate is "5" in one and "0" in the other`},
		{"max_size 5MiB", "max_size 5MB", `but max_size is "5242880" in one and "5000000" in the other`},
		{"", "keep_delivered 1h", `but keep_delivered is "0s" in one and "1h0m0s" in the other`},
		{"", "keep_dead 1h", `but keep_dead is "720h0m0s" in one and "1h0m0s" in the other`},
	} {
		err := s.tryReload(twoInboxes(b, inbox(test.options), inbox(test.others)))
		if err == nil {
			t.Errorf("%q and %q were accepted", test.options, test.others)
			continue
		}
		for _, want := range []string{"two handlers have the inbox sqlite " + file, test.message, "give both the same options, or one of them another path"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q and %q: the error is %q, want %q in it", test.options, test.others, err, want)
			}
		}
	}
	s.reload(twoInboxes(b, inbox("dead_on 4xx 422\nrate 5"), inbox("rate 5\nconcurrency 8\ndead_on 422 4xx")))
	s.reload(twoInboxes(b, inbox("rate 5"), strings.Replace(inbox(""), "inbox.db", "other.db", 1)))
	// a reload may change the options of both
	s.reload(twoInboxes(b, inbox("rate 6"), inbox("rate 6")))
}
