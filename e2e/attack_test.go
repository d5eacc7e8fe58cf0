package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// goMetric returns a metric of the Go runtime of a Caddy.
func goMetric(t *testing.T, c *caddytest.Caddy, name string) float64 {
	t.Helper()
	_, rest, found := strings.Cut(c.Metrics(), "\n"+name+" ")
	if !found {
		t.Fatalf("there is no %s in the metrics", name)
	}
	number, _, _ := strings.Cut(rest, "\n")
	value, err := strconv.ParseFloat(number, 64)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func TestSlowBodiesTakeLittleMemoryAndEndAtReadTimeout(t *testing.T) {
	const (
		connections = 500
		claimed     = 1 << 20
	)
	b := caddytest.NewBackend(t, nil)
	address := caddytest.FreeAddress(t)
	c := caddytest.Start(t, t.TempDir(), "metrics", fmt.Sprintf("http://%s {\n\tbuzzbip_webhook %s {\n\t\tread_timeout 5s\n\t}\n\treverse_proxy %s\n}", address, caddytest.Secret, b.Address()))
	memory := func() float64 {
		return goMetric(t, c, "go_memstats_heap_inuse_bytes") + goMetric(t, c, "go_memstats_stack_inuse_bytes")
	}
	goroutines, before := goMetric(t, c, "go_goroutines"), memory()

	var slow sync.WaitGroup
	for range connections {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n%s: %s\r\n\r\n{", address, claimed, webhook.SignatureHeader, strings.Repeat("a", 64))
		slow.Go(func() {
			conn.SetReadDeadline(time.Now().Add(caddytest.Patience))
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Error(err)
				return
			}
			res.Body.Close()
			if res.StatusCode != http.StatusRequestTimeout {
				t.Errorf("answered %d, want 408", res.StatusCode)
			}
		})
	}
	caddytest.WaitFor(t, "all connections to be served", func() bool { return goMetric(t, c, "go_goroutines") >= goroutines+connections })
	if each := (memory() - before) / connections; each > claimed/10 {
		t.Errorf("each takes %.0f bytes", each)
	}
	if got := caddytest.Post(t.Context(), "http://"+address, caddytest.NewEvent()); got.Status != http.StatusOK {
		t.Errorf("a genuine event was answered %+v", got)
	}
	slow.Wait()
	if got := c.Metric(`rejections_total{reason="body_timeout"}`); got != connections {
		t.Errorf("%v were rejected for their slow bodies, want %d", got, connections)
	}
	expectNothingRemains(t, c, goroutines)
}

func TestForgedRequestsDoNotStopDeliveriesAndLeaveNothingBehind(t *testing.T) {
	const (
		senders = 8
		events  = 200
	)
	b := caddytest.NewBackend(t, nil)
	address := caddytest.FreeAddress(t)
	c := caddytest.Start(t, t.TempDir(), "metrics", fmt.Sprintf("http://%s {\n\tbuzzbip_webhook %s\n\treverse_proxy %s\n}", address, caddytest.Secret, b.Address()))
	url, goroutines := "http://"+address, goMetric(t, c, "go_goroutines")

	done := make(chan struct{})
	var flood sync.WaitGroup
	for range senders {
		flood.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if got := caddytest.PostWith(t.Context(), url, "the secret of someone else", caddytest.NewEvent()); got.Status != http.StatusUnauthorized {
					t.Errorf("a forged request was answered %+v", got)
					return
				}
			}
		})
	}
	for range events {
		body := caddytest.NewEvent()
		if got := caddytest.Post(t.Context(), url, body); got.Status != http.StatusOK || b.Count(body) != 1 {
			t.Fatalf("a genuine event was answered %+v, and arrived %d times", got, b.Count(body))
		}
	}
	close(done)
	flood.Wait()
	if got := c.Metric(`remembered_events{store="memory"}`); got != events {
		t.Errorf("%v IDs are remembered, want those of %d deliveries", got, events)
	}
	if got := c.Metric(`rejections_total{reason="signature_mismatch"}`); got == 0 {
		t.Error("no forged request was rejected: there was no flood")
	}
	expectNothingRemains(t, c, goroutines)
}

// expectNothingRemains waits until there are hardly more goroutines than before:
// a few belong to connections to the backend and to the admin endpoint.
func expectNothingRemains(t *testing.T, c *caddytest.Caddy, before float64) {
	t.Helper()
	http.DefaultClient.CloseIdleConnections()
	if got := c.Metric("in_flight"); got != 0 {
		t.Errorf("%v deliveries are in flight", got)
	}
	caddytest.WaitFor(t, "the goroutines of the attack to end", func() bool { return goMetric(t, c, "go_goroutines") < before+50 })
}
