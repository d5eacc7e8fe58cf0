package buzzbip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// queued returns how many events wait for memory.
func (b *budget) queued() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, q := range b.queues {
		n += q.list.Len()
	}
	return n
}

// awaitQueued waits until so many events wait for memory.
func awaitQueued(t *testing.T, n int) {
	t.Helper()
	caddytest.WaitFor(t, fmt.Sprintf("%d events to wait for memory", n), func() bool { return underWay.queued() == n })
}

// costOf returns what an event takes.
func costOf(body string) int64 { return (&requestState{body: &content{bytes: []byte(body)}}).cost() }

// asker asks a budget for memory in the background.
type asker struct {
	t       *testing.T
	budget  *budget
	mu      sync.Mutex
	granted []string // in alphabetical order
}

func (a *asker) acquire(name string, cost, limit int64) {
	go func() {
		if _, err := a.budget.acquire(a.t.Context(), cost, limit, time.Hour); err != nil {
			a.t.Errorf("%s: %v", name, err)
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.granted = append(a.granted, name)
		slices.Sort(a.granted)
	}()
	synctest.Wait()
}

func (a *asker) release(cost int64) {
	a.budget.release(cost)
	synctest.Wait()
}

func (a *asker) expect(names ...string) {
	a.t.Helper()
	if !slices.Equal(a.granted, names) {
		a.t.Errorf("these got memory: %q, want %q", a.granted, names)
	}
}

func TestLargeEventIsNotOvertakenBySmallOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &asker{t: t, budget: new(budget)}
		a.acquire("first", 60, 100)
		a.acquire("large", 20, 100)
		a.acquire("small", 5, 100)
		a.expect("first")
		a.release(60)
		a.expect("first", "large", "small")
		if a.budget.delivering != 25 || a.budget.waiting != 0 {
			t.Errorf("%d and %d are in use", a.budget.delivering, a.budget.waiting)
		}
	})
}

func TestDeliveriesLeaveAQuarterOfTheMemoryToEventsThatWait(t *testing.T) {
	b := new(budget)
	for range 3 {
		if waited, err := b.acquire(t.Context(), 25, 100, 0); waited || err != nil {
			t.Fatal(waited, err)
		}
	}
	if !b.hold(20, 100) || b.hold(6, 100) || !b.hold(5, 100) {
		t.Error("events that wait take more or less than a quarter")
	}
	if waited, err := b.acquire(t.Context(), 1, 100, time.Hour); waited || !errors.Is(err, errOverloaded) {
		t.Errorf("an event for which there is no memory at all: %v, waited: %v", err, waited)
	}
	b.unhold(20)
	b.unhold(5)
	if waited, err := b.acquire(t.Context(), 1, 100, 0); !waited || !errors.Is(err, errOverloaded) {
		t.Errorf("an event that may wait: %v, waited: %v", err, waited)
	}
	if total := b.total(); total != 75 {
		t.Errorf("%d are in use", total)
	}
}

func TestEventThatLeavesTheQueueLetsTheNextPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &asker{t: t, budget: new(budget)}
		a.acquire("first", 60, 100)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			if _, err := a.budget.acquire(ctx, 20, 100, time.Hour); !errors.Is(err, errOverloaded) {
				t.Errorf("got %v", err)
			}
		}()
		synctest.Wait()
		a.acquire("small", 5, 100)
		a.expect("first")
		cancel()
		synctest.Wait()
		a.expect("first", "small")
	})
}

func TestHandlerWithAHigherLimitUsesMemoryThatOthersMayNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &asker{t: t, budget: new(budget)}
		a.acquire("first", 75, 100)
		a.acquire("low", 5, 100)
		a.acquire("high", 600, 1000)
		a.expect("first", "high")
		a.acquire("late", 100, 1000)
		a.expect("first", "high")
		a.release(75)
		a.expect("first", "high", "late")
		a.release(600)
		a.expect("first", "high", "late")
		a.release(100)
		a.expect("first", "high", "late", "low")
	})
}

func TestWaitingForMemoryIsBoundedFromTheEndOfTheBody(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}}, MaxInFlight: ptr[int64](1)}
	provision(t, h)
	synctest.Test(t, func(t *testing.T) {
		const full = 1 << 20
		underWay.add(full)
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		body := caddytest.NewEvent()
		r.Header.Set(webhook.SignatureHeader, caddytest.Sign(body))
		r.Body, r.ContentLength = io.NopCloser(io.MultiReader(slowly(3*time.Second), strings.NewReader(body))), -1
		start := time.Now()
		result, err := serve(h, r, nil) // answered, since no error routes would see an error
		if took := time.Since(start); took != 11*time.Second || result != string(webhook.ResultRejected) || err != nil {
			t.Errorf("%s %v after %v", result, err, took)
		}

		time.AfterFunc(5*time.Second, func() { underWay.release(full) })
		start = time.Now()
		if _, err := serve(h, signed("/", body), func(w http.ResponseWriter, r *http.Request) error {
			if deadline, _ := r.Context().Deadline(); deadline.Sub(start) != 65*time.Second {
				t.Errorf("the delivery ends %v after the arrival, want 5s and delivery_timeout", deadline.Sub(start))
			}
			w.WriteHeader(http.StatusOK)
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
	if left := underWay.total(); left != 0 {
		t.Errorf("%d bytes are under way", left)
	}
}

// slowly is a reader that ends after a time.
type slowly time.Duration

func (s slowly) Read([]byte) (int, error) {
	time.Sleep(time.Duration(s))
	return 0, io.EOF
}

// hanging is a backend that answers a request for each value of release.
func hanging(t *testing.T) (b *backend, release chan int) {
	release = make(chan int)
	return newBackend(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case status := <-release:
			w.WriteHeader(status)
		case <-t.Context().Done():
		}
	}), release
}

func TestEventsWaitForMemoryInOrderOfArrival(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b, release := hanging(t)
		s := start(t, proxied(b, "max_in_flight 1MiB"))
		var answers []<-chan response
		const atOnce = 7 // 8 take more than three quarters
		for range atOnce {
			answers = append(answers, sendAsync(client, signed(s.url, caddytest.NewEvent())))
			caddytest.Receive(t, b.arrived, "a delivery")
		}
		waiting := []string{caddytest.NewEvent(), caddytest.NewEvent()}
		for i, body := range waiting {
			answers = append(answers, sendAsync(client, signed(s.url, body)))
			awaitQueued(t, i+1)
		}
		b.expectCount(t, atOnce)
		for _, body := range waiting {
			release <- http.StatusOK
			if got := caddytest.Receive(t, b.arrived, "the next delivery"); got.body != body {
				t.Errorf("%s was delivered first", got.body)
			}
		}
		for range atOnce {
			release <- http.StatusOK
		}
		for _, answer := range answers {
			expect(t, caddytest.Receive(t, answer, "an answer"), http.StatusOK, "")
		}
	})
}

// The limit is less than any event takes.
func TestEventsThatTakeMoreThanTheLimitAreDeliveredOneAtATime(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b, release := hanging(t)
		s := start(t, proxied(b, "max_in_flight 1KiB"))
		first := sendAsync(client, signed(s.url, caddytest.NewEvent()))
		caddytest.Receive(t, b.arrived, "the first delivery")
		second := sendAsync(client, signed(s.url, caddytest.NewEvent()))
		awaitQueued(t, 1)
		b.expectCount(t, 1)
		release <- http.StatusOK
		expect(t, caddytest.Receive(t, first, "the first answer"), http.StatusOK, "")
		caddytest.Receive(t, b.arrived, "the second delivery")
		release <- http.StatusOK
		expect(t, caddytest.Receive(t, second, "the second answer"), http.StatusOK, "")
	})
}

func TestEventThatFindsNoMemoryIsAskedToRetry(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b, release := hanging(t)
		s := start(t, proxied(b, "max_in_flight 1KiB\nanswer_within 50ms")+explained)
		first := sendAsync(client, signed(s.url, caddytest.NewEvent()))
		caddytest.Receive(t, b.arrived, "the first delivery")

		body := caddytest.NewEvent()
		got := send(client, signed(s.url, body))
		expectRejection(t, got, webhook.ReasonOverloaded)
		if got.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
		if log := s.logs(); !strings.Contains(log, `"reason":"overloaded"`) || !strings.Contains(log, "raise max_in_flight") {
			t.Errorf("no word of it in the log: %s", log)
		}
		release <- http.StatusOK
		expect(t, caddytest.Receive(t, first, "the first answer"), http.StatusOK, "")

		retry := sendAsync(client, signed(s.url, body)) // its ID is free
		caddytest.Receive(t, b.arrived, "the retry")
		release <- http.StatusOK
		expect(t, caddytest.Receive(t, retry, "the answer to the retry"), http.StatusOK, "")
	})
}

func TestEventIsRejectedAtOnceIfTooMuchWaits(t *testing.T) {
	b, release := hanging(t)
	s := start(t, proxied(b, "max_in_flight 1KiB\nanswer_within 1h")+explained)
	client := newClient(t, "HTTP/2.0")
	first := sendAsync(client, signed(s.url, caddytest.NewEvent()))
	caddytest.Receive(t, b.arrived, "the first delivery")
	second := sendAsync(client, signed(s.url, caddytest.NewEvent()))
	awaitQueued(t, 1)
	expectRejection(t, send(client, signed(s.url, caddytest.NewEvent())), webhook.ReasonOverloaded)
	for _, answer := range []<-chan response{first, second} {
		release <- http.StatusOK
		expect(t, caddytest.Receive(t, answer, "an answer"), http.StatusOK, "")
	}
	b.expectCount(t, 2)
}

func TestSenderThatDisconnectsWhileItWaitsForMemoryLeavesNothingBehind(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b, release := hanging(t)
		s := start(t, proxied(b, "max_in_flight 1KiB\nanswer_within 1h"))
		firstBody, body := caddytest.NewEvent(), caddytest.NewEvent()
		first := sendAsync(client, signed(s.url, firstBody))
		caddytest.Receive(t, b.arrived, "the first delivery")

		ctx, cancel := context.WithCancel(t.Context())
		gone := sendAsync(client, signed(s.url, body).WithContext(ctx))
		awaitQueued(t, 1)
		cancel()
		if r := caddytest.Receive(t, gone, "the sender"); r.err == nil && r.status != http.StatusServiceUnavailable { // in a race with the disconnect
			t.Fatalf("the sender was answered %d", r.status)
		}
		awaitQueued(t, 0)
		caddytest.WaitFor(t, "the memory of the first event alone", func() bool { return underWay.total() == costOf(firstBody) })
		b.expectCount(t, 1)
		release <- http.StatusOK
		expect(t, caddytest.Receive(t, first, "the first answer"), http.StatusOK, "")

		retry := sendAsync(client, signed(s.url, body)) // its ID is free
		caddytest.Receive(t, b.arrived, "the retry")
		release <- http.StatusOK
		expect(t, caddytest.Receive(t, retry, "the answer to the retry"), http.StatusOK, "")
	})
}

// While an event waits for memory, its duplicates wait for it.
func TestOneDuplicateTakesOverFromAnEventThatFoundNoMemory(t *testing.T) {
	b, release := hanging(t)
	s := start(t, proxied(b, "max_in_flight 1MiB\nanswer_within 1h"))
	client := newClient(t, "HTTP/2.0")
	var first []<-chan response
	for range 7 {
		first = append(first, sendAsync(client, signed(s.url, caddytest.NewEvent())))
		caddytest.Receive(t, b.arrived, "a delivery")
	}
	before := underWay.total()

	body := caddytest.NewEvent()
	ctx, cancel := context.WithCancel(t.Context())
	gone := sendAsync(client, signed(s.url, body).WithContext(ctx))
	awaitQueued(t, 1)
	duplicate := sendAsync(client, signed(s.url, body))
	caddytest.WaitFor(t, "the duplicate to wait", func() bool { return underWay.total() == before+2*costOf(body) })
	awaitQueued(t, 1)
	cancel()
	caddytest.Receive(t, gone, "the sender")
	caddytest.WaitFor(t, "the duplicate to take over", func() bool { return underWay.total() == before+costOf(body) && underWay.queued() == 1 })
	for range 8 {
		release <- http.StatusOK
	}
	for _, answer := range append(first, duplicate) {
		expect(t, caddytest.Receive(t, answer, "an answer"), http.StatusOK, "")
	}
	b.expectCount(t, 8)
}

func TestDuplicateForWhichThereIsNoMemoryIsNotKeptWaiting(t *testing.T) {
	b, release := hanging(t)
	s := start(t, proxied(b, "max_in_flight 1KiB\nanswer_within 1h"))
	client := newClient(t, "HTTP/2.0")
	body := caddytest.NewEvent()
	first := sendAsync(client, signed(s.url, body))
	caddytest.Receive(t, b.arrived, "the delivery")
	waits := sendAsync(client, signed(s.url, body))
	caddytest.WaitFor(t, "a duplicate to wait", func() bool { return underWay.total() == 2*costOf(body) })
	expect(t, send(client, signed(s.url, body)), http.StatusServiceUnavailable, webhook.ResultInFlight)
	release <- http.StatusOK
	expect(t, caddytest.Receive(t, first, "the first answer"), http.StatusOK, "")
	expect(t, caddytest.Receive(t, waits, "the duplicate"), http.StatusOK, webhook.ResultDuplicate)
}

func TestDuplicateNeedsNoMemory(t *testing.T) {
	b, release := hanging(t)
	s := start(t, proxied(b, "max_in_flight 1KiB\nanswer_within 1h"))
	client := newClient(t, "HTTP/2.0")
	delivered := caddytest.NewEvent()
	first := sendAsync(client, signed(s.url, delivered))
	release <- http.StatusOK
	expect(t, caddytest.Receive(t, first, "the first answer"), http.StatusOK, "")

	hangs, waits := sendAsync(client, signed(s.url, caddytest.NewEvent())), sendAsync(client, signed(s.url, caddytest.NewEvent()))
	awaitQueued(t, 1)
	expect(t, send(client, signed(s.url, delivered)), http.StatusOK, webhook.ResultDuplicate)
	for range 2 {
		release <- http.StatusOK
	}
	for _, answer := range []<-chan response{hangs, waits} {
		expect(t, caddytest.Receive(t, answer, "an answer"), http.StatusOK, "")
	}
}

func TestReloadKeepsTheMemoryOfDeliveries(t *testing.T) {
	for _, protocol := range protocols[:2] {
		t.Run(protocol, func(t *testing.T) {
			b, release := hanging(t)
			s := start(t, proxied(b, "max_in_flight 1KiB"))
			client := newClient(t, protocol)
			first := sendAsync(client, signed(s.url, caddytest.NewEvent()))
			caddytest.Receive(t, b.arrived, "the first delivery")
			s.reload(proxied(b, "max_in_flight 2KiB"))
			second := sendAsync(client, signed(s.url, caddytest.NewEvent()))
			awaitQueued(t, 1)
			b.expectCount(t, 1)
			release <- http.StatusOK
			expect(t, caddytest.Receive(t, first, "the first answer"), http.StatusOK, "")
			release <- http.StatusOK
			expect(t, caddytest.Receive(t, second, "the second answer"), http.StatusOK, "")
		})
	}
}

func TestDeliveryThatPanicsFreesItsMemory(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}}}
	provision(t, h)
	func() {
		defer func() { _ = recover() }()
		_, _ = serve(h, signed("/", caddytest.NewEvent()), func(http.ResponseWriter, *http.Request) error {
			if underWay.total() == 0 {
				t.Error("the delivery takes no memory")
			}
			panic(http.ErrAbortHandler)
		})
		t.Error("the panic was swallowed")
	}()
	if left := underWay.total(); left != 0 {
		t.Errorf("%d bytes are under way", left)
	}
}

// A delivery that waited for memory at an inner handler would wait for itself.
func TestInnerHandlerOfAChainDoesNotWaitForMemory(t *testing.T) {
	const small = "max_in_flight 1KiB\nanswer_within 1h\n"
	for name, outer := range map[string]string{"dedupe": "", "dedupe off": "dedupe off", "another scope": "scope other"} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t, nil)
			s := start(t, "respond gone 404")
			inner := caddytest.FreeAddress(t)
			directive := "buzzbip_webhook " + caddytest.Secret + " {\n" + small
			s.named = fmt.Sprintf("http://%s {\n%sscope inner\n}\nreverse_proxy %s\n}", inner, directive, b.address())
			s.reload(fmt.Sprintf("route {\n%s%s\n}\nrequest_header -X-Buzzbip-Delivery\n%[1]sscope within\n}\nreverse_proxy %[3]s {\nheader_up Host {upstream_hostport}\n}\n}", directive, outer, inner))
			expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, "")
			b.expectCount(t, 1)
		})
	}
}

func TestEventInErrorRoutesTakesMemory(t *testing.T) {
	fallback, release := hanging(t)
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) })
	s := start(t, proxied(b, "")+"\nhandle_errors {\nreverse_proxy "+fallback.address()+"\n}")
	body := caddytest.NewEvent()
	answer := sendAsync(newClient(t, "HTTP/2.0"), signed(s.url, body))
	caddytest.Receive(t, fallback.arrived, "the event in the error route")
	if total := underWay.total(); total != costOf(body) {
		t.Errorf("%d bytes are under way, want %d", total, costOf(body))
	}
	release <- http.StatusOK
	expect(t, caddytest.Receive(t, answer, "the answer"), http.StatusBadGateway, "")
}

// BenchmarkMemory is what counting an event costs when there is room.
func BenchmarkMemory(b *testing.B) {
	h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}}}
	provision(b, h)
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	a := h.attempt(&requestState{body: &content{bytes: bytes.Repeat([]byte("x"), 1<<10)}}, eventInStore{})
	b.ReportAllocs()
	for b.Loop() {
		if err := a.acquireMemory(r); err != nil {
			b.Fatal(err)
		}
		underWay.release(a.memory)
	}
}
