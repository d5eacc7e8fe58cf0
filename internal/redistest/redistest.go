// Package redistest starts real Redis servers for tests.
package redistest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
)

// patience is how long a server may take to start, to stop or to answer.
const patience = 30 * time.Second

// Server is a redis-server of a test's own, on loopback. It is stopped at the
// end of the test.
type Server struct {
	t       testing.TB
	port    int
	args    []string
	dir     string
	cmd     *exec.Cmd
	ended   chan struct{}
	options rueidis.ClientOption
	scheme  string
	ca      string
}

// binary is the server to test with: $REDIS_SERVER, such as valkey-server, or
// redis-server.
func binary(t testing.TB) string {
	t.Helper()
	name := os.Getenv("REDIS_SERVER")
	if name == "" {
		name = "redis-server"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("there is no %s here: install it, as make test does", name)
	}
	return path
}

// Start starts a server with arguments of redis-server, and without
// persistence unless they ask for it.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	s := &Server{t: t, port: FreePort(t), dir: t.TempDir(), scheme: "redis"}
	s.args = append([]string{"--port", strconv.Itoa(s.port)}, args...)
	s.run()
	return s
}

// FreePort returns a port on loopback that nobody listens at, nor at the one
// 10000 above, which a node of a Cluster needs too.
func FreePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		bus, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+10000))
		if err == nil {
			bus.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// run starts the process and returns when it answers.
func (s *Server) run() {
	s.t.Helper()
	log, err := os.OpenFile(s.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	s.cmd = exec.Command(binary(s.t), append([]string{"--bind", "127.0.0.1", "--dir", s.dir, "--save", "", "--appendonly", "no"}, s.args...)...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan struct{})
	s.ended = ended
	cmd := s.cmd
	go func() {
		_ = cmd.Wait()
		log.Close()
		close(ended)
	}()
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if s.t.Failed() {
			text, _ := os.ReadFile(s.dir + "/log")
			s.t.Logf("log of the server at %s:\n%s", s.Addr(), text)
		}
	})
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if _, err = s.try("PING"); err == nil || strings.Contains(err.Error(), "NOAUTH") {
			return
		}
		select {
		case <-ended:
			s.t.Fatal("the server ended")
		default:
		}
		if time.Now().After(end) {
			s.t.Fatalf("the server does not answer: %v", err)
		}
	}
}

// Addr is the host and the port.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// URL is what a client connects to.
func (s *Server) URL() string { return s.scheme + "://" + s.Addr() }

// Kill ends the process with SIGKILL.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill()
	<-s.ended
}

// Restart starts the server again, at the same place, after Kill.
func (s *Server) Restart() {
	s.t.Helper()
	<-s.ended
	s.run()
}

// Pause stops the process with SIGSTOP: it takes connections, and answers
// nothing.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// Do runs a command and returns its answer as text, arrays one element a line.
func (s *Server) Do(args ...string) string {
	s.t.Helper()
	text, err := s.try(args...)
	if err != nil {
		s.t.Fatalf("%s: %v", args, err)
	}
	return text
}

func (s *Server) try(args ...string) (string, error) {
	options := s.options
	options.InitAddress = []string{s.Addr()}
	options.ForceSingleClient, options.DisableCache, options.DisableRetry = true, true, true
	client, err := rueidis.NewClient(options)
	if err != nil {
		return "", err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	answer, err := client.Do(ctx, client.B().Arbitrary(args...).Build()).ToAny()
	if errors.Is(err, rueidis.Nil) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var text strings.Builder
	write(&text, answer)
	return strings.TrimSuffix(text.String(), "\n"), nil
}

func write(text *strings.Builder, answer any) {
	if array, ok := answer.([]any); ok {
		for _, element := range array {
			write(text, element)
		}
		return
	}
	fmt.Fprintln(text, answer)
}
