package e2e

import (
	"context"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// Everything takes a tenth of the time: the outage of a minute, the patience of the
// sender, answer_within and the times of the example.
func TestExampleShortOutagesDeliversAllEventsOnce(t *testing.T) {
	const outage, events = 6 * time.Second, 200
	text, err := os.ReadFile("../examples/short-outages/Caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	site, backend := caddytest.FreeAddress(t), caddytest.FreeAddress(t)
	replaced := strings.NewReplacer("hooks.example.com", "http://"+site, "127.0.0.1:9000", backend,
		"{env.BUZZBIP_SECRET}", caddytest.Secret, "delivery_timeout 3m", "answer_within 800ms\ndelivery_timeout 18s", "lb_try_duration 2m", "lb_try_duration 12s").Replace(string(text))
	c := caddytest.Start(t, "", "", replaced)

	b := caddytest.NewBackend(t, nil)
	serve := func() *http.Server {
		l, err := net.Listen("tcp", backend)
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: b.Config.Handler}
		go func() { _ = server.Serve(l) }()
		t.Cleanup(func() { server.Close() })
		return server
	}
	up := serve()
	began := time.Now()
	back := time.AfterFunc(outage+time.Second, func() { serve() })
	defer back.Stop()

	var senders sync.WaitGroup
	bodies := make([]string, events)
	for i := range bodies {
		if i == events/10 {
			if err := up.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		bodies[i] = caddytest.NewEvent()
		senders.Go(func() {
			if answer := sendWithRetries(t.Context(), "http://"+site+"/webhooks/buzzbip", bodies[i]); answer.Status != http.StatusOK {
				t.Errorf("after all retries the event is answered %d", answer.Status)
			}
		})
		time.Sleep(outage / events)
	}
	senders.Wait()
	if took := time.Since(began); took < outage {
		t.Errorf("all events were delivered after %v", took)
	}
	for _, body := range bodies {
		if n := b.Count(body); n != 1 {
			t.Errorf("an event arrived %d times", n)
		}
	}
	// an event that the backend has just been sent when it stops fails, and is retried
	for line := range strings.Lines(c.Log.String()) {
		if strings.Contains(line, "http.log.error") && strings.Contains(line, `"status":503`) {
			t.Errorf("retries during the outage are in Caddy's error log: %s", line)
		}
	}
	if inFlight := c.Metric(`rejections_total{reason="in_flight"}`); inFlight == 0 {
		t.Error("no retry arrived during a delivery")
	}
}

// sendWithRetries sends an event as BuzzBip does, 10 times as fast: it disconnects
// after a second, and retries up to 5 times with exponential backoff.
func sendWithRetries(ctx context.Context, url, body string) (answer caddytest.Answer) {
	for retry := range 6 {
		if retry > 0 {
			time.Sleep(500 * time.Millisecond << retry)
		}
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		answer = caddytest.Post(attempt, url, body)
		cancel()
		if answer.Status/100 == 2 {
			break
		}
	}
	return answer
}
