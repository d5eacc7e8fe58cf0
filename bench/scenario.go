package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	http1 = "http/1.1"
	http2 = "http/2"
)

// baseline is the scenario that the others are compared with.
const baseline = "plain"

// scenario is one way to send events, to one gateway.
type scenario struct {
	name    string
	about   string // for the table
	gateway string // names a starter
	kind    kind
	want    answer
	// what it is measured with; if empty, with all
	sizes     []int
	protocols []string
}

var (
	passedOn  = answer{http.StatusOK, ""}
	usual     = []int{1 << 10, 64 << 10}
	onlyHTTP1 = []string{http1}
)

// stores are those that dedupe has besides memory. A directive that needs
// something else, such as a server, says how to start it.
var stores = []struct {
	name      string
	directive func(context.Context, *environment) (string, error)
}{
	{"sqlite", func(_ context.Context, e *environment) (string, error) {
		return "store sqlite " + filepath.ToSlash(e.dir) + "/events.db", nil
	}},
	{"redis", func(ctx context.Context, e *environment) (string, error) {
		url, err := e.startRedis(ctx)
		return "store redis " + url, err
	}},
}

// scenarios returns all scenarios.
func scenarios(o options) []scenario {
	list := []scenario{
		{name: baseline, about: "`reverse_proxy`"},
		{name: "plain-again", about: "the same in another process: what is chance"},
		{name: "plain+buffers", about: "`reverse_proxy` with `request_buffers`"},
		{name: "memory", about: "`buzzbip_webhook`"},
		{name: "memory+buffers", about: "`buzzbip_webhook`, `request_buffers`"},
		{name: "inbox", about: "`inbox sqlite`, which the backend leaves empty", sizes: over2},
		{name: "inbox+buffers", about: "the same, `request_buffers`", sizes: over2},
	}
	if o.against != "" {
		list = append(list,
			scenario{name: "against", about: "the other build, `buzzbip_webhook`"},
			scenario{name: "against+buffers", about: "the other build, `buzzbip_webhook`, `request_buffers`"})
	}
	for _, s := range stores {
		list = append(list, scenario{
			name: s.name + "+buffers", about: "`store " + s.name + "`, `request_buffers`", sizes: usual, protocols: onlyHTTP1,
		})
	}
	list = append(list,
		scenario{name: "always", about: "`inbox sqlite` with `accept always`", want: answer{http.StatusOK, "stored"}, sizes: usual, protocols: onlyHTTP1},
		scenario{name: "off", about: "`dedupe off`", sizes: usual, protocols: onlyHTTP1},
		scenario{name: "respond", about: "`respond` after reading the body, without the plugin", sizes: usual, protocols: onlyHTTP1},
		scenario{name: "duplicate", about: "duplicates", gateway: "memory", kind: duplicate, want: answer{http.StatusOK, "duplicate"}, sizes: usual, protocols: onlyHTTP1},
		scenario{name: "forged", about: "forged signatures", gateway: "memory", kind: forged, want: answer{http.StatusUnauthorized, ""}, sizes: usual, protocols: onlyHTTP1},
		scenario{name: "filtered", about: "types that `events` leaves out", want: answer{http.StatusOK, "ignored"}, sizes: usual, protocols: onlyHTTP1},
		scenario{name: "nginx", about: "nginx, `proxy_pass`", sizes: usual, protocols: onlyHTTP1},
		scenario{name: "nginx+lua", about: "nginx, HMAC and IDs in Lua", sizes: usual, protocols: onlyHTTP1},
		scenario{name: "express", about: "Express with BuzzBip's sample", sizes: usual, protocols: onlyHTTP1},
	)
	for n := range list {
		s := &list[n]
		if s.gateway == "" {
			s.gateway = s.name
		}
		if s.want == (answer{}) {
			s.want = passedOn
		}
	}
	return list
}

// over2 has the sizes that HTTP/2 is measured with.
var over2 = []int{1 << 10, 4 << 10, 64 << 10}

// takes reports whether the scenario is measured with a protocol and a size.
func (s scenario) takes(protocol string, size int) bool {
	if s.protocols != nil && !slices.Contains(s.protocols, protocol) || protocol == http2 && !slices.Contains(over2, size) {
		return false
	}
	return s.sizes == nil || slices.Contains(s.sizes, size)
}

// errSkipped is why a gateway cannot be measured on this machine.
var errSkipped = errors.New("not measured")

func skipped(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errSkipped}, args...)...)
}

// environment is what the gateways need to start.
type environment struct {
	options
	self    string // this program
	dir     string // for files
	backend string // address
	redis   string // URL, once it was started
	express string // directory of Node.js modules with Express, once it is known
	batch   uint32 // of events, the latest
	cleanup []func()
}

// nextBatch returns a number of a batch of events that no other one has, also in
// another run.
func (e *environment) nextBatch() uint32 {
	if e.batch == 0 {
		e.batch = uint32(time.Now().Unix()) << 8
	}
	e.batch++
	return e.batch
}

func (e *environment) close() {
	for _, f := range slices.Backward(e.cleanup) {
		f()
	}
}

// start starts the gateway of a name.
func (e *environment) start(ctx context.Context, name string) (*gateway, error) {
	base, _ := strings.CutSuffix(name, "+buffers")
	proxy := e.proxy(base != name)
	webhook := func(options string) string { return webhookDirective(options) + "\n\t" + proxy }
	caddy := []string{e.self, "caddy", "0"}
	switch base {
	case "plain", "plain-again":
		return startCaddy(ctx, e.dir, name, caddy, proxy)
	case "memory":
		return startCaddy(ctx, e.dir, name, caddy, webhook(""))
	case "inbox":
		return startCaddy(ctx, e.dir, name, caddy, webhook(inboxDirective(filepath.Join(e.dir, name+".db"))))
	case "always":
		return startCaddy(ctx, e.dir, name, caddy, webhook(strings.Replace(inboxDirective(filepath.Join(e.dir, name+".db")), "{", "{\n\t\t\taccept always", 1)))
	case "off":
		return startCaddy(ctx, e.dir, name, caddy, webhook("dedupe off"))
	case "against":
		return startCaddy(ctx, e.dir, name, []string{e.against}, webhook(""))
	case "filtered":
		return startCaddy(ctx, e.dir, name, caddy, webhook("events message.sent contact.*"))
	case "respond":
		return startCaddy(ctx, e.dir, name, caddy, "route {\n\t\tbench_read_body\n\t\trespond ok\n\t}")
	case "nginx":
		return e.startNginx(ctx, name, false)
	case "nginx+lua":
		return e.startNginx(ctx, name, true)
	case "express":
		return e.startExpress(ctx)
	}
	for _, s := range stores {
		if s.name == base {
			directive, err := s.directive(ctx, e)
			if err != nil {
				return nil, err
			}
			return startCaddy(ctx, e.dir, name, caddy, webhook(directive))
		}
	}
	return nil, fmt.Errorf("no gateway is called %s", name)
}

// startFilled starts a gateway with the store memory, which remembers ids IDs.
func (e *environment) startFilled(ctx context.Context, ids int) (*gateway, error) {
	return startCaddy(ctx, e.dir, fmt.Sprint("ids-", ids), []string{e.self, "caddy", fmt.Sprint(ids)}, webhookDirective("")+"\n\t"+e.proxy(false))
}

// proxy is the directive that passes requests on to the backend.
func (e *environment) proxy(buffers bool) string {
	proxy := "reverse_proxy " + e.backend
	if buffers {
		proxy += " {\n\t\trequest_buffers 2MiB\n\t}" // Caddy's limit must be above the body's size
	}
	return proxy
}

func webhookDirective(options string) string {
	return fmt.Sprintf("buzzbip_webhook %s {\n\t\t%s\n\t}", secret, options)
}

// startRedis returns the URL of a Redis, which is stopped at the end.
func (e *environment) startRedis(ctx context.Context) (string, error) {
	if e.redis != "" {
		return e.redis, nil
	}
	if _, err := exec.LookPath("redis-server"); err != nil {
		return "", skipped("there is no redis-server")
	}
	addresses, err := freeAddresses(1)
	if err != nil {
		return "", err
	}
	_, port, _ := strings.Cut(addresses[0], ":")
	g := &gateway{name: "redis-server", address: map[string]string{"redis": addresses[0]}}
	cmd := exec.Command("redis-server", "--bind", "127.0.0.1", "--port", port, "--dir", e.dir, "--save", "", "--appendonly", "no") //nolint:gosec // a number and a directory of the bench
	if err := g.start(ctx, e.dir, cmd); err != nil {
		return "", err
	}
	e.cleanup = append(e.cleanup, g.stop)
	e.redis = "redis://" + addresses[0]
	return e.redis, nil
}
