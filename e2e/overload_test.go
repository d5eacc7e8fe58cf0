package e2e

import (
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// A backend hangs while large events arrive. They would take 500 MiB.
func TestMemoryIsBoundedWhileTheBackendHangs(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("it reads /proc")
	}
	var hangs atomic.Bool
	hangs.Store(true)
	back := make(chan struct{})
	b := caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		if hangs.Load() {
			<-back
		}
	})
	const limit = 32 << 20
	address := caddytest.FreeAddress(t)
	c := caddytest.Start(t, "", "", fmt.Sprintf("http://%s {\nbuzzbip_webhook %s {\nanswer_within 1s\nmax_in_flight %d\n}\nreverse_proxy %s\n}", address, caddytest.Secret, limit, b.Address()))
	before := residentSize(t, c)

	const events, size = 2000, 256 << 10
	type sent struct {
		body   string
		status int
	}
	outcomes := make([]sent, events)
	var senders sync.WaitGroup
	peak := int64(0)
	for i := range outcomes {
		outcomes[i].body = caddytest.Event{Data: fmt.Sprintf(`{"text":%q}`, strings.Repeat("x", size))}.Body()
		senders.Go(func() { outcomes[i].status = caddytest.Post(t.Context(), "http://"+address, outcomes[i].body).Status })
		time.Sleep(2 * time.Millisecond)
		if i%20 == 0 {
			peak = max(peak, residentSize(t, c))
		}
	}
	inFlight := c.Metric("in_flight_bytes")
	if inFlight <= 0 || inFlight > limit {
		t.Errorf("%v bytes are under way, want up to %d", inFlight, limit)
	}
	// The collector lets garbage grow to the size of what is in use. Events that
	// are rejected are garbage too.
	t.Logf("the process took %d MiB before and %d MiB at most", before>>20, peak>>20)
	if grown := peak - before; grown > 4*limit {
		t.Errorf("the process grew by %d MiB", grown>>20)
	}
	hangs.Store(false)
	close(back)
	senders.Wait()

	delivered, unanswered := 0, 0
	for _, event := range outcomes {
		switch {
		case event.status == http.StatusOK && b.Count(event.body) == 1:
			delivered++
		case event.status == 0 && b.Count(event.body) <= 1: // on a slow machine, the sender disconnected
			unanswered++
		case event.status != http.StatusServiceUnavailable || b.Count(event.body) != 0:
			t.Errorf("an event was answered %d and arrived %d times", event.status, b.Count(event.body))
		}
	}
	if rejected := c.Metric(`rejections_total{reason="overloaded"}`); delivered == 0 || int(rejected) > events-delivered || int(rejected) < events-delivered-unanswered {
		t.Errorf("%d events were delivered, %v rejected as overloaded and %d not answered, of %d", delivered, rejected, unanswered, events)
	}
	t.Logf("%d events were delivered", delivered)
	caddytest.WaitFor(t, "all memory to be free", func() bool { return c.Metric("in_flight_bytes") == 0 })
	for _, event := range outcomes { // as BuzzBip retries
		if event.status == http.StatusServiceUnavailable {
			if got := caddytest.Post(t.Context(), "http://"+address, event.body); got.Status != http.StatusOK || b.Count(event.body) != 1 {
				t.Fatalf("a retry was answered %d and its event has arrived %d times", got.Status, b.Count(event.body))
			}
		}
	}
	if log := c.Log.String(); strings.Contains(log, "http.log.error") {
		t.Error("rejections fill Caddy's error log")
	}
}

// residentSize returns how much memory a process takes, in bytes.
func residentSize(t *testing.T, c *caddytest.Caddy) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", c.Cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var pages, resident int64
	if _, err := fmt.Sscan(string(status), &pages, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * int64(os.Getpagesize())
}
