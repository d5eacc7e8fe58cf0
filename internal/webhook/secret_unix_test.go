//go:build unix

package webhook

import (
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A pipe may take the place of a file between the look at it and its opening.
func TestOpeningAPipeDoesNotWait(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	opened := make(chan error, 1)
	go func() {
		file, err := openRegular(pipe)
		if err == nil {
			err = errors.New("the pipe was opened")
			file.Close()
		}
		opened <- err
	}()
	if err := <-opened; !strings.Contains(err.Error(), "regular file") {
		t.Errorf("the error is %v", err)
	}
}
