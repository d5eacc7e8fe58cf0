//go:build unix

package buzzbip

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// Reading a pipe that nobody writes to would block the load, every later load, and
// the stop.
func TestPipeAsSecretFileDoesNotHangTheLoad(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, s := range []Secret{{File: pipe}, {Value: "{file." + pipe + "}"}, {File: "{file." + pipe + "}"}} {
		loaded := make(chan error, 1)
		go func() { loaded <- tryProvision(t, &Handler{Secrets: []Secret{s}}) }()
		select {
		case err := <-loaded:
			if err == nil || !strings.Contains(err.Error(), "regular file") {
				t.Errorf("%+v: the error is %v", s, err)
			}
		case <-time.After(caddytest.Patience):
			t.Errorf("%+v blocks the load", s)
			w, err := os.OpenFile(pipe, os.O_WRONLY|syscall.O_NONBLOCK, 0) // the end of what waits
			if err == nil {
				w.Close()
			}
			<-loaded
		}
	}
}
