package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// Caddy is killed at random moments while the backend fails now and then. Each
// event that was answered 2xx reaches the backend. It is accepted twice only if
// Caddy was killed between the acceptance and its record.
func TestKilledCaddyLosesNoEventOfTheInbox(t *testing.T) {
	var mu sync.Mutex
	accepted := make(map[string]int)
	var calls atomic.Int64
	var healthy atomic.Bool
	b := caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if !healthy.Load() && calls.Add(1)%3 != 0 {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		accepted[r.Header.Get("X-Event")]++
	})
	for _, store := range []string{"memory", "sqlite"} {
		t.Run(store, func(t *testing.T) {
			healthy.Store(false)
			data, address := t.TempDir(), caddytest.FreeAddress(t)
			site := fmt.Sprintf(`
http://%s {
	buzzbip_webhook %s {
		store %s
		inbox sqlite {
			retry 50ms 200ms
		}
	}
	reverse_proxy %s {
		header_up X-Event {http.buzzbip_webhook.event.id}
	}
}`, address, caddytest.Secret, store, b.Address())
			var acknowledged []string
			const lives = 4
			for range lives {
				c := caddytest.Start(t, data, "", site)
				underLoad(t, 4, func(ctx context.Context, _ int) {
					id := caddytest.NewID()
					if got := caddytest.Post(ctx, "http://"+address, caddytest.Event{ID: id}.Body()); got.Status == http.StatusOK {
						mu.Lock()
						acknowledged = append(acknowledged, id)
						mu.Unlock()
					}
				}, func() {
					time.Sleep(time.Duration(100+rand.IntN(400)) * time.Millisecond)
					c.Kill()
				})
			}
			healthy.Store(true)
			c := caddytest.Start(t, data, "", site)
			caddytest.WaitFor(t, "the inbox to be empty", func() bool { return c.Metric(`inbox_events{state="waiting"}`) == 0 })
			mu.Lock()
			defer mu.Unlock()
			if len(acknowledged) < 10*lives {
				t.Errorf("only %d events were acknowledged", len(acknowledged))
			}
			twice := 0
			for _, id := range acknowledged {
				switch n := accepted[id]; {
				case n == 0:
					t.Errorf("%s was acknowledged and lost", id)
				case n > 1:
					twice++
				}
			}
			// up to 8 redeliveries and 4 first deliveries were under way at each kill
			if twice > 12*lives {
				t.Errorf("%d events were accepted twice, with %d kills", twice, lives)
			}
			t.Logf("%d events were acknowledged, %d accepted twice", len(acknowledged), twice)
		})
	}
}

// redeliveries is a backend that fails events until redelivery begins, then accepts one,
// and lets the others wait.
type redeliveries struct {
	*caddytest.Backend
	began   atomic.Bool
	calls   atomic.Int64
	arrived chan string // the number of each attempt that waits
	release chan struct{}

	mu       sync.Mutex
	accepted map[string]int
}

func newRedeliveries(t *testing.T) *redeliveries {
	b := &redeliveries{arrived: make(chan string, 100), release: make(chan struct{}), accepted: map[string]int{}}
	b.Backend = caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if !b.began.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		if b.calls.Add(1) > 1 {
			b.arrived <- r.Header.Get("Redelivery-Attempt")
			select {
			case <-b.release:
			case <-r.Context().Done():
				return
			}
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.accepted[r.Header.Get("X-Event")]++
	})
	return b
}

// site has redeliveries that are far apart.
func (b *redeliveries) site(address string) string {
	return fmt.Sprintf(`
http://%s {
	buzzbip_webhook %s {
		store sqlite
		inbox sqlite {
			retry 1h
		}
	}
	reverse_proxy %s {
		header_up X-Event {http.buzzbip_webhook.event.id}
	}
}`, address, caddytest.Secret, b.Address())
}

// Redeliveries that are under way when Caddy ends are completed. If it is killed, they
// do not count, and are made again at once, although the next attempt after a failure
// would be an hour later.
func TestRedeliveriesUnderWayWhenCaddyEnds(t *testing.T) {
	for _, test := range []struct {
		name     string
		end      func(c *caddytest.Caddy)
		answered bool // by the backend, while Caddy ends
	}{
		{"stopped, within the grace period", interrupt, true},
		{"kill -9", (*caddytest.Caddy).Kill, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newRedeliveries(t)
			data, address := t.TempDir(), caddytest.FreeAddress(t)
			c := caddytest.Start(t, data, "", b.site(address))
			const events = 3
			for range events {
				if got := caddytest.Post(t.Context(), "http://"+address, caddytest.NewEvent()); got.Result != "stored" {
					t.Fatalf("answered %+v", got)
				}
			}
			b.began.Store(true)
			retryAll(t, c)
			for range events - 1 {
				if n := caddytest.Receive(t, b.arrived, "a redelivery"); n != "1" {
					t.Errorf("it is attempt %s, want 1", n)
				}
			}
			test.end(c)
			if test.answered {
				caddytest.WaitFor(t, "Caddy to shut down", func() bool { return strings.Contains(c.Log.String(), "servers shutting down") })
				close(b.release)
			}
			caddytest.Receive(t, c.Ended, "Caddy to end")

			c = caddytest.Start(t, data, "", b.site(address))
			if !test.answered {
				if n := caddytest.Receive(t, b.arrived, "a redelivery after the restart"); n != "1" {
					t.Errorf("it is attempt %s, want 1: the one that was cut off does not count", n)
				}
				close(b.release)
			}
			caddytest.WaitFor(t, "the inbox to be empty", func() bool { return c.Metric(`inbox_events{state="waiting"}`) == 0 })
			b.mu.Lock()
			defer b.mu.Unlock()
			for id, n := range b.accepted {
				if n != 1 {
					t.Errorf("%s was accepted %d times", id, n)
				}
			}
			if len(b.accepted) != events {
				t.Errorf("%d events were accepted, want %d", len(b.accepted), events)
			}
		})
	}
}

func interrupt(c *caddytest.Caddy) { _ = c.Cmd.Process.Signal(os.Interrupt) }

// retryAll has all events delivered again.
func retryAll(t *testing.T, c *caddytest.Caddy) {
	t.Helper()
	res, err := http.Post("http://"+c.Admin+"/buzzbip_webhook/inbox/retry", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if text, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", res.Status, text)
	}
}

// Caddy starts the apps of a configuration in any order, and stops those that have
// started when another fails. Meanwhile a backlog is redelivered.
func TestReloadThatFailsLeavesTheInboxAsItWas(t *testing.T) {
	b, other := newRedeliveries(t), caddytest.NewBackend(t, nil)
	close(b.release)
	address := caddytest.FreeAddress(t)
	c := caddytest.Start(t, "", "", strings.Replace(b.site(address), "retry 1h", "retry 10ms 20ms", 1))
	const events = 20
	for range events {
		if got := caddytest.Post(t.Context(), "http://"+address, caddytest.NewEvent()); got.Result != "stored" {
			t.Fatalf("answered %+v", got)
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	config, err := os.ReadFile(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	moved := caddytest.Replace(t, string(config), b.Address(), other.Address(), "retry 10ms 20ms", "retry 10ms 20ms\n\t\t\tdead_on 500") +
		"\nhttp://" + taken.Addr().String() + " {\n}\n"
	if err := os.WriteFile(c.Config, []byte(moved), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 12 {
		if err := c.TryReload(); err == nil || !strings.Contains(err.Error(), "address already in use") {
			t.Fatalf("got %v", err)
		}
	}
	if n := c.Metric(`inbox_events{state="waiting"}`); n != events {
		t.Errorf("%v events wait, want %d: a configuration that failed to load was used", n, events)
	}
	b.began.Store(true)
	caddytest.WaitFor(t, "the inbox to be empty", func() bool { return c.Metric(`inbox_events{state="waiting"}`) == 0 })
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.accepted) != events {
		t.Errorf("the backend accepted %d events, want %d", len(b.accepted), events)
	}
}
