package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
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
				ctx, stop := context.WithCancel(t.Context())
				var senders sync.WaitGroup
				for range 4 {
					senders.Go(func() {
						for ctx.Err() == nil {
							id := caddytest.NewID()
							if got := caddytest.Post(ctx, "http://"+address, caddytest.Event{ID: id}.Body()); got.Status == http.StatusOK {
								mu.Lock()
								acknowledged = append(acknowledged, id)
								mu.Unlock()
							}
						}
					})
				}
				time.Sleep(time.Duration(100+rand.IntN(400)) * time.Millisecond)
				c.Kill()
				stop()
				senders.Wait()
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
