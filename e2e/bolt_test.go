package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// onBolt is a site that remembers in a file below data.
func onBolt(address, data string, b *backend) string {
	return fmt.Sprintf(`
http://%s {
	buzzbip_webhook %s {
		store bolt %s/events.db
	}
	reverse_proxy %s
}`, address, testSecret, data, b.address())
}

func TestKilledCaddyForgetsNoAcknowledgedEvent(t *testing.T) {
	b := newBackend(t, nil)
	data := t.TempDir()
	address := freeAddress(t)
	var mu sync.Mutex
	var acknowledged []string
	const rounds = 8
	for round := range rounds {
		c := startCaddy(t, data, "", onBolt(address, data, b))

		mu.Lock()
		known := acknowledged
		mu.Unlock()
		for _, body := range known {
			before := b.count(body)
			if got := post(t.Context(), "http://"+address, body); got.status != http.StatusOK || got.result != "duplicate" {
				t.Fatalf("round %d: an event that was acknowledged before Caddy was killed is answered %d %q", round, got.status, got.result)
			}
			if b.count(body) != before {
				t.Fatalf("round %d: %s was delivered again", round, body)
			}
		}

		ctx, stop := context.WithCancel(t.Context())
		var senders sync.WaitGroup
		for range 16 {
			senders.Go(func() {
				for ctx.Err() == nil {
					body := newEvent()
					if got := post(ctx, "http://"+address, body); got.status == http.StatusOK {
						mu.Lock()
						acknowledged = append(acknowledged, body)
						mu.Unlock()
					}
				}
			})
		}
		time.Sleep(time.Duration(50+rand.IntN(300)) * time.Millisecond)
		c.kill()
		stop()
		senders.Wait()
	}
	t.Logf("%d events were acknowledged in %d lives", len(acknowledged), rounds)
	if len(acknowledged) < 10*rounds {
		t.Error("too few to prove anything")
	}
}

func TestSecondCaddyOnTheSameFileFailsToLoad(t *testing.T) {
	b := newBackend(t, nil)
	data := t.TempDir()
	first := startCaddy(t, data, "", onBolt(freeAddress(t), data, b))

	second := launchCaddy(t, "", "", onBolt(freeAddress(t), data, b))
	select {
	case <-second.ended:
	case <-time.After(patience):
		t.Fatal("the second Caddy hangs")
	}
	if log := second.log.String(); !strings.Contains(log, filepath.Join(data, "events.db")+" is in use by another process") {
		t.Errorf("the second Caddy does not say why it ends: %s", log)
	}
	// to check the configuration of a running Caddy is no second use
	if out, err := exec.Command(binary, "validate", "--config", first.config).CombinedOutput(); err != nil {
		t.Errorf("caddy validate: %v: %s", err, out)
	}
	first.reload()
}

func TestDamagedFileFailsTheLoad(t *testing.T) {
	b := newBackend(t, nil)
	data := t.TempDir()
	address := freeAddress(t)
	c := startCaddy(t, data, "", onBolt(address, data, b))
	for range 100 {
		post(t.Context(), "http://"+address, newEvent())
	}
	c.stop()
	path := filepath.Join(data, "events.db")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()/2); err != nil {
		t.Fatal(err)
	}
	c = launchCaddy(t, data, "", onBolt(address, data, b))
	select {
	case <-c.ended:
	case <-time.After(patience):
		t.Fatal("Caddy runs with a damaged file")
	}
	if log := c.log.String(); !strings.Contains(log, path+" is damaged") || !strings.Contains(log, "move it away") {
		t.Errorf("Caddy does not say why it ends: %s", log)
	}
}
