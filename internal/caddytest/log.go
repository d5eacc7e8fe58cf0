package caddytest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Entries are the whole lines of the log, decoded.
func (c *Caddy) Entries() (all []map[string]any) {
	c.t.Helper()
	for line := range strings.Lines(c.Log.String()) {
		if strings.HasPrefix(line, "{") && strings.HasSuffix(line, "\n") {
			entry := make(map[string]any)
			if err := json.Unmarshal([]byte(line), &entry); err != nil {
				c.t.Fatalf("%s: %v", line, err)
			}
			all = append(all, entry)
		}
	}
	return all
}

// Output is what a process has written to standard output and standard error:
// all of it at any moment, for it goes into a file and not through a pipe.
type Output struct{ path string }

// Capture sets where a command that is to be started writes.
func Capture(t testing.TB, cmd *exec.Cmd) Output {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	cmd.Stdout, cmd.Stderr = f, f
	return Output{f.Name()}
}

func (o Output) String() string {
	text, err := os.ReadFile(o.path)
	if err != nil {
		return err.Error()
	}
	return string(text)
}
