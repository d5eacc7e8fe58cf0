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

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// onSQLite is a site that remembers in a file below data.
func onSQLite(address, data string, b *caddytest.Backend) string {
	return fmt.Sprintf(`
http://%s {
	buzzbip_webhook %s {
		store sqlite %s/webhook.db
	}
	reverse_proxy %s
}`, address, caddytest.Secret, data, b.Address())
}

func TestKilledCaddyForgetsNoAcknowledgedEvent(t *testing.T) {
	b := caddytest.NewBackend(t, nil)
	data := t.TempDir()
	address := caddytest.FreeAddress(t)
	var mu sync.Mutex
	var acknowledged []string
	const rounds = 8
	for round := range rounds {
		c := caddytest.Start(t, data, "", onSQLite(address, data, b))

		mu.Lock()
		known := acknowledged
		mu.Unlock()
		for _, body := range known {
			before := b.Count(body)
			if got := caddytest.Post(t.Context(), "http://"+address, body); got.Status != http.StatusOK || got.Result != "duplicate" {
				t.Fatalf("round %d: an event that was acknowledged before Caddy was killed is answered %d %q", round, got.Status, got.Result)
			}
			if b.Count(body) != before {
				t.Fatalf("round %d: %s was delivered again", round, body)
			}
		}

		underLoad(t, 16, func(ctx context.Context, _ int) {
			body := caddytest.NewEvent()
			if got := caddytest.Post(ctx, "http://"+address, body); got.Status == http.StatusOK {
				mu.Lock()
				acknowledged = append(acknowledged, body)
				mu.Unlock()
			}
		}, func() {
			time.Sleep(time.Duration(50+rand.IntN(300)) * time.Millisecond)
			c.Kill()
		})
	}
	t.Logf("%d events were acknowledged in %d lives", len(acknowledged), rounds)
	if len(acknowledged) < 10*rounds {
		t.Error("too few to prove anything")
	}
}

func TestSecondCaddyOnTheSameFileFailsToLoad(t *testing.T) {
	b := caddytest.NewBackend(t, nil)
	data := t.TempDir()
	first := caddytest.Start(t, data, "", onSQLite(caddytest.FreeAddress(t), data, b))

	second := caddytest.Launch(t, "", "", onSQLite(caddytest.FreeAddress(t), data, b))
	select {
	case <-second.Ended:
	case <-time.After(caddytest.Patience):
		t.Fatal("the second Caddy does not end")
	}
	if log := second.Log.String(); !strings.Contains(log, filepath.Join(data, "webhook.db")+" is in use by another process") {
		t.Errorf("the second Caddy does not say why it ends: %s", log)
	}
	// to check the configuration of a running Caddy is no second use
	if out, err := exec.Command(caddytest.Binary, "validate", "--config", first.Config).CombinedOutput(); err != nil {
		t.Errorf("caddy validate: %v: %s", err, out)
	}
	first.Reload()
}

func TestDamagedFileFailsTheLoad(t *testing.T) {
	b := caddytest.NewBackend(t, nil)
	data := t.TempDir()
	address := caddytest.FreeAddress(t)
	c := caddytest.Start(t, data, "", onSQLite(address, data, b))
	for range 100 {
		caddytest.Post(t.Context(), "http://"+address, caddytest.NewEvent())
	}
	c.Stop()
	path := filepath.Join(data, "webhook.db")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()/2); err != nil {
		t.Fatal(err)
	}
	c = caddytest.Launch(t, data, "", onSQLite(address, data, b))
	select {
	case <-c.Ended:
	case <-time.After(caddytest.Patience):
		t.Fatal("Caddy runs with a damaged database")
	}
	if log := c.Log.String(); !strings.Contains(log, path+" is damaged") || !strings.Contains(log, "move all of") {
		t.Errorf("Caddy does not say why it ends: %s", log)
	}
}

func TestRemovedFileIsSeenAndEventsPass(t *testing.T) {
	b := caddytest.NewBackend(t, nil)
	data := t.TempDir()
	address := caddytest.FreeAddress(t)
	site := onSQLite(address, data, b)
	c := caddytest.Start(t, data, "", site)
	path := filepath.Join(data, "webhook.db")
	if log := c.Log.String(); !strings.Contains(log, "created a new database") {
		t.Errorf("the log does not say that the file is new: %s", log)
	}
	bodies := []string{caddytest.NewEvent(), caddytest.NewEvent()}
	deliver := func(body, result string) {
		t.Helper()
		if got := caddytest.Post(t.Context(), "http://"+address, body); got.Status != http.StatusOK || got.Result != result {
			t.Fatalf("answered %d %q, want 200 %q", got.Status, got.Result, result)
		}
	}
	deliver(bodies[0], "")
	if err := os.Rename(path, path+".away"); err != nil {
		t.Skip("this system does not let go of files in use:", err)
	}
	caddytest.WaitFor(t, "the loss to be noticed", func() bool { return c.Metric(`store_up{store="sqlite"}`) == 0 })
	if log := c.Log.String(); !strings.Contains(log, path+" was removed or replaced") {
		t.Errorf("the log does not say what has happened: %s", log)
	}
	deliver(bodies[1], "")
	for _, body := range bodies {
		deliver(body, "duplicate")
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	caddytest.WaitFor(t, "the file to be back", func() bool { return c.Metric(`store_up{store="sqlite"}`) == 1 })
	// what was in memory is written within a second
	time.Sleep(3 * time.Second)
	c.Kill()
	caddytest.Start(t, data, "", site)
	for _, body := range bodies {
		deliver(body, "duplicate")
	}
}
