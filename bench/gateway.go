package main

import (
	"context"
	"encoding/json"
	"errors"
	"expvar"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/buzzbip/caddy-webhook"
	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/dedupe/memory"
)

// gateway is a process that requests go through.
type gateway struct {
	name    string
	address map[string]string // by protocol
	admin   string            // of Caddy; otherwise empty
	cmd     *exec.Cmd
	stdin   io.Closer
	log     string // path
	ended   chan struct{}
}

// runCaddy is "bench caddy <ids> <arguments of Caddy>": Caddy whose memory store
// remembers a number of IDs from the start.
func runCaddy(args []string) {
	endWithParent()
	ids, err := strconv.Atoi(args[0])
	if err == nil {
		err = fill(ids)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	expvar.Publish("cpu_seconds", expvar.Func(func() any {
		samples := []metrics.Sample{
			{Name: "/cpu/classes/gc/total:cpu-seconds"}, {Name: "/cpu/classes/total:cpu-seconds"}, {Name: "/cpu/classes/idle:cpu-seconds"},
		}
		metrics.Read(samples)
		return cpuSeconds{GC: samples[0].Value.Float64(), Busy: samples[1].Value.Float64() - samples[2].Value.Float64()}
	}))
	os.Args = append([]string{"caddy"}, args[1:]...)
	caddycmd.Main()
}

// cpuSeconds are estimates of Go's runtime, until the latest collection. They can
// be compared with each other, not with what the operating system counts.
type cpuSeconds struct{ GC, Busy float64 }

// fill makes the memory store of this process remember n IDs.
func fill(n int) error {
	if n == 0 {
		return nil
	}
	store := &memory.Store{Capacity: &n}
	if err := store.Provision(caddy.Context{}); err != nil {
		return err
	}
	ctx := context.Background()
	for i := range n {
		id := fmt.Sprintf("evt_filler_%d", i)
		verdict, err := store.Claim(ctx, dedupe.Request{
			Scope: "filler", Key: dedupe.KeyOf(id), Digest: dedupe.Digest(i), Retention: 24 * time.Hour,
		})
		if err != nil {
			return err
		}
		if err := store.Settle(ctx, verdict.Claim, true); err != nil {
			return err
		}
	}
	// Like a process that has run for a while, this one has used all of the
	// heap that its size allows.
	var before, now runtime.MemStats
	var garbage [16][]byte
	for runtime.ReadMemStats(&before); now.NumGC < before.NumGC+3; runtime.ReadMemStats(&now) {
		for i := range 1 << 14 {
			garbage[i%len(garbage)] = make([]byte, 1<<10)
		}
	}
	runtime.KeepAlive(&garbage)
	return nil
}

// startCaddy runs a binary, with some arguments first, that serves the same
// directives over HTTP/1.1 and over HTTP/2, each at an address of its own.
func startCaddy(ctx context.Context, dir, name string, command []string, directives string) (*gateway, error) {
	addresses, err := freeAddresses(3)
	if err != nil {
		return nil, err
	}
	port := func(address string) string { return address[strings.LastIndex(address, ":"):] }
	config := fmt.Sprintf(`{
	admin %s
	auto_https off
	persist_config off
	grace_period 1s
	default_bind 127.0.0.1
	servers %s {
		protocols h1
	}
	servers %s {
		protocols h1 h2c
	}
}
http://%s, http://%s {
	%s
}
`, addresses[2], addresses[0], addresses[1], port(addresses[0]), port(addresses[1]), directives)
	file := filepath.Join(dir, name+".Caddyfile")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	g := &gateway{name: name, address: map[string]string{http1: addresses[0], http2: addresses[1]}, admin: addresses[2]}
	args := append(command[1:len(command):len(command)], "run", "--config", file)
	cmd := exec.Command(command[0], args...) //nolint:gosec // this program, or what the user has named
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	return g, g.start(ctx, dir, cmd)
}

// start runs a command and returns when it listens at the gateway's addresses.
func (g *gateway) start(ctx context.Context, dir string, cmd *exec.Cmd) error {
	g.log = filepath.Join(dir, g.name+".log")
	log, err := os.Create(g.log)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if g.stdin, err = cmd.StdinPipe(); err != nil {
		return err
	}
	g.cmd, g.ended = cmd, make(chan struct{})
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		_ = cmd.Wait()
		close(g.ended)
	}()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		if g.listens() {
			return nil
		}
		select {
		case <-g.ended:
			err = errors.New("it ended")
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(20 * time.Millisecond):
			if time.Now().After(deadline) {
				err = errors.New("it does not listen")
			}
		}
		if err != nil {
			g.stop()
			text, _ := os.ReadFile(g.log)
			return fmt.Errorf("%s did not start: %w\n%s", g.name, err, text)
		}
	}
}

func (g *gateway) listens() bool {
	for _, address := range g.address {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return false
		}
		_ = conn.Close()
	}
	return true
}

// stop ends the process, and those that it has started. What it had is of no
// use any more, so it need not be graceful.
func (g *gateway) stop() {
	pids := children(g.cmd.Process.Pid)
	_ = g.stdin.Close()
	_ = g.cmd.Process.Kill()
	<-g.ended
	for _, pid := range pids {
		if process, err := os.FindProcess(pid); err == nil {
			_ = process.Kill()
		}
	}
}

// usage returns what the gateway has used. Reading what Go's runtime has counted
// takes CPU time, so at the end of a measurement it comes last.
func (g *gateway) usage() (u runtimeUsage, cpu time.Duration, err error) {
	if cpu, err = g.cpu(); err != nil || g.admin == "" {
		return u, cpu, err
	}
	u, err = readRuntime(g.admin)
	return u, cpu, err
}

// cpu returns the CPU time that the gateway's processes have used.
func (g *gateway) cpu() (total time.Duration, err error) {
	for _, pid := range append(children(g.cmd.Process.Pid), g.cmd.Process.Pid) {
		used, err := cpuTime(pid)
		if err != nil {
			return 0, err
		}
		total += used
	}
	return total, nil
}

// runtimeUsage is what Go's runtime has counted in Caddy.
type runtimeUsage struct {
	mallocs, bytes         uint64
	gcSeconds, busySeconds float64 // see cpuSeconds; only of this program's Caddy
	collections            uint32
	pauses                 [256]uint64 // ns, circular
}

// readRuntime reads the variables at Caddy's admin endpoint.
func readRuntime(admin string) (u runtimeUsage, err error) {
	var vars struct {
		Memstats struct {
			Mallocs, TotalAlloc uint64
			NumGC               uint32
			PauseNs             [256]uint64
		} `json:"memstats"`
		CPU cpuSeconds `json:"cpu_seconds"`
	}
	if err := getJSON(admin, "/debug/vars", &vars); err != nil {
		return u, err
	}
	m := vars.Memstats
	return runtimeUsage{m.Mallocs, m.TotalAlloc, vars.CPU.GC, vars.CPU.Busy, m.NumGC, m.PauseNs}, nil
}

func getJSON(admin, path string, to any) error {
	client := &http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	res, err := client.Get("http://" + admin + path)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, res.Status)
	}
	return json.NewDecoder(res.Body).Decode(to)
}

// longestPause returns the longest pause of the collections after an earlier
// reading, of the last 256.
func (u runtimeUsage) longestPause(before runtimeUsage) (longest time.Duration) {
	for n := max(before.collections, u.collections-min(u.collections, 256)); n < u.collections; n++ {
		longest = max(longest, time.Duration(u.pauses[n%256]))
	}
	return longest
}

// freeAddresses returns addresses on loopback that nobody listens at.
func freeAddresses(n int) (addresses []string, err error) {
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer listener.Close() //nolint:gocritic // only now: the others must be other ones
		addresses = append(addresses, listener.Addr().String())
	}
	return addresses, nil
}
