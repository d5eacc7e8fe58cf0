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

// Caddy is killed and reloaded at random moments while the backend fails now and then,
// and events of many conversations arrive: each when its sender has an answer to the
// one before. The backend accepts the events of each conversation in this order. It
// accepts one twice in a row only if Caddy was killed before it had recorded that.
func TestKilledCaddyKeepsTheOrderOfConversations(t *testing.T) {
	const conversations, lives = 50, 4
	var healthy atomic.Bool
	var mu sync.Mutex
	accepted, repeated := make(map[string]int), 0
	b := caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		conversation, number := r.Header.Get("X-Conversation"), 0
		fmt.Sscan(r.Header.Get("X-Number"), &number)
		switch n := rand.IntN(100); {
		case healthy.Load() || n >= 20:
		case n < 1:
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		default:
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		switch last := accepted[conversation]; number {
		case last + 1:
			accepted[conversation] = number
		case last:
			repeated++
		default:
			t.Errorf("conversation %s: event %d is accepted after %d", conversation, number, last)
		}
	})
	data, address := t.TempDir(), caddytest.FreeAddress(t)
	site := fmt.Sprintf(`
http://%s {
	buzzbip_webhook %s {
		store sqlite
		order_by conversation.id
		inbox sqlite {
			retry 20ms 100ms
			concurrency 32
		}
	}
	reverse_proxy %s {
		header_up X-Conversation {http.buzzbip_webhook.event.data.conversation.id}
		header_up X-Number {http.buzzbip_webhook.event.data.number}
	}
}`, address, caddytest.Secret, b.Address())
	sent := make([]int, conversations)
	send := func(ctx context.Context, conversation int) {
		number := sent[conversation] + 1
		body := caddytest.Event{
			ID:      fmt.Sprintf("evt_%d_%d", conversation, number),
			Created: caddytest.DocumentedTime, // the same body again
			Data:    fmt.Sprintf(`{"conversation":{"id":"conv_%d"},"number":%d}`, conversation, number),
		}.Body()
		if got := caddytest.Post(ctx, "http://"+address, body); got.Status == http.StatusOK {
			sent[conversation] = number
		}
	}
	for life := range lives {
		healthy.Store(life%2 == 1)
		c := caddytest.Start(t, data, "", site)
		underLoad(t, conversations, send, func() {
			for range 2 {
				time.Sleep(time.Duration(100+rand.IntN(300)) * time.Millisecond)
				c.Reload()
			}
			time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
			c.Kill()
		})
	}
	healthy.Store(true)
	c := caddytest.Start(t, data, "", site)
	caddytest.WaitFor(t, "the inbox to be empty", func() bool { return c.Metric(`inbox_events{state="waiting"}`) == 0 })
	mu.Lock()
	defer mu.Unlock()
	total := 0
	for conversation, number := range sent {
		total += number
		// the last one may have been accepted without an answer
		if got := accepted[fmt.Sprint("conv_", conversation)]; got != number && got != number+1 {
			t.Errorf("conversation %d: %d events were acknowledged, %d accepted", conversation, number, got)
		}
	}
	if total < 10*conversations {
		t.Errorf("only %d events were acknowledged", total)
	}
	t.Logf("%d events of %d conversations, %d accepted twice", total, conversations, repeated)
}
