package buzzbip

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

const notEnforced = "enforce off"

// unknownLength is a body whose length is not declared.
type unknownLength struct{ io.Reader }

// observedRequest is a request, and what would become of it.
type observedRequest struct {
	name    string
	wouldBe webhook.Result
	reason  webhook.Reason
	body    string
	*http.Request
}

func observedRequests(url string) (all []observedRequest) {
	add := func(name string, wouldBe webhook.Result, reason webhook.Reason, body string, change func(*http.Request)) {
		r := signed(url, body)
		if change != nil {
			change(r)
		}
		all = append(all, observedRequest{name, wouldBe, reason, body, r})
	}
	event := caddytest.NewEvent
	add("event", webhook.ResultDelivered, "", event(), nil)
	add("chunked", webhook.ResultDelivered, "", event(), func(r *http.Request) {
		r.Body, r.GetBody, r.ContentLength = io.NopCloser(unknownLength{r.Body}), nil, -1
	})
	add("expecting 100", webhook.ResultDelivered, "", event(), func(r *http.Request) { r.Header.Set("Expect", "100-continue") })
	add("of another type", webhook.ResultIgnored, "", caddytest.Event{Type: "contact.created"}.Body(), nil)
	add("unsigned", webhook.ResultRejected, webhook.ReasonSignatureMissing, event(), func(r *http.Request) { r.Header.Del(webhook.SignatureHeader) })
	add("forged", webhook.ResultRejected, webhook.ReasonSignatureMismatch, event(), func(r *http.Request) { r.Header.Set(webhook.SignatureHeader, caddytest.Sign("another")) })
	add("no event", webhook.ResultRejected, webhook.ReasonEnvelopeInvalid, `{"id":"evt_1"}`, nil)
	add("large", webhook.ResultRejected, webhook.ReasonBodyTooLarge, caddytest.Event{Data: fmt.Sprintf(`{"text":%q}`, strings.Repeat("x", 100<<10))}.Body(), nil)
	add("GET", webhook.ResultRejected, webhook.ReasonMethodNotAllowed, "", func(r *http.Request) { r.Method = http.MethodGet })
	add("PUT", webhook.ResultRejected, webhook.ReasonMethodNotAllowed, event(), func(r *http.Request) { r.Method = http.MethodPut })
	return all
}

func TestWithEnforceOffRequestsPassAsIfThePluginWereNotThere(t *testing.T) {
	answer := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Backend", "yes")
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, "short and stout")
	}
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b := newBackend(t, answer)
		s := start(t, fmt.Sprintf(`
			handle_path /plain/* {
				reverse_proxy %s
			}
			handle_path /observed/* {
				buzzbip_webhook %s {
					max_body_size 10KiB
					events message.*
					%s
				}
				reverse_proxy %[1]s
			}`, b.address(), caddytest.Secret, notEnforced))
		base := strings.TrimSuffix(s.url, "webhooks/buzzbip")
		type exchange struct {
			Method, URI, Body string
			Length            int64
			Encoding          []string
			Header            http.Header
			Status            int
			Answer            string
			AnswerHeader      http.Header
		}
		pass := func(path, name string, r *http.Request) exchange {
			got := send(client, r)
			if got.err != nil {
				t.Fatalf("%s %s: %v", path, name, got.err)
			}
			at := caddytest.Receive(t, b.arrived, name)
			for _, h := range []http.Header{at.Header, got.header} {
				deleteVarying(h)
				h.Del(webhook.SignatureHeader) // each event has its own
			}
			return exchange{at.Method, at.URL.String(), at.body, at.ContentLength, at.TransferEncoding, at.Header, got.status, got.body, got.header}
		}
		plain := observedRequests(base + "plain/hook")
		for i, r := range observedRequests(base + "observed/hook") {
			name := r.name
			want := pass("plain", name, plain[i].Request)
			got := pass("observed", name, r.Request)
			if got.Body != r.body {
				t.Errorf("%s: the backend got the body %q, want %q", name, got.Body, r.body)
			}
			got.Body, want.Body = "", ""
			// the ids, and so the lengths of two events, may differ by a digit
			want.Length, got.Length = min(want.Length, 0), min(got.Length, 0)
			delete(want.Header, "Content-Length")
			delete(got.Header, "Content-Length")
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: with the plugin\n%+v, without\n%+v", name, got, want)
			}
		}
	})
}

func TestWithEnforceOffTheLogSaysWhatWouldHaveBecomeOfRequests(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, fmt.Sprintf(`
		log {
			output test
		}
		log_append seen {http.buzzbip_webhook.would_be}
		log_append why {http.buzzbip_webhook.reason}
		buzzbip_webhook %s {
			max_body_size 10KiB
			events message.*
			%s
		}
		reverse_proxy %s`, caddytest.Secret, notEnforced, b.address()))
	client := newClient(t, "HTTP/1.1")
	for _, r := range observedRequests(s.url) {
		name, wouldBe, reason := r.name, string(r.wouldBe), string(r.reason)
		before, rejected := gather(t, metrics.wouldBe), gather(t, metrics.rejections)
		r.Header.Set("X-Case", name)
		expect(t, send(client, r.Request), http.StatusOK, "")
		var entry map[string]any
		caddytest.WaitFor(t, "the access log", func() bool {
			for line := range strings.Lines(s.logs()) {
				var e map[string]any
				if json.Unmarshal([]byte(line), &e) == nil && e["msg"] == "handled request" && strings.Contains(line, fmt.Sprintf(`"X-Case":[%q]`, name)) {
					entry = e
				}
			}
			return entry != nil
		})
		wantReason := any(reason)
		if reason == "" {
			wantReason = nil
		}
		if entry["buzzbip_would_be"] != wouldBe || entry["buzzbip_reason"] != wantReason || entry["buzzbip_result"] != "delivered" || entry["seen"] != wouldBe || entry["why"] != reason {
			t.Errorf("%s: the log has %v", name, entry)
		}
		before[reason+" "+wouldBe]++
		if after := gather(t, metrics.wouldBe); !maps.Equal(after, before) {
			t.Errorf("%s: would_be_total is %v, want %v", name, after, before)
		}
		if after := gather(t, metrics.rejections); !maps.Equal(after, rejected) {
			t.Errorf("%s: counted as rejected", name)
		}
	}
	if logs := s.logs(); !strings.Contains(logs, "request would be rejected, but enforce is off") {
		t.Errorf("rejections are not logged: %s", logs)
	}
}

// wouldBe sends an event and returns what would have become of it.
func (s *site) wouldBe(client *http.Client, body string) string {
	s.t.Helper()
	got := send(client, signed(s.url, body))
	if got.err != nil {
		s.t.Fatal(got.err)
	}
	entries, _ := latest.since(0)
	return string(entries[len(entries)-1].WouldBe)
}

func TestWithEnforceOffIDsAreRemembered(t *testing.T) {
	b, working := failing(t, http.StatusInternalServerError)
	s := start(t, proxied(b, notEnforced))
	client := newClient(t, "HTTP/1.1")
	id := caddytest.NewID()
	body := caddytest.Event{ID: id}.Body()
	for _, want := range []string{"failed", "delivered", "duplicate", "duplicate"} {
		if got := s.wouldBe(client, body); got != want {
			t.Errorf("it would be %s, want %s", got, want)
		}
		working.Store(true)
	}
	if got := s.wouldBe(client, caddytest.Event{ID: id, Data: `{"other":1}`}.Body()); got != "conflict" {
		t.Errorf("another body would be %s, want conflict", got)
	}
	if !strings.Contains(s.logs(), "event has the ID of a delivered event, but another body") {
		t.Error("the conflict is no alarm")
	}
	b.expectCount(t, 5)
	s.reload(proxied(b, ""))
	expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
	b.expectCount(t, 5)
}

func TestWithEnforceOffTheBodyStreams(t *testing.T) {
	got := make(chan string, 1)
	release := make(chan struct{})
	b := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		line, _ := bufio.NewReader(r.Body).ReadString('\n')
		got <- line
		<-release
		io.WriteString(w, "early")
	}))
	defer b.Close()
	s := start(t, fmt.Sprintf("buzzbip_webhook %s {\n%s\nread_timeout 50ms\ndelivery_timeout 50ms\nanswer_within 50ms\n}\nreverse_proxy %s", caddytest.Secret, notEnforced, b.Listener.Addr()))
	reader, writer := io.Pipe()
	defer writer.Close()
	r := signed(s.url, "")
	r.Body, r.ContentLength, r.GetBody = reader, -1, nil
	answer := sendAsync(newClient(t, "HTTP/1.1"), r)
	io.WriteString(writer, "first line\n")
	if line := caddytest.Receive(t, got, "the first line, before the end of the body"); line != "first line\n" {
		t.Errorf("the backend got %q", line)
	}
	time.Sleep(100 * time.Millisecond) // beyond all timeouts, which do not apply
	close(release)
	writer.Close()
	if got := caddytest.Receive(t, answer, "the answer"); got.status != http.StatusOK || got.body != "early" {
		t.Errorf("answered %d %q %v", got.status, got.body, got.err)
	}
}

func TestWithEnforceOffABodyThatIsNotReadIsNotJudged(t *testing.T) {
	s := start(t, fmt.Sprintf("buzzbip_webhook %s {\n%s\n}\nrespond 204", caddytest.Secret, notEnforced))
	if got := s.wouldBe(newClient(t, "HTTP/1.1"), caddytest.NewEvent()); got != string(webhook.WouldBeUnknown) {
		t.Errorf("it would be %s, want %s", got, webhook.WouldBeUnknown)
	}
}

func TestWithEnforceOffASenderThatDisconnectsEndsTheDelivery(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		ended := make(chan struct{})
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			close(ended)
		})
		s := start(t, watched(b, notEnforced))
		disconnect(t, client, signed(s.url, caddytest.NewEvent()), b)
		caddytest.Receive(t, ended, "the end of the delivery")
	})
}

func TestWithEnforceOffErrorRoutesAnswerAsTheyLike(t *testing.T) {
	s := start(t, fmt.Sprintf(`
		buzzbip_webhook %s {
			%s
		}
		error "down" 503
		handle_errors {
			respond "{http.request.body}" 200
		}`, caddytest.Secret, notEnforced))
	body := caddytest.NewEvent()
	got := send(newClient(t, "HTTP/1.1"), signed(s.url, body))
	if got.status != http.StatusOK || got.body != body {
		t.Errorf("answered %d %q %v", got.status, got.body, got.err)
	}
}

func TestWithEnforceOffAHandlerBehindStillEnforces(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, fmt.Sprintf("route {\nbuzzbip_webhook %s {\n%s\n}\nbuzzbip_webhook %[1]s {\nscope inner\n}\nreverse_proxy %[3]s\n}\nhandle_errors {\nrespond sorry 200\n}", caddytest.Secret, notEnforced, b.address()))
	client := newClient(t, "HTTP/1.1")
	r := signed(s.url, caddytest.NewEvent())
	r.Header.Set(webhook.SignatureHeader, caddytest.Sign("another"))
	expect(t, send(client, r), http.StatusUnauthorized, "")
	body := caddytest.NewEvent()
	expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
	expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
	b.expectCount(t, 1)
}

func TestWithEnforceOffAPanicOfTheNextHandlersGoesOn(t *testing.T) {
	s := start(t, fmt.Sprintf("buzzbip_webhook %s {\n%s\n}\nodd crash", caddytest.Secret, notEnforced))
	if got := send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())); got.err == nil {
		t.Errorf("answered %d", got.status)
	}
}

func TestWithEnforceOffEventsInTheInboxAreStillDelivered(t *testing.T) {
	b, working := failing(t, http.StatusInternalServerError)
	inbox := kept(t, "")
	s := start(t, proxied(b, inbox))
	client := newClient(t, "HTTP/1.1")
	expect(t, send(client, signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
	s.reload(proxied(b, inbox+"\n"+notEnforced))
	if got := s.wouldBe(client, caddytest.NewEvent()); got != "stored" {
		t.Errorf("it would be %s, want stored", got)
	}
	if n := inboxStats(t).Waiting; n != 1 {
		t.Errorf("%d events wait, want that of before", n)
	}
	working.Store(true)
	waitForEmptyInbox(t)
}

func TestEnforceOffIsLoud(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, notEnforced))
	if !strings.Contains(s.logs(), "enforce off: every request reaches the next handlers") {
		t.Errorf("no warning: %s", s.logs())
	}
	if n := gather(t, metrics.enforced)[""]; n != 0 {
		t.Errorf("enforced is %v", n)
	}
	s.wouldBe(newClient(t, "HTTP/1.1"), caddytest.NewEvent())
	o := running().overview()
	if !o.NotEnforced || o.Observed == nil || o.Observed.Requests == 0 || o.Observed.WouldBe[webhook.ResultDelivered] == 0 {
		t.Errorf("the overview is %+v", o)
	}
	s.reload(proxied(b, ""))
	if n := gather(t, metrics.enforced)[""]; n != 1 {
		t.Errorf("enforced is %v after the reload", n)
	}
	if o := running().overview(); o.NotEnforced {
		t.Errorf("the overview is %+v after the reload", o)
	}
}
