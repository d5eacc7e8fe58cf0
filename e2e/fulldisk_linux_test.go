package e2e

import (
	"net/http"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// A process that may not write beyond the present size of the log is, for that
// file, one on a full disk.
func TestFullDiskIsSeenAndLosesNothing(t *testing.T) {
	b := caddytest.NewBackend(t, nil)
	data, address := t.TempDir(), caddytest.FreeAddress(t)
	site := onSQLite(address, data, b)
	c := caddytest.Start(t, data, "", site)
	deliver := func(body, result string) {
		t.Helper()
		if got := caddytest.Post(t.Context(), "http://"+address, body); got.Status != http.StatusOK || got.Result != result {
			t.Fatalf("answered %d %q, want 200 %q", got.Status, got.Result, result)
		}
	}
	bodies := []string{caddytest.NewEvent()}
	deliver(bodies[0], "")

	info, err := os.Stat(data + "/webhook.db-wal")
	if err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	full := unix.Rlimit{Cur: uint64(info.Size()), Max: unix.RLIM_INFINITY}
	if err := unix.Prlimit(c.Cmd.Process.Pid, unix.RLIMIT_FSIZE, &full, &was); err != nil {
		t.Fatal(err)
	}
	for c.Metric(`store_up{store="sqlite"}`) == 1 {
		if len(bodies) > 10_000 {
			t.Fatal("the disk does not become full")
		}
		bodies = append(bodies, caddytest.NewEvent())
		deliver(bodies[len(bodies)-1], "")
	}
	deliver(bodies[len(bodies)-1], "duplicate")
	if failed := c.Metric(`store_errors_total{operation="settle",store="sqlite"}`); failed == 0 {
		t.Error("no metric says that a delivery is not on the disk")
	}

	if err := unix.Prlimit(c.Cmd.Process.Pid, unix.RLIMIT_FSIZE, &was, nil); err != nil {
		t.Fatal(err)
	}
	caddytest.WaitFor(t, "the disk to work again", func() bool { return c.Metric(`store_up{store="sqlite"}`) == 1 })
	for _, said := range []string{"failed to write to the database", "the database can be written to again"} {
		if !strings.Contains(c.Log.String(), said) {
			t.Errorf("the log does not say %q", said)
		}
	}
	c.Kill()
	caddytest.Start(t, data, "", site)
	for _, body := range bodies {
		deliver(body, "duplicate")
	}
}
