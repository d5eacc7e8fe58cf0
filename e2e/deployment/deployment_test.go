// Package deployment checks the Dockerfile and the examples of Compose, Kubernetes
// and systemd. What they are for cannot run here: there is no Docker, no cluster
// and no systemd. So each is read by the code that would read it there, and then
// its commands and its Caddyfile run as processes on this machine.
package deployment

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// root is that of the repository.
var root, _ = filepath.Abs("../..")

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "caddy-webhook-deployment")
	if err != nil {
		log.Fatal(err)
	}
	var code int
	if caddytest.Binary, err = buildAsTheDockerfileDoes(dir); err != nil {
		log.Print(err)
		code = 1
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// example reads a file of the examples.
func example(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(append([]string{root, "examples"}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// start runs a Caddyfile that begins with global options.
func start(t *testing.T, data, caddyfile string, env ...string) *caddytest.Caddy {
	t.Helper()
	_, rest, _ := strings.Cut("\n"+caddyfile, "\n{\n")
	globals, sites, ok := strings.Cut(rest, "\n}\n")
	if !ok {
		t.Fatal("the Caddyfile has no global options")
	}
	return caddytest.Start(t, data, globals+"\n\tdefault_bind 127.0.0.1", sites, env...)
}

// settings are those of a Caddyfile that others must agree with.
type settings struct {
	Listen                                                   []string
	ShutdownDelay, GracePeriod                               time.Duration
	ReadTimeout, AnswerWithin, DeliveryTimeout, ShortestStop time.Duration
}

// adapted reads the settings as Caddy does.
func adapted(t *testing.T, caddyfile string) (s settings) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "Caddyfile")
	if err := os.WriteFile(path, []byte(caddyfile), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(caddytest.Binary, "adapt", "--config", path).Output()
	if err != nil {
		t.Fatalf("adapting: %v", err)
	}
	var config struct {
		Apps struct {
			HTTP struct {
				GracePeriod   time.Duration `json:"grace_period"`
				ShutdownDelay time.Duration `json:"shutdown_delay"`
				Servers       map[string]struct {
					Listen []string `json:"listen"`
				} `json:"servers"`
			} `json:"http"`
		} `json:"apps"`
	}
	var tree any
	for _, into := range []any{&config, &tree} {
		if err := json.Unmarshal(out, into); err != nil {
			t.Fatal(err)
		}
	}
	s.GracePeriod, s.ShutdownDelay = config.Apps.HTTP.GracePeriod, config.Apps.HTTP.ShutdownDelay
	for _, server := range config.Apps.HTTP.Servers {
		s.Listen = append(s.Listen, server.Listen...)
	}
	handler := handlerIn(tree)
	if handler == nil {
		t.Fatal("the Caddyfile has no buzzbip_webhook")
	}
	s.ReadTimeout, s.AnswerWithin, s.DeliveryTimeout = 10*time.Second, 8*time.Second, time.Minute // the defaults
	for option, into := range map[string]*time.Duration{"read_timeout": &s.ReadTimeout, "answer_within": &s.AnswerWithin, "delivery_timeout": &s.DeliveryTimeout} {
		if n, ok := handler[option].(float64); ok {
			*into = time.Duration(n)
		}
	}
	// a duplicate may wait for a delivery that fails, and then be delivered
	if s.GracePeriod <= s.ReadTimeout+s.AnswerWithin+s.DeliveryTimeout {
		t.Errorf("grace_period is %v, not more than read_timeout, answer_within and delivery_timeout, %v, %v and %v",
			s.GracePeriod, s.ReadTimeout, s.AnswerWithin, s.DeliveryTimeout)
	}
	s.ShortestStop = s.ShutdownDelay + s.GracePeriod
	if handler["inbox"] == nil {
		t.Error("the Caddyfile has no inbox")
	}
	s.ShortestStop += 15 * time.Second // redeliveries under way, and a disk that does not respond
	return s
}

// handlerIn finds buzzbip_webhook in a configuration.
func handlerIn(tree any) map[string]any {
	switch tree := tree.(type) {
	case map[string]any:
		if tree["handler"] == "buzzbip_webhook" {
			return tree
		}
		for _, branch := range tree {
			if found := handlerIn(branch); found != nil {
				return found
			}
		}
	case []any:
		for _, branch := range tree {
			if found := handlerIn(branch); found != nil {
				return found
			}
		}
	}
	return nil
}

// check plays BuzzBip, with the command that docs/DEPLOYMENT.md recommends.
func check(t *testing.T, url, secretFile string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, caddytest.Binary, "buzzbip", "check", url, "--insecure", "--secret-file", secretFile).CombinedOutput()
	if err != nil {
		t.Errorf("caddy buzzbip check %s: %v\n%s", url, err, out)
	}
	if out, err := exec.CommandContext(ctx, caddytest.Binary, "buzzbip", "send", url+"/wrong", "--insecure", "--secret-file", secretFile).CombinedOutput(); err == nil {
		t.Errorf("an event to a wrong path is acknowledged: %s", out)
	}
}

// logsAccess fails for a Caddy whose access log does not say what alerts refer to,
// or has a signature.
func logsAccess(t *testing.T, c *caddytest.Caddy) {
	t.Helper()
	reasons := make(map[any]bool)
	for _, entry := range c.Entries() {
		request, _ := entry["request"].(map[string]any)
		if headers, _ := request["headers"].(map[string]any); headers["X-Buzzbip-Signature"] != nil {
			t.Fatalf("the log has a signature: %v", entry)
		}
		if logger, _ := entry["logger"].(string); strings.HasPrefix(logger, "http.log.access") && request["remote_ip"] != nil {
			reasons[entry["buzzbip_reason"]] = true
		}
	}
	if !reasons["signature_mismatch"] {
		t.Errorf("the access log has the reasons %v, and not that of the forgery", reasons)
	}
}

// get returns the status that a URL answers, 0 for none.
func get(url string) int {
	client := http.Client{Timeout: 3 * time.Second}
	res, err := client.Get(url)
	if err != nil {
		return 0
	}
	res.Body.Close()
	return res.StatusCode
}

// launch starts a command, which is killed at the end of the test.
func launch(t *testing.T, cmd *exec.Cmd) caddytest.Output {
	t.Helper()
	output := caddytest.Capture(t, cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("output of %s:\n%s", cmd, output)
		}
	})
	return output
}

// startRedis runs redis-server with arguments of an example, and waits until its
// probe succeeds. It returns the address.
func startRedis(t *testing.T, probe []string, args ...string) string {
	t.Helper()
	address := caddytest.FreeAddress(t)
	_, port, _ := net.SplitHostPort(address)
	server := exec.Command("redis-server", append(args, "--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir())...)
	launch(t, server)
	if len(probe) == 0 || probe[0] != "redis-cli" {
		t.Fatalf("the probe of Redis is %q", probe)
	}
	caddytest.WaitFor(t, "the probe of Redis", func() bool {
		out, err := exec.Command(probe[0], append([]string{"-p", port}, probe[1:]...)...).Output()
		return err == nil && strings.TrimSpace(string(out)) == "PONG"
	})
	return address
}

// The commands of docs/DEPLOYMENT.md that reach the admin endpoint in a container.
func TestTheAdminEndpointIsReachedInContainers(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(root, "docs", "DEPLOYMENT.md"))
	if err != nil {
		t.Fatal(err)
	}
	docs := string(raw)
	_, handler, _ := strings.Cut(example(t, "compose", "conf", "Caddyfile"), "\n}\n")
	c := caddytest.Start(t, "", "", caddytest.Replace(t, handler, "hooks.example.com {", "http://"+caddytest.FreeAddress(t)+" {",
		"secret_file /run/secrets/buzzbip", "secret "+caddytest.Secret, "store redis redis://redis:6379", ""))
	for name, in := range map[string]struct {
		exec      string
		caddyfile []string
		forwarded func(port string) bool
	}{
		"compose": {`docker compose exec caddy`, []string{"compose", "conf", "Caddyfile"}, func(port string) bool {
			return slices.ContainsFunc(compose(t).Services["caddy"].Ports, func(p types.ServicePortConfig) bool {
				return p.HostIP == "127.0.0.1" && p.Published == port && fmt.Sprint(p.Target) == port
			})
		}},
		"kubernetes": {`kubectl -n buzzbip exec (?:-it )?\S+ --`, []string{"kubernetes", "Caddyfile"}, func(port string) bool {
			return regexp.MustCompile(`(?m)^kubectl -n buzzbip port-forward \S+ ` + port + `$`).MatchString(docs)
		}},
	} {
		ran := make(map[string]bool)
		for _, command := range regexp.MustCompile(`(?m)^\s*`+in.exec+` (.+)$`).FindAllStringSubmatch(docs, -1) {
			args := strings.Fields(command[1])
			last := args[len(args)-1]
			switch strings.Join(args[:len(args)-1], " ") {
			case "caddy buzzbip lookup", "caddy buzzbip inbox":
				ran[args[2]] = true
				if out, err := exec.Command(caddytest.Binary, append(args[1:], "--address", c.Admin)...).CombinedOutput(); err != nil {
					t.Errorf("%s: %s: %v\n%s", name, command[1], err, out)
				}
			case "caddy buzzbip page --listen":
				ran["page"] = true
				_, port, _ := net.SplitHostPort(last)
				for _, listen := range adapted(t, example(t, in.caddyfile...)).Listen {
					if fmt.Sprint(portOf(t, listen)) == port {
						t.Errorf("%s: Caddy itself has the port %s of the page", name, port)
					}
				}
				if !in.forwarded(port) {
					t.Errorf("%s: nothing leads to the port %s of the page", name, port)
				}
			}
		}
		if len(ran) != 3 {
			t.Errorf("%s: the documentation has the commands %v", name, ran)
		}
	}
}

// A Redis that answers with an error, as while it loads its file, is not ready.
func TestTheProbesOfRedisFailForAnError(t *testing.T) {
	address := caddytest.FreeAddress(t)
	_, port, _ := net.SplitHostPort(address)
	launch(t, exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--requirepass", "another"))
	caddytest.WaitFor(t, "Redis", func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	for name, probe := range map[string][]string{
		"compose":    compose(t).Services["redis"].HealthCheck.Test[1:],
		"kubernetes": kubernetes(t).redis.Spec.Template.Spec.Containers[0].ReadinessProbe.Exec.Command,
	} {
		out, err := exec.Command(probe[0], append([]string{"-p", port}, probe[1:]...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "NOAUTH") {
			t.Errorf("%s: the probe of a Redis that refuses it: %v, %s", name, err, out)
		}
	}
}

// portOf returns the port of a listener of Caddy.
func portOf(t *testing.T, listen string) int {
	t.Helper()
	var port int
	if _, err := fmt.Sscanf(listen[strings.LastIndex(listen, ":"):], ":%d", &port); err != nil {
		t.Fatalf("%s: %v", listen, err)
	}
	return port
}

// keepsIDs fails for a Redis that would drop ids without a word.
func keepsIDs(t *testing.T, command []string) {
	t.Helper()
	for option, want := range map[string]string{"--maxmemory-policy": "noeviction", "--appendonly": "yes"} {
		if i := slices.Index(command, option); i < 0 || i+1 == len(command) || command[i+1] != want {
			t.Errorf("%s of Redis is not %s: %q", option, want, command)
		}
	}
}
