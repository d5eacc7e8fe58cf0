package buzzbip

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// Handlers that read or change the request after ours work on the request that
// the backend gets, whichever handlers pass on a copy of it before or after ours.
func TestHandlersThatFollowWorkOnTheRequestOfTheBackend(t *testing.T) {
	b := newBackend(t, nil)
	other := newBackend(t, nil)
	proxy := "reverse_proxy " + b.address()
	body := func() string {
		return caddytest.Event{Data: `{"text":"urgent"}`}.Body()
	}
	same := func(t *testing.T, got received, sent string) {
		if got.body != sent {
			t.Errorf("the backend got %q, want %q", got.body, sent)
		}
	}
	header := func(name string, want func(sent string) string) func(*testing.T, received, string) {
		return func(t *testing.T, got received, sent string) {
			same(t, got, sent)
			if got := got.Header.Get(name); got != want(sent) {
				t.Errorf("%s is %q, want %q", name, got, want(sent))
			}
		}
	}
	whole := func(sent string) string { return sent }
	tests := map[string]struct {
		handlers string
		check    func(t *testing.T, got received, sent string)
	}{
		"expression":     {"@urgent expression {http.request.body}.contains(\"urgent\")\nreverse_proxy @urgent " + b.address() + "\nreverse_proxy " + other.address(), same},
		"vars":           {"vars body {http.request.body}\nrequest_header X-Body {vars.body}\n" + proxy, header("X-Body", whole)},
		"vars matcher":   {"@urgent vars_regexp {http.request.body} urgent\nreverse_proxy @urgent " + b.address() + "\nreverse_proxy " + other.address(), same},
		"request_header": {"request_header X-Body {http.request.body}\n" + proxy, header("X-Body", whole)},
		"header_up":      {proxy + " {\nheader_up X-Body {http.request.body}\n}", header("X-Body", whole)},
		"base64":         {"request_header X-Body {http.request.body_base64}\n" + proxy, header("X-Body", func(sent string) string { return inBase64(sent).String() })},
		"rewrite": {"rewrite /rewritten\n" + proxy, func(t *testing.T, got received, sent string) {
			same(t, got, sent)
			expectText(t, "path", got.URL.Path, "/rewritten")
		}},
		"method": {"method PUT\n" + proxy, func(t *testing.T, got received, sent string) {
			same(t, got, sent)
			expectText(t, "method", got.Method, "PUT")
		}},
		"request_body set":   {"request_body {\nset other\n}\n" + proxy, func(t *testing.T, got received, _ string) { expectText(t, "body", got.body, "other") }},
		"body in a new body": {"request_body {\nset `{http.request.body}!`\n}\n" + proxy, func(t *testing.T, got received, sent string) { expectText(t, "body", got.body, sent+"!") }},
		"twice":              {"request_header X-First {http.request.body}\nrequest_header X-Body {http.request.body}\n" + proxy, header("X-Body", whole)},
		"copied after":       {"copies\nrequest_header X-Body {http.request.body}\n" + proxy, header("X-Body", whole)},
		"respond in part":    {"@never expression {http.request.body}.contains(\"no such text\")\nrespond @never no 500\n" + proxy, same},
	}
	for before, handlers := range handlersBefore(t) {
		for name, test := range tests {
			for _, buffers := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/after %s/request_buffers=%v", name, before, buffers), func(t *testing.T) {
					site := test.handlers
					if buffers {
						site = strings.Replace(site, proxy, proxy+" {\nrequest_buffers 1MiB\n}", 1)
						site = strings.Replace(site, "\n} {\n", "\n", 1)
					}
					s := start(t, "route {\n"+handlers+"\nbuzzbip_webhook "+caddytest.Secret+"\n"+site+"\n}")
					sent := body()
					expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, sent)), http.StatusOK, "")
					test.check(t, caddytest.Receive(t, b.arrived, "the delivery"), sent)
				})
			}
		}
	}
	other.expectCount(t, 0)
}

func expectText(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("the %s is %q, want %q", what, got, want)
	}
}

func TestPlaceholdersForTheBodySeeWhatReplacedIt(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, "route {\nbuzzbip_webhook "+caddytest.Secret+"\nrequest_body {\nset other\n}\nrequest_header X-Body {http.request.body}\nreverse_proxy "+b.address()+"\n}")
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, "")
	if got := caddytest.Receive(t, b.arrived, "the delivery"); got.Header.Get("X-Body") != "other" || got.body != "other" {
		t.Errorf("the backend got %q, the placeholder %q", got.body, got.Header.Get("X-Body"))
	}
}

func TestBodyIsReadAgainAsAWholeOrNotAtAll(t *testing.T) {
	p := newPayload(&content{bytes: []byte("body")})
	p.Close()
	if got, err := io.ReadAll(p); err != nil || string(got) != "body" {
		t.Fatalf("got %q, %v", got, err)
	}
	p.Close()
	if got, err := io.ReadAll(p); err != nil || string(got) != "body" {
		t.Errorf("after its end it gave %q, %v", got, err)
	}
	p.Close()
	if _, err := io.ReadFull(p, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	p.Close()
	if got, err := io.ReadAll(p); err == nil {
		t.Errorf("closed in the middle, it gave %q", got)
	}
}

// The deadline of the body belongs to Caddy's idle timeouts. Clearing it would set
// the deadline of the server, which passes while the backend works.
func TestDeadlineOfTheServerDoesNotEndADelivery(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		for _, idle := range []string{"", `"read_idle_timeout":-1,`} {
			for _, tighter := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s read_timeout is tighter: %v", idle, tighter), func(t *testing.T) {
					// a busy machine may not even read the body within a short time
					for serverTimeout := 200 * time.Millisecond; !outlivesDeadline(t, client, idle, serverTimeout, tighter); serverTimeout *= 2 {
						if serverTimeout > caddytest.Patience {
							t.Fatal("no request is read in time")
						}
					}
				})
			}
		}
	})
}

// outlivesDeadline delivers an event, and a duplicate that waits for it, in more
// time than the server has for reading. It reports whether the requests were read
// in time.
func outlivesDeadline(t *testing.T, client *http.Client, idle string, serverTimeout time.Duration, tighter bool) bool {
	readTimeout := 2 * serverTimeout
	if tighter {
		readTimeout = serverTimeout / 2
	}
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) { <-time.After(2 * serverTimeout) })
	s := start(t, "respond gone 404")
	s.server = idle + fmt.Sprintf(`"read_timeout":%d,`, serverTimeout)
	s.reload(watched(b, "read_timeout "+readTimeout.String()))
	for len(senderDisconnected) > 0 {
		<-senderDisconnected
	}
	body := caddytest.NewEvent()
	first := sendAsync(client, signed(s.url, body))
	select {
	case got := <-first:
		if got.err == nil && got.status != http.StatusRequestTimeout {
			t.Fatalf("answered %d before the backend did", got.status)
		}
		return false
	case <-b.arrived:
	}
	duplicate := caddytest.Receive(t, sendAsync(client, signed(s.url, body)), "the duplicate")
	expect(t, caddytest.Receive(t, first, "the delivery"), http.StatusOK, "")
	if duplicate.err != nil || duplicate.status == http.StatusRequestTimeout {
		return false
	}
	expect(t, duplicate, http.StatusOK, webhook.ResultDuplicate)
	if len(senderDisconnected) > 0 {
		t.Error("the end of the deadline was taken for a disconnect")
	}
	return true
}

func TestReadTimeoutHoldsWithATimeoutsHandlerBefore(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		for _, idle := range []string{"", `"read_idle_timeout":-1,`} {
			s := start(t, "respond gone 404")
			s.server = idle
			s.reload("timeouts {\nread_timeout " + (2 * caddytest.Patience).String() + "\n}\nbuzzbip_webhook " + caddytest.Secret + " {\n read_timeout 50ms\n}" + explained)
			body := caddytest.NewEvent()
			r := signed(s.url, body)
			r.Body = stalled(t, body[:20])
			expectRejection(t, send(client, r), webhook.ReasonBodyTimeout)
		}
	})
}

func TestMemoryGrowsWithWhatArrivesNotWithWhatIsDeclared(t *testing.T) {
	for _, declared := range []int64{1 << 30, -1} {
		for _, arrived := range []int{1, firstRead - 1, firstRead, 1 << 20} {
			body := &tap{Reader: io.LimitReader(zeros{}, int64(arrived))}
			buf, err := readAll(body, declared, 1<<30)
			if err != nil || len(buf) != arrived {
				t.Fatalf("read %d bytes, %v", len(buf), err)
			}
			if cap(buf) > growthDeclared*max(arrived, firstRead) {
				t.Errorf("declared %d, arrived %d, allocated %d", declared, len(buf), cap(buf))
			}
		}
	}
}

func TestBodiesAreReadWithFewCopies(t *testing.T) {
	for _, test := range []struct{ size, declared, copies int64 }{
		{1 << 10, 1 << 10, 0},
		{1 << 10, -1, 0},
		{firstRead, firstRead, 0},
		{64 << 10, 64 << 10, 1},
		{64 << 10, -1, 2},
		{1 << 20, 1 << 20, 2},
	} {
		content := make([]byte, test.size)
		body := new(arrived)
		buffers := testing.AllocsPerRun(10, func() {
			body.rest = content
			if got, err := readAll(body, test.declared, 1<<30); err != nil || !bytes.Equal(got, content) {
				t.Errorf("read %d bytes, %v", len(got), err)
			}
		})
		if copies := int64(buffers) - 1; copies > test.copies {
			t.Errorf("%d bytes, declared %d: copied %d times, want at most %d", test.size, test.declared, copies, test.copies)
		}
	}
}

// arrived is a body that has arrived whole. Its end is read with its last byte, as
// net/http does it.
type arrived struct{ rest []byte }

func (a *arrived) Read(p []byte) (int, error) {
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	if len(a.rest) == 0 {
		return n, io.EOF
	}
	return n, nil
}

func TestBodyInTheBufferOfAForgedOneIsReadRight(t *testing.T) {
	forgery := bytes.Repeat([]byte("x"), 64<<10)
	for _, size := range []int{firstRead, 40 << 10, 64 << 10} {
		content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
		for _, declared := range []int{size, -1} {
			recycle(slices.Clone(forgery))
			got, err := readAll(&arrived{rest: content}, int64(declared), 1<<20)
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("declared %d: read %d bytes of %d, %v", declared, len(got), size, err)
			}
		}
	}
}

func TestForgedBodiesAllocateNoBuffers(t *testing.T) {
	const size = 64 << 10
	content := make([]byte, size)
	body := new(arrived)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const bodies = 100
	for range bodies {
		body.rest = content
		got, err := readAll(body, size, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		recycle(got)
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / bodies; each > size/2 {
		t.Errorf("each allocates %d bytes", each)
	}
}

func TestBodyThatIsLongerThanDeclaredIsReadWhole(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 1<<10)
	for _, declared := range []int64{0, 10, firstRead, int64(len(content)) - 1} {
		if got, err := readAll(iotest.OneByteReader(bytes.NewReader(content)), declared, 1<<30); err != nil || !bytes.Equal(got, content) {
			t.Errorf("declared %d: read %d bytes of %d, %v", declared, len(got), len(content), err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// stalled returns a body of which only a part ever arrives.
func stalled(t *testing.T, part string) io.ReadCloser {
	body, sender := io.Pipe()
	t.Cleanup(func() { sender.Close() })
	go io.WriteString(sender, part)
	return body
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func TestBodyThatArrivesTooSlowlyIsRejected(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		for _, declared := range []bool{true, false} {
			t.Run(fmt.Sprintf("declared=%v", declared), func(t *testing.T) {
				b := newBackend(t, nil)
				s := start(t, proxied(b, "read_timeout 50ms")+explained)
				body := caddytest.NewEvent()
				r := signed(s.url, body)
				r.Body = stalled(t, body[:20])
				if !declared {
					r.ContentLength = -1
				}
				expectRejection(t, send(client, r), webhook.ReasonBodyTimeout)
				b.expectCount(t, 0)
			})
		}
	})
}

// The deadline for the body must not cut off what comes after it, also where
// Caddy sets none of its own.
func TestReadTimeoutDoesNotLimitTheDelivery(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		for _, server := range []string{"", `"read_idle_timeout":-1,`} {
			const readTimeout = 100 * time.Millisecond
			b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
				<-time.After(2 * readTimeout)
			})
			s := start(t, "respond gone 404")
			s.server = server
			s.reload(watched(b, "read_timeout "+readTimeout.String()))
			for range 2 { // also on a connection that is used again
				expect(t, send(client, signed(s.url, caddytest.NewEvent())), http.StatusOK, "")
			}
			if len(senderDisconnected) > 0 {
				t.Error("the end of the deadline was taken for that of the connection")
			}
		}
	})
}

func TestTighterDeadlineOfTheServerHolds(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		for _, server := range []string{"", `"read_idle_timeout":-1,`} {
			s := start(t, "respond gone 404")
			s.server = server + `"read_timeout":50000000,`
			s.reload("buzzbip_webhook " + caddytest.Secret + " {\n read_timeout " + (2 * caddytest.Patience).String() + "\n}" + explained)
			body := caddytest.NewEvent()
			var got response
			// a machine that is busy may not even have read the headers in time
			caddytest.WaitFor(t, "an answer", func() bool {
				r := signed(s.url, body)
				r.Body = stalled(t, body[:20])
				// the transport waits for the body even if the connection ends
				end := time.AfterFunc(time.Second, func() { r.Body.Close() })
				defer end.Stop()
				got = send(client, r)
				return got.err == nil
			})
			expectRejection(t, got, webhook.ReasonBodyTimeout)
		}
	})
}

func TestBodyThatIsCutOffIsRejected(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, ""))
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			client := newClient(t, protocol)
			body := caddytest.NewEvent()
			ctx, cancel := context.WithCancel(t.Context())
			r := signed(s.url, body).WithContext(ctx)
			r.Body = io.NopCloser(io.MultiReader(strings.NewReader(body[:20]), readFunc(func([]byte) (int, error) {
				cancel()
				return 0, io.ErrUnexpectedEOF
			})))
			if got := send(client, r); got.err == nil {
				t.Fatalf("answered %d", got.status)
			}
			caddytest.WaitFor(t, "the rejection in the log", func() bool {
				return strings.Contains(s.logs(), `"reason":"body_incomplete"`)
			})
			expect(t, send(newClient(t, protocol), signed(s.url, body)), http.StatusOK, "")
		})
	}
	b.expectCount(t, len(protocols))
}

func TestBackendGetsTheSameBytesWithALength(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b := newBackend(t, nil)
		s := start(t, proxied(b, ""))
		for name, declared := range map[string]bool{"declared": true, "chunked": false} {
			for _, size := range []int{10, firstRead - 200, firstRead, 5 * firstRead, 500 << 10} {
				t.Run(fmt.Sprintf("%s/%d", name, size), func(t *testing.T) {
					// spaces and escapes that a parser would not keep
					body := fmt.Sprintf(" {\"id\" : %q,\n\t\"type\":\"message.\\u0072eceived\", \"createdAt\":%q, \"data\":{\"a\":1.0, \"a\":\"%s\"} } \n",
						caddytest.NewID(), time.Now().UTC().Format(time.RFC3339), strings.Repeat("x", size))
					r := signed(s.url, body)
					r.Header.Set("Expect", "100-continue")
					if !declared {
						r.ContentLength = -1
						r.Body = io.NopCloser(io.MultiReader(r.Body))
						r.Trailer = http.Header{"X-Unsigned": {"trailer"}}
					}
					expect(t, send(client, r), http.StatusOK, "")
					got := caddytest.Receive(t, b.arrived, "the delivery")
					if got.body != body {
						t.Errorf("the backend got other bytes")
					}
					if got.ContentLength != int64(len(body)) || len(got.TransferEncoding) > 0 {
						t.Errorf("length %d, transfer encoding %v; want %d", got.ContentLength, got.TransferEncoding, len(body))
					}
					if got.Header.Get(webhook.SignatureHeader) != caddytest.Sign(body) {
						t.Errorf("the backend got the signature %q", got.Header.Get(webhook.SignatureHeader))
					}
					if len(got.Trailer) > 0 || got.Header.Get("Expect") != "" {
						t.Errorf("trailer %v, expect %q", got.Trailer, got.Header.Get("Expect"))
					}
				})
			}
		}
	})
}

func TestBodyCanBeReadAgainOnlyAsAWhole(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}}, Dedupe: dedupeOff}
	provision(t, h)
	body := caddytest.NewEvent()
	_, err := serve(h, signed("https://localhost/", body), func(w http.ResponseWriter, r *http.Request) error {
		if got := r.Header.Get("Content-Length"); got != strconv.Itoa(len(body)) { // FastCGI looks here
			t.Errorf("Content-Length is %q", got)
		}
		part := make([]byte, 10)
		if _, err := io.ReadFull(r.Body, part); err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if rest, err := io.ReadAll(r.Body); err == nil {
			t.Errorf("a body that was closed gave %q", rest)
		}
		again, err := r.GetBody()
		if err != nil {
			t.Fatal(err)
		}
		if whole, err := io.ReadAll(again); err != nil || !bytes.Equal(whole, []byte(body)) {
			t.Errorf("GetBody gave %q, %v", whole, err)
		}
		w.WriteHeader(http.StatusOK)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A backend may answer before it has read the body, and read on. The bytes it
// gets must stay those of its own request, whatever Caddy does in the meantime.
func TestBackendThatAnswersEarlyGetsItsOwnBytes(t *testing.T) {
	const size = 12 << 20 // more than fits between Caddy and a backend that does not read
	answered := make(chan struct{})
	ends := make(chan byte, 2)
	address := serveRaw(t, func(conn net.Conn) {
		conn.(*net.TCPConn).SetReadBuffer(64 << 10) // so that the body does not fit
		r, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		<-answered
		body, _ := io.ReadAll(r.Body) // Caddy's transport cuts it off soon
		ends <- body[len(body)-1]
	})
	s := start(t, fmt.Sprintf(`
		buzzbip_webhook %s {
			max_body_size 16MiB
		}
		reverse_proxy %s`, caddytest.Secret, address))
	client := newClient(t, "HTTP/1.1")
	large := func(fill string) *http.Request {
		return signed(s.url, caddytest.Event{Data: `{"text":"` + strings.Repeat(fill, size) + `"}`}.Body())
	}
	first, second := large("a"), large("b")
	expect(t, send(client, first), http.StatusOK, "")
	close(answered)
	expect(t, send(client, second), http.StatusOK, "")
	for range 2 {
		// the last byte that came before the cut, or that of the whole body
		if end := caddytest.Receive(t, ends, "the backend to have read"); !strings.ContainsRune("ab}", rune(end)) {
			t.Errorf("the backend got %q, which is of no request", end)
		}
	}
}

// largeEvent returns an event with a large text of its own.
func largeEvent(id string) string {
	return caddytest.Event{ID: id, Data: fmt.Sprintf(`{"mine":%q,"text":%q}`, id, strings.Repeat(id+" ", 2*minReuse/len(id)))}.Body()
}

func TestBufferOfABodyIsUsedAgainOnlyWhenNobodyCanReadIt(t *testing.T) {
	replied := func(status int) caddyhttp.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) error {
			w.WriteHeader(status)
			return nil
		}
	}
	for name, test := range map[string]struct {
		next     caddyhttp.HandlerFunc
		body     string
		gone     bool // the sender has disconnected
		released bool
	}{
		"delivered":                 {replied(200), largeEvent(caddytest.NewID()), false, true},
		"small":                     {replied(200), caddytest.NewEvent(), false, false},
		"failed, for error routes":  {replied(500), largeEvent(caddytest.NewID()), false, false},
		"of a sender that has gone": {replied(200), largeEvent(caddytest.NewID()), true, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}}}
			provision(t, h)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var body io.ReadCloser
			var state *requestState
			_, err := serve(h, signed("http://localhost/", test.body).WithContext(ctx), func(w http.ResponseWriter, r *http.Request) error {
				if body, state = r.Body, stateOf(r); test.gone {
					cancel()
				}
				return test.next(w, r)
			})
			if err != nil {
				t.Fatal(err)
			}
			if value, _ := state.value("event.data.text"); value == "" && test.body != "" && !strings.Contains(test.body, value) {
				t.Error("placeholders have no data before the request has ended")
			}
			ended := make(chan struct{})
			cancel()
			context.AfterFunc(ctx, func() { close(ended) })
			<-ended
			isReleased := func() bool {
				state.body.mu.RLock()
				defer state.body.mu.RUnlock()
				return state.body.bytes == nil
			}
			if !test.released {
				if isReleased() {
					t.Error("the buffer is used again")
				}
				if got, err := io.ReadAll(body); string(got) != test.body || err != nil {
					t.Errorf("the body reads %d bytes, %v", len(got), err)
				}
				return
			}
			caddytest.WaitFor(t, "the buffer to be released", isReleased)
			if n, err := body.Read(make([]byte, 10)); n != 0 || err != http.ErrBodyReadAfterClose {
				t.Errorf("after the request, a transport reads %d bytes, %v", n, err)
			}
			if value, known := state.value("event.data.mine"); value != "" || !known {
				t.Errorf("after the request, a placeholder has %q", value)
			}
		})
	}
}

func TestBodiesDoNotMix(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		var mu sync.Mutex
		want := make(map[string]string) // by ID
		backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			id := r.Header.Get("X-ID")
			mu.Lock()
			body := want[id]
			mu.Unlock()
			early := r.Header.Get("X-Early") != ""
			if early { // and the transport goes on
				http.NewResponseController(w).EnableFullDuplex()
				w.WriteHeader(http.StatusOK)
				http.NewResponseController(w).Flush()
			}
			got, err := io.ReadAll(r.Body)
			if !strings.HasPrefix(body, string(got)) || !early && (err != nil || len(got) < len(body)) {
				t.Errorf("%s: the backend got %d bytes that are not the event's, %v", id, len(got), err)
			}
		}))
		defer backend.Close()
		s := start(t, fmt.Sprintf(`
			log {
				output test
			}
			log_append mine {http.buzzbip_webhook.event.data.mine}
			buzzbip_webhook %s
			reverse_proxy %s`, caddytest.Secret, backend.Listener.Addr()))
		const total = 160
		var senders sync.WaitGroup
		for n := range 8 {
			senders.Go(func() {
				for range total / 8 {
					id := caddytest.NewID()
					body := largeEvent(id)
					mu.Lock()
					want[id] = body
					mu.Unlock()
					r := signed(s.url, body)
					r.Header.Set("X-ID", id)
					if n%2 == 0 {
						r.Header.Set("X-Early", "yes")
					}
					if got := send(client, r); got.status != http.StatusOK {
						t.Errorf("%s: answered %d, %v", id, got.status, got.err)
					}
				}
			})
		}
		senders.Wait()
		seen := 0
		caddytest.WaitFor(t, "the access log", func() bool { return strings.Count(s.logs(), `"buzzbip_result"`) == total })
		for line := range strings.Lines(s.logs()) {
			var entry struct {
				ID   string `json:"buzzbip_event_id"`
				Mine string `json:"mine"`
			}
			if json.Unmarshal([]byte(line), &entry) == nil && entry.ID != "" {
				if seen++; entry.Mine != entry.ID {
					t.Errorf("the log of %s has the data of %q", entry.ID, entry.Mine)
				}
			}
		}
		if seen != total {
			t.Errorf("the log has %d requests", seen)
		}
	})
}
