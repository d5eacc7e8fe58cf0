package caddytest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// Binary is Caddy with the plugin, built from this checkout by [Main].
var Binary string

// Main is for TestMain. It builds [Binary], runs the tests and returns the exit
// code.
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "caddy-webhook")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	Binary = filepath.Join(dir, "caddy")
	if err := Build(Binary); err != nil {
		log.Print(err)
		return 1
	}
	return m.Run()
}

// Build builds Caddy with the plugin from this checkout.
func Build(binary string) error {
	_, here, _, _ := runtime.Caller(0)
	build := exec.Command("go", "build", "-o", binary, "./cmd/caddy")
	build.Dir = filepath.Join(filepath.Dir(here), "..", "..") // the module of the plugin
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building Caddy: %w\n%s", err, out)
	}
	return nil
}

// Caddy is a running process.
type Caddy struct {
	Cmd    *exec.Cmd
	Config string // path of the Caddyfile
	Admin  string // address of the admin endpoint
	Log    Output
	Ended  chan struct{}

	t testing.TB
}

// Start runs a Caddyfile, whose global options may be given, and returns
// when it is being served. Its files are below data, or below a new directory
// if that is empty.
func Start(t testing.TB, data, globals, sites string, env ...string) *Caddy {
	t.Helper()
	c := Launch(t, data, globals, sites, env...)
	c.await()
	return c
}

// await waits until the configuration is being served.
func (c *Caddy) await() {
	c.t.Helper()
	WaitFor(c.t, "Caddy to start", func() bool {
		select {
		case <-c.Ended:
			c.t.Fatalf("Caddy ended: %s", c.Log.String())
		default:
		}
		res, err := http.Get("http://" + c.Admin + "/config/")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		config, err := io.ReadAll(res.Body)
		return err == nil && res.StatusCode == http.StatusOK && len(bytes.TrimSpace(config)) > len("null")
	})
}

func (c *Caddy) launch(env []string) {
	c.t.Helper()
	c.Cmd, c.Ended = exec.Command(Binary, "run", "--config", c.Config), make(chan struct{})
	c.Cmd.Env = env
	c.Log = Capture(c.t, c.Cmd)
	if err := c.Cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	cmd, ended := c.Cmd, c.Ended
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
}

// Restart runs Caddy again, which has ended, with the same files and addresses.
func (c *Caddy) Restart() {
	c.t.Helper()
	c.launch(c.Cmd.Env)
	c.await()
}

// Launch is [Start] without the wait.
func Launch(t testing.TB, data, globals, sites string, env ...string) *Caddy {
	t.Helper()
	if data == "" {
		data = t.TempDir()
	}
	c := &Caddy{Config: filepath.Join(t.TempDir(), "Caddyfile"), Admin: FreeAddress(t), t: t}
	text := fmt.Sprintf("{\n\tadmin %s\n\tskip_install_trust\n\tgrace_period 5s\n%s\n}\n%s\n", c.Admin, globals, sites)
	if err := os.WriteFile(c.Config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.launch(append(append(os.Environ(), "XDG_DATA_HOME="+data, "XDG_CONFIG_HOME="+data, "HOME="+data), env...))
	t.Cleanup(func() {
		c.Kill()
		if t.Failed() {
			t.Logf("log of Caddy %d:\n%s", c.Cmd.Process.Pid, c.Log.String())
		}
	})
	return c
}

// Kill is kill -9.
func (c *Caddy) Kill() {
	_ = c.Cmd.Process.Kill()
	<-c.Ended
}

// Stop ends Caddy as an operator does.
func (c *Caddy) Stop() {
	c.t.Helper()
	_ = c.Cmd.Process.Signal(os.Interrupt)
	Receive(c.t, c.Ended, "Caddy to stop")
}

// ServePage runs `caddy buzzbip page` and returns the address that it prints.
func ServePage(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command(Binary, append([]string{"buzzbip", "page"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}
