package deployment

import (
	"crypto/tls"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// compose reads compose.yaml as "docker compose config" does: it has a schema, and
// what services name must be there.
func compose(t *testing.T) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{filepath.Join(root, "examples", "compose", "compose.yaml")}, cli.WithResolvedPaths(true))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return project
}

// upstream matches the addresses that a Caddyfile has of other services.
var upstream = regexp.MustCompile(`\b([a-z]+):(\d+)\b`)

func TestCompose(t *testing.T) {
	project := compose(t)
	caddyfile := example(t, "compose", "conf", "Caddyfile")
	caddy := project.Services["caddy"]

	if caddy.Build == nil || caddy.Build.Context != root {
		t.Errorf("the image is built from %+v, want %s", caddy.Build, root)
	}
	for _, v := range caddy.Volumes {
		if v.Type == types.VolumeTypeBind {
			if _, err := os.Stat(v.Source); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(v.Source, "Caddyfile")); v.Target == "/etc/caddy" && err != nil {
				t.Error(err)
			}
		}
	}
	targets := make(map[string]bool)
	for _, v := range caddy.Volumes {
		targets[v.Target] = true
	}
	for _, target := range []string{"/etc/caddy", "/data", "/config"} {
		if !targets[target] {
			t.Errorf("nothing is mounted at %s", target)
		}
	}
	if !slices.ContainsFunc(caddy.Volumes, func(v types.ServiceVolumeConfig) bool { return v.Target == "/data" && v.Type == types.VolumeTypeVolume }) {
		t.Error("the inbox, below /data, is lost with the container")
	}

	// what the Caddyfile needs is there
	var secrets []string
	for _, s := range caddy.Secrets {
		target := s.Target
		if !strings.HasPrefix(target, "/") {
			target = "/run/secrets/" + strings.TrimPrefix(target, "/")
		}
		secrets = append(secrets, target)
	}
	files := regexp.MustCompile(`(?m)secret_file (\S+)`).FindAllStringSubmatch(caddyfile, -1)
	if len(files) == 0 {
		t.Error("the Caddyfile has no secret_file")
	}
	for _, file := range files {
		if !slices.Contains(secrets, file[1]) {
			t.Errorf("%s is not among the secrets of the service, %q", file[1], secrets)
		}
	}
	s := adapted(t, caddyfile)
	for _, listen := range s.Listen {
		port := portOf(t, listen)
		if !slices.ContainsFunc(caddy.Ports, func(p types.ServicePortConfig) bool { return p.Target == uint32(port) }) {
			t.Errorf("port %d is not published", port)
		}
	}
	if caddy.StopGracePeriod == nil || time.Duration(*caddy.StopGracePeriod) <= s.ShortestStop {
		t.Errorf("stop_grace_period is %v, which cuts deliveries off: Caddy takes up to %v", caddy.StopGracePeriod, s.ShortestStop)
	}
	found := upstream.FindAllStringSubmatch(caddyfile, -1)
	if len(found) != 2 {
		t.Errorf("the Caddyfile has the addresses %q, want those of Redis and the backend", found)
	}
	for _, address := range found {
		other, ok := project.Services[address[1]]
		if !ok {
			t.Errorf("there is no service %s", address[1])
			continue
		}
		shared := false
		for network := range other.Networks {
			_, here := caddy.Networks[network]
			shared = shared || here
		}
		if !shared {
			t.Errorf("Caddy is in no network of %s", other.Name)
		}
		if port := address[2]; other.Name == "redis" && port != "6379" || other.Name == "backend" && !slices.Contains(other.Command, ":"+port) {
			t.Errorf("%s does not listen at port %s", other.Name, port)
		}
	}
	public := 0
	for network := range caddy.Networks {
		if !project.Networks[network].Internal {
			public++
		}
	}
	if public == 0 {
		t.Error("Caddy is only in internal networks, so nobody reaches it")
	}
	for network := range project.Services["redis"].Networks {
		if !project.Networks[network].Internal {
			t.Errorf("Redis has no password and is in %s, which is not internal", network)
		}
	}
}

func TestComposeRuns(t *testing.T) {
	project := compose(t)
	redis, backend := project.Services["redis"], project.Services["backend"]
	if redis.Command[0] != "redis-server" || redis.HealthCheck == nil || redis.HealthCheck.Test[0] != "CMD" {
		t.Fatalf("redis runs %q, with the probe %v", redis.Command, redis.HealthCheck)
	}
	keepsIDs(t, redis.Command)
	redisAddress := startRedis(t, redis.HealthCheck.Test[1:], redis.Command[1:]...)

	backendAddress := caddytest.FreeAddress(t)
	if backend.Command[0] != "caddy" {
		t.Fatalf("the backend runs %q", backend.Command)
	}
	args := slices.Clone(backend.Command[1:])
	for i := range args {
		args[i] = strings.Replace(args[i], ":9000", backendAddress, 1)
	}
	deliveries := launch(t, exec.Command(caddytest.Binary, args...))
	caddytest.WaitFor(t, "the backend", func() bool { return get("http://"+backendAddress) == http.StatusOK })

	secret := filepath.Join(t.TempDir(), "buzzbip")
	if err := os.WriteFile(secret, []byte(caddytest.Secret+"\n"), 0o400); err != nil {
		t.Fatal(err)
	}
	address := caddytest.FreeAddress(t)
	_, port, _ := strings.Cut(address, ":")
	c := start(t, "", caddytest.Replace(t, example(t, "compose", "conf", "Caddyfile"),
		"hooks.example.com {", "https://localhost:"+port+" {\n\ttls internal",
		"/run/secrets/buzzbip", secret, "redis:6379", redisAddress, "backend:9000", backendAddress,
		"\tgrace_period", "\tauto_https disable_redirects\n\tgrace_period"))
	url := "https://localhost:" + port + "/webhooks/buzzbip"
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	caddytest.WaitFor(t, "the certificate", func() bool {
		res, err := client.Get(url)
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusMethodNotAllowed
	})
	check(t, url, secret)
	logsAccess(t, c)
	if c.Metric(`store_up{store="redis"}`) != 1 || c.Metric(`remembered_events{store="redis"}`) == 0 {
		t.Error("the ids were not remembered in Redis")
	}
	if c.Metric("inbox_up") != 1 {
		t.Error("the inbox does not work")
	}
	if !strings.Contains(deliveries.String(), `"/webhooks/buzzbip"`) {
		t.Error("the backend does not log what it gets")
	}
}
