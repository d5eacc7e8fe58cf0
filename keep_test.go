package buzzbip

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/inbox/inboxtest"
	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// kept returns the options of an inbox in a new file.
func kept(t testing.TB, options string) string {
	return fmt.Sprintf("inbox sqlite %s {\nretry 50ms 200ms\n%s\n}", filepath.Join(t.TempDir(), "inbox.db"), options)
}

// inboxStats returns the state of the only inbox.
func inboxStats(t testing.TB) inbox.Stats {
	t.Helper()
	app := running()
	if app == nil || len(app.inboxes()) != 1 {
		t.Fatal("there is not one inbox")
	}
	return app.inboxes()[0].inbox.Stats()
}

func waitForEmptyInbox(t testing.TB) {
	t.Helper()
	caddytest.WaitFor(t, "the inbox to be empty", func() bool { return inboxStats(t).Waiting == 0 })
}

// failing returns a backend that fails until working is set.
func failing(t testing.TB, status int) (b *backend, working *atomic.Bool) {
	working = new(atomic.Bool)
	b = newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if !working.Load() {
			w.Header().Set("X-Failure", "yes")
			w.WriteHeader(status)
			io.WriteString(w, "failed")
		}
	})
	return b, working
}

func TestEventThatTheBackendFailsIsStoredAndDeliveredLater(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b, working := failing(t, http.StatusInternalServerError)
		s := start(t, proxied(b, kept(t, "")))
		body := caddytest.NewEvent()
		got := send(client, signed(s.url, body))
		expect(t, got, http.StatusOK, webhook.ResultStored)
		if got.header.Get("X-Failure") != "" || got.body != "" {
			t.Errorf("the sender got the backend's failure: %v %q", got.header, got.body)
		}
		first := caddytest.Receive(t, b.arrived, "the first attempt")
		if n := inboxStats(t).Waiting; n != 1 {
			t.Errorf("%d events wait", n)
		}
		expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
		working.Store(true)
		waitForEmptyInbox(t)
		var last received
		for last = first; len(b.arrived) > 0; last = <-b.arrived {
		}
		if last.body != body || last.Host != first.Host || last.URL.String() != first.URL.String() {
			t.Errorf("delivered again: %s %s %q", last.Host, last.URL, last.body)
		}
		expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
	})
}

func TestSlowBackendGetsTheEventOnceAndTheSenderItsAnswerInTime(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		release := make(chan struct{})
		b := newBackend(t, func(http.ResponseWriter, *http.Request) { <-release })
		s := start(t, "log {\noutput test\n}\n"+routed("header X-Before before", "answer_within 50ms\n"+kept(t, ""), "header X-Behind behind\nreverse_proxy "+b.address()))
		body := caddytest.NewEvent()
		got := send(client, signed(s.url, body))
		expect(t, got, http.StatusOK, webhook.ResultStored)
		if got.header.Get("X-Before") == "" || got.header.Get("X-Behind") != "" || got.header.Get("Date") == "" || got.header.Get("Content-Length") != "0" {
			t.Errorf("answered with %v", got.header)
		}
		expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
		close(release)
		waitForEmptyInbox(t)
		caddytest.WaitFor(t, "the entry in the access log", func() bool {
			return regexp.MustCompile(`"handled request".*"status":200,.*"X-Before":\["before"\].*"buzzbip_result":"stored"`).MatchString(s.logs())
		})
		b.expectCount(t, 1)
		expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
	})
}

func TestSenderOfASlowBackendGetsItsAnswerInTimeThroughEncode(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		release := make(chan struct{})
		b := newBackend(t, func(http.ResponseWriter, *http.Request) { <-release })
		s := start(t, "route {\nencode\n"+proxied(b, "answer_within 50ms\n"+kept(t, ""))+"\n}")
		end := sync.OnceFunc(func() { close(release) })
		t.Cleanup(end)
		r := signed(s.url, caddytest.NewEvent())
		r.Header.Set("Accept-Encoding", "gzip")
		answered := sendAsync(client, r)
		caddytest.Receive(t, b.arrived, "the event")
		expect(t, caddytest.Receive(t, answered, "the answer"), http.StatusOK, webhook.ResultStored)
		end()
		waitForEmptyInbox(t)
	})
}

func TestSlowBackendThatFailsIsAskedAgain(t *testing.T) {
	release := make(chan struct{})
	var failed atomic.Bool
	b := newBackend(t, func(w http.ResponseWriter, _ *http.Request) {
		if !failed.Swap(true) {
			<-release
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	s := start(t, proxied(b, "answer_within 50ms\n"+kept(t, "")))
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
	close(release)
	waitForEmptyInbox(t)
	b.expectCount(t, 2)
}

func TestUnreachableBackendLosesNothing(t *testing.T) {
	address := caddytest.FreeAddress(t)
	s := start(t, "buzzbip_webhook "+caddytest.Secret+" {\n"+kept(t, "")+"\n}\nreverse_proxy "+address)
	client := newClient(t, "HTTP/1.1")
	const events = 20
	for range events {
		expect(t, send(client, signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
	}
	if n := inboxStats(t).Waiting; n != events {
		t.Errorf("%d events wait, want %d", n, events)
	}
	var arrived atomic.Int64
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	backend := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { arrived.Add(1) })}
	go backend.Serve(listener)
	defer backend.Close()
	waitForEmptyInbox(t)
	if n := arrived.Load(); n != events {
		t.Errorf("%d events arrived, want %d", n, events)
	}
}

// Handlers before and behind this one change the header, and so do some that fail. Those
// before use what those behind have set.
func TestResponseThatIsPassedOnIsTheSameAsWithoutAnInbox(t *testing.T) {
	for name, behind := range map[string]string{
		"accepted":               "respond accepted 202",
		"accepted, by a backend": "reverse_proxy %s",
		"failed":                 "respond failed 500",
		"failed, by a backend":   "reverse_proxy %s {\nrewrite /fail\n}",
		"an error":               "error 500",
	} {
		t.Run(name, func(t *testing.T) {
			eachProtocol(t, func(t *testing.T, client *http.Client) {
				b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
					w.Header()["X-Both"] = []string{"the backend", "once more"}
					if r.URL.Path == "/fail" {
						w.WriteHeader(http.StatusInternalServerError)
					}
					io.WriteString(w, "answer")
					_ = http.NewResponseController(w).Flush()
					w.Header().Set(http.TrailerPrefix+"X-Trailer", "trailer")
				})
				get := func(options string) response {
					s := start(t, routed("header X-Both before\nheader X-Before before\n"+
						`header >X-Deferred "{http.vars.behind} {http.buzzbip_webhook.result} {http.reverse_proxy.status_code} {http.request.uri} {http.request.header.X-Added}"`, options,
						"header X-Behind behind\nheader -X-Before\nvars behind yes\nrequest_body {\nset changed\n}\nrequest_header X-Added added\nuri query +added yes\n"+
							`header X-Placeholders "{http.response.header.X-Behind} {http.request.header.X-Added} {http.request.uri} {http.vars.behind} {http.request.body}"`+"\n"+
							strings.Replace(behind, "%s", b.address(), 1)))
					got := send(client, signed(s.url, caddytest.NewEvent()))
					deleteVarying(got.header)
					return got
				}
				want, got := get(""), get(kept(t, "max_size 10B"))
				if !reflect.DeepEqual(got, want) {
					t.Errorf("with an inbox, the response is\n%+v, without\n%+v", got, want)
				}
			})
		})
	}
}

func TestWhatHandlersBehindChangeInTheRequestIsNotKept(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b, working := failing(t, http.StatusInternalServerError)
		s := start(t, routed("", kept(t, ""), "request_header +X-Added added\nreverse_proxy "+b.address()))
		expect(t, send(client, signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
		working.Store(true)
		waitForEmptyInbox(t)
		for len(b.arrived) > 0 {
			if got := (<-b.arrived).Header["X-Added"]; len(got) != 1 {
				t.Errorf("an attempt has X-Added: %q", got)
			}
		}
	})
}

func TestHandlersBehindAnInboxRunOnlyIfTheirRouteIsTheFirstToMatch(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		s := start(t, "handle /webhooks/* {\nbuzzbip_webhook "+caddytest.Secret+" {\n"+kept(t, "")+"\n}\n}\nhandle {\nrespond other 202\n}")
		expect(t, send(client, signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
	})
}

func TestResponseHasNothingOfAnEarlierOne(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		var n atomic.Int64
		b := newBackend(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set(fmt.Sprint("X-Event-", n.Add(1)), "yes") })
		s := start(t, proxied(b, kept(t, "")))
		for i := range 20 {
			got := send(client, signed(s.url, caddytest.NewEvent()))
			expect(t, got, http.StatusOK, "")
			for name := range got.header {
				if strings.HasPrefix(name, "X-Event-") && name != fmt.Sprint("X-Event-", i+1) {
					t.Errorf("the response to event %d has %s", i+1, name)
				}
			}
		}
	})
}

func TestStoredEventIsAnsweredWithoutTheHeadersOfTheFailure(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b, _ := failing(t, http.StatusInternalServerError)
		s := start(t, routed("header X-Before one\nheader +X-Before two", kept(t, ""), "header X-Behind behind\nreverse_proxy "+b.address()))
		got := send(client, signed(s.url, caddytest.NewEvent()))
		expect(t, got, http.StatusOK, webhook.ResultStored)
		deleteVarying(got.header)
		want := http.Header{"Server": {"Caddy"}, "X-Before": {"one", "two"}, "Content-Length": {"0"}, "X-Buzzbip-Result": {"stored"}}
		if !reflect.DeepEqual(got.header, want) {
			t.Errorf("answered with %v, want %v", got.header, want)
		}
	})
}

// encode waits for the body before it sends the header.
func TestHandlersThatHoldBackTheHeaderDelayNoAnswer(t *testing.T) {
	for name, begin := range map[string]func(w http.ResponseWriter){
		"until there is a body": func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
		},
		"after an informational response": func(w http.ResponseWriter) { w.WriteHeader(http.StatusProcessing) },
	} {
		t.Run(name, func(t *testing.T) {
			eachProtocol(t, func(t *testing.T, client *http.Client) {
				release := make(chan struct{})
				b := newBackend(t, func(w http.ResponseWriter, _ *http.Request) {
					begin(w)
					<-release
				})
				s := start(t, "encode\n"+proxied(b, "answer_within 200ms\n"+kept(t, "")))
				end := sync.OnceFunc(func() { close(release) })
				t.Cleanup(end)
				var answers []<-chan response
				for range 5 {
					r := signed(s.url, caddytest.NewEvent())
					r.Header.Set("Accept-Encoding", "gzip")
					answers = append(answers, sendAsync(client, r))
				}
				for _, answered := range answers {
					got := caddytest.Receive(t, answered, "an answer")
					expect(t, got, http.StatusOK, webhook.ResultStored)
					if got.header.Get("Via") != "" || got.header.Get("Server") != "Caddy" {
						t.Errorf("answered with %v", got.header)
					}
				}
				end()
				waitForEmptyInbox(t)
				b.expectCount(t, len(answers))
			})
		})
	}
}

// changingResponse uses what handlers before buzzbip_webhook do when a response passes.
type changingResponse struct {
	caddyhttp.ResponseWriterWrapper
	use func()
}

func (w *changingResponse) WriteHeader(status int) {
	w.use()
	w.ResponseWriter.WriteHeader(status)
}

// The race detector decides.
func TestEarlyAnswerSharesNothingWithTheHandlersThatGoOn(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}}, AnswerWithin: ptr(caddy.Duration(20 * time.Millisecond))}
	provision(t, h)
	useMemoryInbox(t, h, func(context.Context, inbox.Event) inbox.Outcome { return inbox.Outcome{NoAttempt: true} })
	for _, protocol := range []int{1, 2} {
		t.Run(fmt.Sprint("HTTP/", protocol), func(t *testing.T) {
			answered := make(chan struct{})
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer func() {
					if panicked := recover(); panicked != nil {
						t.Error(panicked)
					}
				}()
				r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, new(caddyhttp.Server))
				use := func(w http.ResponseWriter, r *http.Request) {
					repl := replacerOf(r.Context())
					repl.ReplaceAll("{http.response.header.X-A} {http.request.header.X-A} {http.request.uri} {http.vars.a}", "")
					repl.Set("a", "b")
					repl.Map(func(string) (any, bool) { return nil, false })
					caddyhttp.SetVar(r.Context(), "a", "b")
					r.Header.Set("X-A", "b")
					r.URL.Path = "/b"
					w.Header().Set("X-A", "b")
				}
				w = &changingResponse{caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, func() { use(w, r) }}
				err := h.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
					for {
						select {
						case <-answered:
							return nil
						case <-time.After(time.Millisecond):
							use(w, r)
						}
					}
				}))
				if err != nil {
					t.Error(err)
				}
				_ = http.NewResponseController(w).Flush() // as Caddy does after write_timeout
			}))
			server.Config.ConnContext = withConnection
			server.EnableHTTP2 = protocol == 2
			server.StartTLS()
			defer server.Close()
			got := send(server.Client(), signed(server.URL, caddytest.NewEvent()))
			close(answered)
			expect(t, got, http.StatusOK, webhook.ResultStored)
		})
	}
}

// So do those in which reverse_proxy connects to a backend. The race detector decides.
func TestGoroutinesOfHandlersBehindAnInboxMayReadTheRequest(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}}}
	provision(t, h)
	useMemoryInbox(t, h, func(context.Context, inbox.Event) inbox.Outcome { return inbox.Outcome{NoAttempt: true} })
	for _, protocol := range []int{1, 2} {
		t.Run(fmt.Sprint("HTTP/", protocol), func(t *testing.T) {
			var running sync.WaitGroup
			r := signed("https://localhost/", caddytest.NewEvent())
			r.ProtoMajor = protocol
			_, err := serve(h, r, func(w http.ResponseWriter, r *http.Request) error {
				ctx := r.Context()
				for range 2 {
					read := make(chan struct{})
					running.Go(func() {
						for reads := range 300 { // also after the response has passed
							if got := replacerOf(ctx).ReplaceAll("{http.request.host}{http.vars.a}", ""); got != "localhost" {
								t.Errorf("got %q", got)
							}
							caddyhttp.GetVar(ctx, "a")
							if reads == 0 {
								close(read)
							}
							time.Sleep(time.Microsecond)
						}
					})
					<-read
				}
				w.WriteHeader(http.StatusOK)
				return nil
			})
			running.Wait()
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// As templates do, which others may have written.
func TestHandlersBehindAnInboxCanDoWithoutFilesInPlaceholders(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}}}
	provision(t, h)
	useMemoryInbox(t, h, func(context.Context, inbox.Event) inbox.Outcome { return inbox.Outcome{NoAttempt: true} })
	for _, protocol := range []int{1, 2} {
		r := signed("https://localhost/", caddytest.NewEvent())
		r.ProtoMajor = protocol
		w := httptest.NewRecorder()
		r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, new(caddyhttp.Server))
		check := func(where string, r *http.Request) {
			repl := replacerOf(r.Context())
			if got := repl.ReplaceAll("{file."+file+"}", ""); got != "content" {
				t.Errorf("%s, HTTP/%d: %q", where, protocol, got)
			}
			if got := repl.WithoutFile().ReplaceAll("{file."+file+"}", ""); got != "" {
				t.Errorf("%s without files, HTTP/%d: %q", where, protocol, got)
			}
		}
		err := h.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			check("behind", r)
			w.WriteHeader(http.StatusOK)
			return nil
		}))
		if err != nil {
			t.Error(err)
		}
		check("before", r)
	}
}

func TestSenderOfASlowBackendGetsItsAnswerInTimeAlsoBehindTwoInboxes(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		release := make(chan struct{})
		end := sync.OnceFunc(func() { close(release) })
		t.Cleanup(end)
		b := newBackend(t, func(http.ResponseWriter, *http.Request) { <-release })
		directives := kept(t, "")
		inner := "buzzbip_webhook " + caddytest.Secret + " {\nscope inner\nanswer_within 50ms\n" + directives + "\n}\n"
		s := start(t, routed("", "answer_within 10s\n"+directives, inner+"reverse_proxy "+b.address()))
		body := caddytest.NewEvent()
		answered := sendAsync(client, signed(s.url, body))
		expect(t, caddytest.Receive(t, answered, "the answer"), http.StatusOK, webhook.ResultStored)
		expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
		if n := inboxStats(t).Waiting; n != 1 {
			t.Errorf("%d events wait", n)
		}
		end()
		waitForEmptyInbox(t)
		b.expectCount(t, 1)
	})
}

func TestEventThatTheBackendAcceptsLeavesNothingInTheInbox(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b := newBackend(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Custom", "yes")
			w.WriteHeader(http.StatusAccepted)
			io.WriteString(w, "thanks")
		})
		s := start(t, proxied(b, kept(t, "")))
		body := caddytest.NewEvent()
		got := send(client, signed(s.url, body))
		expect(t, got, http.StatusAccepted, "")
		if got.body != "thanks" || got.header.Get("X-Custom") != "yes" {
			t.Errorf("the response is %q with %v", got.body, got.header)
		}
		expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
		if stats := inboxStats(t); stats.Waiting+stats.Dead+stats.Delivered != 0 {
			t.Errorf("the inbox has %+v", stats)
		}
	})
}

func TestDeliveredEventsAreKeptIfTheyAreToBe(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b := newBackend(t, nil)
		s := start(t, proxied(b, kept(t, "max_size 1B\nkeep_delivered 1h")))
		body := caddytest.NewEvent()
		expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
		if stats := inboxStats(t); stats.Waiting+stats.Dead != 0 || stats.Delivered != 1 || stats.Bytes != 0 {
			t.Errorf("the inbox has %+v", stats)
		}
		expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
		b.expectCount(t, 1)
		first := caddytest.Receive(t, b.arrived, "the event")
		list := askFor[adminapi.Inbox](t, http.MethodGet, "inbox?state=delivered&status=200", "")
		if len(list.Events) != 1 || list.Events[0].Attempts != 1 || list.Events[0].Settled == nil {
			t.Fatalf("listed are %+v", list)
		}
		askFor[adminapi.InboxChange](t, http.MethodPost, "inbox/retry", `{"state":"delivered"}`)
		again := caddytest.Receive(t, b.arrived, "the replay")
		if again.body != body || again.URL.String() != first.URL.String() || again.Header.Get(redeliveryHeader) != "1" || first.Header.Get(redeliveryHeader) != "" {
			t.Errorf("replayed %s %q with %v", again.URL, again.body, again.Header)
		}
		caddytest.WaitFor(t, "the event to be delivered again", func() bool { return inboxStats(t).Delivered == 1 })
		expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
	})
}

func TestEventIsDeliveredAlsoIfItCannotBeKeptAfterThat(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, kept(t, "keep_delivered 1h")))
	if err := os.Remove(strings.TrimPrefix(running().inboxes()[0].inbox.backing, "sqlite ")); err != nil {
		t.Fatal(err)
	}
	caddytest.WaitFor(t, "the inbox to notice", func() bool { return inboxStats(t).Err != nil })
	body := caddytest.NewEvent()
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, body)), http.StatusOK, "")
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
	if logs := s.logs(); !strings.Contains(logs, "failed to keep delivered events") {
		t.Error("the log does not say that the event is not kept")
	}
}

func TestFullInboxPassesOnTheFailureOfTheBackend(t *testing.T) {
	b, _ := failing(t, http.StatusTeapot)
	s := start(t, proxied(b, kept(t, "max_size 10B")))
	body := caddytest.NewEvent()
	for range 2 { // the ID is free again
		got := send(newClient(t, "HTTP/1.1"), signed(s.url, body))
		expect(t, got, http.StatusTeapot, "")
		if got.body != "failed" || got.header.Get("X-Failure") != "yes" {
			t.Errorf("the response is %q with %v", got.body, got.header)
		}
	}
	b.expectCount(t, 2)
	if logs := s.logs(); !strings.Contains(logs, "the inbox does not take events") {
		t.Error("the log does not say that the inbox is full")
	}
}

func TestStatusThatNoRetryWillChangeMakesTheEventDead(t *testing.T) {
	b, _ := failing(t, http.StatusUnprocessableEntity)
	s := start(t, proxied(b, kept(t, "dead_on 422")))
	body := caddytest.NewEvent()
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, body)), http.StatusOK, webhook.ResultStored)
	caddytest.WaitFor(t, "the event to be dead", func() bool { return inboxStats(t).Dead == 1 })
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
	b.expectCount(t, 1)
	if logs := s.logs(); !strings.Contains(logs, "event is dead") {
		t.Error("the log does not say that the event is dead")
	}
}

// An event that the backend never got does not leave unnoticed.
func TestDeadEventsThatAreRemovedAreCounted(t *testing.T) {
	b, _ := failing(t, http.StatusUnprocessableEntity)
	removed := func() float64 { return gather(t, metrics.inboxExpired)["dead"] }
	before := removed()
	s := start(t, proxied(b, kept(t, "dead_on 422\nkeep_dead 50ms")))
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
	caddytest.WaitFor(t, "the event to be removed", func() bool { return removed() == before+1 })
	if stats := inboxStats(t); stats.Waiting+stats.Dead+stats.Delivered != 0 {
		t.Errorf("the inbox has %+v", stats)
	}
	caddytest.WaitFor(t, "the log to say so", func() bool { return strings.Contains(s.logs(), "dead events were removed after keep_dead") })
}

// The store may forget an ID that is in the inbox, as memory does at a restart.
func TestConflictWithAnEventInTheInbox(t *testing.T) {
	for option, result := range map[string]webhook.Result{"drop": webhook.ResultConflict, "deliver": webhook.ResultStored} {
		for _, forgotten := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, forgotten: %v", option, forgotten), func(t *testing.T) {
				b, working := failing(t, http.StatusInternalServerError)
				s := start(t, proxied(b, "on_conflict "+option+"\n"+kept(t, "")))
				client, id := newClient(t, "HTTP/1.1"), caddytest.NewID()
				body, other := caddytest.Event{ID: id}.Body(), caddytest.Event{ID: id, Data: `{"other":true}`}.Body()
				expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultStored)
				if forgotten {
					if got, err := ask(t, http.MethodDelete, "events/"+id, ""); err != nil {
						t.Fatal(got, err)
					}
				}
				expect(t, send(client, signed(s.url, other)), http.StatusOK, result)
				if !strings.Contains(s.logs(), "but another body") {
					t.Error("the log does not tell the conflict")
				}
				working.Store(true)
				waitForEmptyInbox(t)
				b.mu.Lock()
				defer b.mu.Unlock()
				arrived := make(map[string]bool)
				for _, r := range b.requests {
					arrived[r.body] = true
				}
				if !arrived[body] || arrived[other] != (option == "deliver") {
					t.Errorf("the backend got %v", arrived)
				}
			})
		}
	}
}

// They arrive while the first attempt is under way, and after it.
func TestDuplicatesOfAStoredEventAreAnsweredAsDuplicates(t *testing.T) {
	fail := make(chan struct{})
	var working atomic.Bool
	b := newBackend(t, func(w http.ResponseWriter, _ *http.Request) {
		<-fail
		if !working.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	s := start(t, proxied(b, strings.Replace(kept(t, ""), "retry 50ms 200ms", "retry 1h", 1)))
	client, body := newClient(t, "HTTP/2.0"), caddytest.NewEvent()
	const duplicates = 50
	var answers []<-chan response
	for range 1 + duplicates/2 {
		answers = append(answers, sendAsync(client, signed(s.url, body)))
	}
	caddytest.Receive(t, b.arrived, "the first attempt")
	close(fail)
	results := make(map[string]int)
	for _, answer := range answers {
		results[caddytest.Receive(t, answer, "an answer").result()]++
	}
	if results["stored"] != 1 || results["duplicate"] != duplicates/2 {
		t.Errorf("answered %v", results)
	}
	for range duplicates / 2 {
		expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
	}
	b.expectCount(t, 1)
	working.Store(true)
	if got, err := ask(t, http.MethodPost, "inbox/retry", "{}"); err != nil {
		t.Fatal(got, err)
	}
	waitForEmptyInbox(t)
	expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
	b.expectCount(t, 2)
}

func TestPanicKeepsTheEvent(t *testing.T) {
	var calls atomic.Int64
	b := newBackend(t, func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) == 1 {
			panic(http.ErrAbortHandler)
		}
	})
	s := start(t, proxied(b, kept(t, "")))
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
	waitForEmptyInbox(t)
}

func TestAcceptAlwaysAnswersBeforeTheDelivery(t *testing.T) {
	release := make(chan struct{})
	b := newBackend(t, func(http.ResponseWriter, *http.Request) { <-release })
	s := start(t, proxied(b, kept(t, "accept always")))
	body := caddytest.NewEvent()
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, body)), http.StatusOK, webhook.ResultStored)
	close(release)
	if got := caddytest.Receive(t, b.arrived, "the delivery"); got.body != body {
		t.Errorf("delivered: %q", got.body)
	}
	waitForEmptyInbox(t)
	b.expectCount(t, 1)
}

func TestPausedInboxStoresNewEventsWithoutTryingThem(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, kept(t, "")))
	if got, err := ask(t, http.MethodPost, "inbox/pause", ""); err != nil {
		t.Fatal(got, err)
	}
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
	b.expectCount(t, 0)
	if got, err := ask(t, http.MethodPost, "inbox/resume", ""); err != nil {
		t.Fatal(got, err)
	}
	waitForEmptyInbox(t)
	b.expectCount(t, 1)
}

// The inbox has the state of the ID. What the store knows of it does not matter, as
// after a crash between two steps, or a restart with the store memory.
func TestEventInTheInboxIsADuplicateWhateverTheStoreKnows(t *testing.T) {
	steps := []struct {
		state  inbox.State
		change func(in inbox.Store, number int64) error
	}{
		{inbox.Waiting, func(inbox.Store, int64) error { return nil }},
		{inbox.Dead, func(in inbox.Store, number int64) error {
			return in.Attempted(t.Context(), number, inbox.Attempt{Time: time.Now()}, time.Now(), time.Now())
		}},
		{inbox.Accepted, func(in inbox.Store, number int64) error {
			return in.Accepted(t.Context(), number, inbox.Attempt{Time: time.Now()}, true)
		}},
		{inbox.Delivered, func(in inbox.Store, number int64) error { return in.Remembered(t.Context(), number) }},
	}
	for _, store := range []string{"store memory", "store sqlite " + filepath.Join(t.TempDir(), "ids.db")} {
		b := newBackend(t, nil)
		s := start(t, proxied(b, store+"\n"+kept(t, "keep_delivered 1h")))
		if got, err := ask(t, http.MethodPost, "inbox/pause", ""); err != nil {
			t.Fatal(got, err)
		}
		client, id := newClient(t, "HTTP/1.1"), caddytest.NewID()
		body := caddytest.Event{ID: id}.Body()
		expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultStored)
		in := running().inboxes()[0].inbox
		events, err := in.List(t.Context(), inbox.Filter{ID: []string{id}}, 0, 1)
		if err != nil || len(events) != 1 {
			t.Fatalf("the inbox has %v, error %v", events, err)
		}
		for _, step := range steps {
			if err := step.change(in, events[0].Number); err != nil {
				t.Fatal(err)
			}
			if got, err := ask(t, http.MethodDelete, "events/"+id, ""); err != nil {
				t.Fatal(got, err)
			}
			if e, err := in.Load(t.Context(), events[0].Number); err != nil || e.State != step.state {
				t.Errorf("it is %s, error %v", e.State, err)
			}
			expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
		}
		b.expectCount(t, 0)
	}
}

func TestLogSaysIfEventsWaitInAnInboxThatIsRemovedFromTheConfiguration(t *testing.T) {
	b, working := failing(t, http.StatusInternalServerError)
	options := kept(t, "")
	s := start(t, proxied(b, options))
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
	warns := func() bool { return strings.Contains(s.logs(), "events wait in it") }
	s.reload(proxied(b, options+"\nretention 1h"))
	if warns() {
		t.Error("it says so although the inbox is still there")
	}
	s.reload(proxied(b, ""))
	if !warns() {
		t.Error("it does not")
	}
	working.Store(true)
	s.reload(proxied(b, options))
	waitForEmptyInbox(t)
}

func TestEventThatArrivesBeforeTheInboxIsOpenWaitsForIt(t *testing.T) {
	p := passageTo(t, "with an inbox", benchmarkBody(orders, "evt_7f3a9b2c", 1<<10))
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		p.pass(t)
	}()
	if err := p.handler.app.startInboxes(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.handler.app.stopInboxes)
	caddytest.Receive(t, passed, "the delivery")
}

func TestEventIsStoredIfThereIsNoMemoryToDeliverIt(t *testing.T) {
	release := make(chan struct{})
	b := newBackend(t, func(http.ResponseWriter, *http.Request) { <-release })
	s := start(t, proxied(b, "max_in_flight 1\nanswer_within 1m\n"+kept(t, "")))
	client := newClient(t, "HTTP/1.1")
	first := sendAsync(client, signed(s.url, caddytest.NewEvent()))
	caddytest.Receive(t, b.arrived, "the first event")
	expect(t, send(client, signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
	close(release)
	expect(t, caddytest.Receive(t, first, "the first answer"), http.StatusOK, "")
	waitForEmptyInbox(t)
	b.expectCount(t, 2)
}

// pass is a handler that waits until passNow is closed.
type pass struct{}

var passNow chan struct{}

func init() {
	caddy.RegisterModule(pass{})
	httpcaddyfile.RegisterHandlerDirective("pass", func(httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) { return pass{}, nil })
}

func (pass) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.pass", New: func() caddy.Module { return new(pass) }}
}

func (pass) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	<-passNow
	return next.ServeHTTP(w, r)
}

// The claim of the first handler is settled when the event is stored. The second
// one must not take the event for a duplicate then, also if something has removed the
// header that tells it: nobody would deliver it.
func TestEventIsStoredBeforeItReachesAnotherHandler(t *testing.T) {
	passNow = make(chan struct{})
	b := newBackend(t, nil)
	s := start(t, "route {\nbuzzbip_webhook "+caddytest.Secret+" {\nanswer_within 50ms\n"+kept(t, "")+"\n}\npass\nrequest_header -"+deliveryHeader+"\nbuzzbip_webhook "+caddytest.Secret+"\nreverse_proxy "+b.address()+"\n}")
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
	close(passNow)
	waitForEmptyInbox(t)
	b.expectCount(t, 1)
}

func TestLookupTellsAnEventThatIsInTheInbox(t *testing.T) {
	b, _ := failing(t, http.StatusUnprocessableEntity)
	for options, state := range map[string]string{"": `"state":"stored"`, "dead_on 422": `"state":"dead"`} {
		s := start(t, proxied(b, strings.Replace(kept(t, options), "retry 50ms 200ms", "retry 1h", 1)))
		id := caddytest.NewID()
		expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.Event{ID: id}.Body())), http.StatusOK, webhook.ResultStored)
		caddytest.WaitFor(t, "the attempt to be recorded", func() bool {
			got, err := ask(t, http.MethodGet, "events/"+id, "")
			return err == nil && strings.Contains(got, state) && strings.Contains(got, `"attempts":1`) && strings.Contains(got, `"status":422`)
		})
	}
}

func TestRetryAfterOfTheBackendDelaysTheNextAttempt(t *testing.T) {
	inSeconds := func(n int) func() string { return func() string { return strconv.Itoa(n) } }
	for name, test := range map[string]struct {
		status     int
		retryAfter func() string
		wait       time.Duration
	}{
		"in seconds":            {http.StatusServiceUnavailable, inSeconds(200), 200 * time.Second},
		"of one event":          {http.StatusConflict, inSeconds(200), 200 * time.Second},
		"until a time":          {http.StatusServiceUnavailable, func() string { return time.Now().Add(201 * time.Second).UTC().Format(http.TimeFormat) }, 200 * time.Second},
		"at most the longest":   {http.StatusServiceUnavailable, inSeconds(3600), 300 * time.Second},
		"of an event, at most":  {http.StatusConflict, inSeconds(3600), 300 * time.Second},
		"longer than any time":  {http.StatusServiceUnavailable, inSeconds(math.MaxInt), 300 * time.Second},
		"in the past":           {http.StatusServiceUnavailable, func() string { return "Sun, 06 Nov 1994 08:49:37 GMT" }, 0},
		"that cannot be parsed": {http.StatusServiceUnavailable, func() string { return "soon" }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", test.retryAfter())
				w.WriteHeader(test.status)
			})
			s := start(t, proxied(b, strings.Replace(kept(t, ""), "retry 50ms 200ms", "retry 5s 5m", 1)))
			expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
			check := func(attempt string) {
				t.Helper()
				var wait time.Duration
				caddytest.WaitFor(t, "the record of "+attempt, func() bool {
					events := listInbox(t).Events
					if len(events) != 1 || events[0].Attempts != 1 {
						return false
					}
					wait = events[0].Due.Sub(events[0].Last.Time)
					return true
				})
				// an attempt may take long
				if wait < max(test.wait-time.Second/10, time.Second) || wait > test.wait+caddytest.Patience {
					t.Errorf("after %s the event waits for %v, want %v", attempt, wait, test.wait)
				}
			}
			check("the first attempt")
			caddytest.Receive(t, b.arrived, "the first attempt")
			if got, err := ask(t, http.MethodPost, "inbox/retry", "{}"); err != nil {
				t.Fatal(got, err)
			}
			caddytest.Receive(t, b.arrived, "the redelivery")
			check("the redelivery")
		})
	}
}

// log_append is before buzzbip_webhook in Caddy's order, so that it adds its field after
// the next handlers. Over HTTP/2, one behind adds nothing: docs/ARCHITECTURE.md.
func TestLogAppendSeesWhatHandlersBehindAnInboxSet(t *testing.T) {
	b := newBackend(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-Upstream", "yes") })
	s := start(t, "log {\noutput test\n}\n"+
		"log_append appended {http.reverse_proxy.header.X-Upstream}\nlog_append id {http.buzzbip_webhook.event.id}\n"+
		"route {\nbuzzbip_webhook "+caddytest.Secret+" {\n"+kept(t, "")+"\n}\nlog_append behind yes\nreverse_proxy "+b.address()+" {\nheader_up X-Request-Id {http.request.uuid}\n}\n}")
	id := caddytest.NewID()
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.Event{ID: id}.Body())), http.StatusOK, "")
	uuid := caddytest.Receive(t, b.arrived, "the event").Header.Get("X-Request-Id")
	caddytest.WaitFor(t, "the entry in the access log", func() bool { return strings.Contains(s.logs(), "handled request") })
	for _, want := range []string{`"appended":"yes"`, `"behind":"yes"`, `"id":"` + id + `"`, `"buzzbip_result":"delivered"`, `"uuid":"` + uuid + `"`} {
		if !strings.Contains(s.logs(), want) {
			t.Errorf("no %s in %s", want, s.logs())
		}
	}
}

// listInbox returns the first page of the inbox's list.
func listInbox(t testing.TB) (list adminapi.Inbox) {
	t.Helper()
	got, err := ask(t, http.MethodGet, "inbox", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(got), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// ask asks the admin API.
func ask(t testing.TB, method, path, body string) (string, error) {
	t.Helper()
	answer := httptest.NewRecorder()
	err := serveAdmin(answer, httptest.NewRequest(method, adminapi.Path+path, strings.NewReader(body)))
	return answer.Body.String(), err
}

// memoryInbox is an inbox that a test in a bubble can use.
type memoryInbox struct {
	*inboxtest.Memory
	inbox.Options
}

// useMemoryInbox gives a new one to a handler that is not part of a server.
func useMemoryInbox(t *testing.T, h *Handler, deliver inbox.Deliver) *memoryInbox {
	t.Helper()
	store := &memoryInbox{Memory: inboxtest.NewMemory()}
	if err := store.Resolve(); err != nil {
		t.Fatal(err)
	}
	d := inbox.NewDispatcher(store)
	t.Cleanup(func() { d.Stop(context.Background()) })
	d.Activate(inbox.Config{Policy: store.Policy(), Deliver: deliver, Remember: func(context.Context, inbox.Event) error { return nil }})
	h.inbox = &inboxUse{Module: store, kind: "memory", backing: "memory", dispatcher: d, room: new(room), started: make(chan struct{})}
	close(h.inbox.started)
	return store
}

// An event that the sender believes to be delivered is not held up by it.
func TestFailureThatCannotBeReportedIsStoredAndDeliveredLater(t *testing.T) {
	for _, protocol := range []int{1, 2} {
		t.Run(fmt.Sprint("HTTP/", protocol), func(t *testing.T) {
			h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}}}
			provision(t, h)
			again := make(chan inbox.Event, 10)
			useMemoryInbox(t, h, func(_ context.Context, e inbox.Event) inbox.Outcome {
				again <- e
				return inbox.Outcome{Accepted: true}
			})
			body := caddytest.NewEvent()
			r := signed("https://localhost/", body)
			r.ProtoMajor = protocol
			result, err := serve(h, r, func(http.ResponseWriter, *http.Request) error { return new(brokenError) })
			if result != string(webhook.ResultStored) || err != nil {
				t.Errorf("the event was %s, %v", result, err)
			}
			h.inbox.dispatcher.Retry(t.Context(), inbox.Filter{})
			if e := caddytest.Receive(t, again, "the redelivery"); string(e.Body) != body {
				t.Errorf("delivered again: %s", e.Body)
			}
		})
	}
}

// answer_within may pass while the sender is answered: what was to answer it then
// comes when it holds no response any more.
func TestResponseIsNotWrittenAfterTheHandlerHasReturned(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}}}
	provision(t, h)
	useMemoryInbox(t, h, func(context.Context, inbox.Event) inbox.Outcome { return inbox.Outcome{NoAttempt: true} })
	w := newSenderResponse()
	var k *keeper
	err := h.ServeHTTP(w, w.request(signed("https://localhost/", caddytest.NewEvent())),
		caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			k = stateOf(r).attempt.keeper
			w.WriteHeader(http.StatusInternalServerError)
			return nil
		}))
	if err != nil || len(w.answers) != 1 {
		t.Fatalf("answered %d times, error %v", len(w.answers), err)
	}
	k.keepLate()
	if _, err := k.connection.Write(nil); err != nil {
		t.Errorf("answered once more: %v", err)
	}
	w.close()
}

// senderResponse is a response over any protocol. answers gets what the sender does.
type senderResponse struct {
	*httptest.ResponseRecorder
	answers chan senderAnswer
	close   func() error // ends the connection
}

type senderAnswer struct {
	at     time.Time
	status int
	header http.Header
}

func newSenderResponse() *senderResponse {
	return &senderResponse{ResponseRecorder: httptest.NewRecorder(), answers: make(chan senderAnswer, 2)}
}

func (w *senderResponse) WriteHeader(status int) {
	w.answers <- senderAnswer{time.Now(), status, w.Header().Clone()}
	w.ResponseRecorder.WriteHeader(status)
}

// request returns r as one that has arrived over a connection of its own.
func (w *senderResponse) request(r *http.Request) *http.Request {
	server, client := net.Pipe()
	go func() {
		got, err := http.ReadResponse(bufio.NewReader(client), nil)
		if err != nil {
			return
		}
		if !got.Close || got.ContentLength != 0 {
			got.StatusCode = 0
		}
		io.Copy(io.Discard, client) // until the connection ends
		w.answers <- senderAnswer{time.Now(), got.StatusCode, got.Header}
	}()
	w.close = server.Close
	return caddyhttp.PrepareRequest(r.WithContext(withConnection(r.Context(), server)), caddy.NewReplacer(), w, new(caddyhttp.Server))
}

// useOwnDeliveries gives the bubble of a test a set of deliveries whose timer is in it.
func useOwnDeliveries(t *testing.T) {
	before := deliveries
	deliveries = new(deliverySet)
	t.Cleanup(func() { deliveries = before })
}

func TestBackendMayAnswerJustWhenAnswerWithinPasses(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}}}
	provision(t, h)
	synctest.Test(t, func(t *testing.T) {
		useOwnDeliveries(t)
		store := useMemoryInbox(t, h, func(context.Context, inbox.Event) inbox.Outcome { t.Error("delivered again"); return inbox.Outcome{} })
		backend := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			time.Sleep(8 * time.Second)
			w.Header().Set("X-Backend", "yes")
			w.WriteHeader(http.StatusAccepted)
			return nil
		})
		var senders sync.WaitGroup
		for i := range 300 {
			senders.Go(func() {
				r := signed("https://localhost/", caddytest.NewEvent())
				r.ProtoMajor = 1 + i%2
				w := newSenderResponse()
				w.Header().Set("X-Sender", "yes")
				if err := h.ServeHTTP(w, w.request(r), backend); err != nil {
					t.Error(err)
				}
				w.close()
				answer := <-w.answers
				got := fmt.Sprintf("%d %q, backend %q, sender %q", answer.status, answer.header.Get(webhook.ResultHeader), answer.header.Get("X-Backend"), answer.header.Get("X-Sender"))
				if got != `202 "", backend "yes", sender "yes"` && got != `200 "stored", backend "", sender "yes"` {
					t.Errorf("answered %q", got)
				}
			})
		}
		senders.Wait()
		time.Sleep(time.Hour)
		if stats := store.Stats(); stats.Waiting+stats.Dead > 0 {
			t.Errorf("the inbox has %+v", stats)
		}
	})
}

// BuzzBip waits for 10 seconds.
func TestBackendThatTakes15SecondsGetsEachEventOnceAndTheSenderItsAnswerAfter8(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}}}
	provision(t, h)
	synctest.Test(t, func(t *testing.T) {
		useOwnDeliveries(t)
		store := useMemoryInbox(t, h, func(context.Context, inbox.Event) inbox.Outcome { t.Error("delivered again"); return inbox.Outcome{} })
		var calls atomic.Int64
		backend := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			calls.Add(1)
			time.Sleep(15 * time.Second)
			w.WriteHeader(http.StatusOK)
			return nil
		})
		began := time.Now()
		var senders sync.WaitGroup
		const events = 10
		for i := range events {
			senders.Go(func() {
				r := signed("https://localhost/", caddytest.NewEvent())
				r.ProtoMajor = 1 + i%2
				w := newSenderResponse()
				if err := h.ServeHTTP(w, w.request(r), backend); err != nil {
					t.Error(err)
				}
				w.close()
				answer := <-w.answers
				if result, after := answer.header.Get(webhook.ResultHeader), answer.at.Sub(began); result != "stored" || after != 8*time.Second {
					t.Errorf("answered %q after %v", result, after)
				}
			})
		}
		senders.Wait()
		time.Sleep(time.Hour)
		if n := calls.Load(); n != events {
			t.Errorf("the backend was asked %d times, want %d", n, events)
		}
		if stats := store.Stats(); stats.Waiting+stats.Dead > 0 {
			t.Errorf("the inbox has %+v", stats)
		}
	})
}
