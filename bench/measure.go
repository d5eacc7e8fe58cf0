package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"time"
)

// What -only calls what is measured after the scenarios.
const (
	collectorName = "collector"
	floodName     = "attack flood"
	slowName      = "attack slow bodies"
	outageName    = "outage"
)

// group is what is measured with the same protocol and events of the same size,
// one after the other.
type group struct {
	protocol  string
	size      int
	scenarios []scenario // the first is the baseline
}

// groupsOf returns what -sizes and -only leave, and the baseline of it.
func groupsOf(o options) (groups []group) {
	for _, protocol := range []string{http1, http2} {
		for _, size := range o.sizes {
			g := group{protocol: protocol, size: size}
			for _, s := range scenarios(o) {
				if s.takes(protocol, size) && (s.name == baseline || o.only.MatchString(cellName(s.name, protocol, size))) {
					g.scenarios = append(g.scenarios, s)
				}
			}
			if len(g.scenarios) > 1 || len(g.scenarios) == 1 && o.only.MatchString(cellName(baseline, protocol, size)) {
				groups = append(groups, g)
			}
		}
	}
	return groups
}

func cellName(scenario, protocol string, size int) string {
	return scenario + " " + protocol + " " + formatSize(size)
}

// round is one measurement; times in µs.
type round struct {
	cpu            float64 // of a request
	gc, busy       float64 // seconds, as Go's runtime counts them
	throughput     float64 // requests a second
	p50, p99       float64
	mallocs, bytes float64 // of a request
	pause          float64 // the longest
}

// measureAll measures everything that the options ask for.
func measureAll(ctx context.Context, o options) (*Report, error) {
	if len(groupsOf(o)) == 0 && !o.only.MatchString(collectorName) && !o.only.MatchString(floodName) && !o.only.MatchString(slowName) && !o.only.MatchString(outageName) {
		return nil, errors.New("-only matches no scenario")
	}
	debug.SetGCPercent(400) // the senders' collector is not what is measured
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "caddy-webhook-bench")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	backend, stop, err := startBackend(self)
	if err != nil {
		return nil, err
	}
	e := &environment{options: o, self: self, dir: dir, backend: backend, cleanup: []func(){stop}}
	defer e.close()

	report := newReport(o)
	if err := e.measureScenarios(ctx, report); err != nil {
		return nil, err
	}
	if err := e.measureCollector(ctx, report); err != nil {
		return nil, fmt.Errorf("collector: %w", err)
	}
	if err := e.measureOutage(ctx, report); err != nil {
		return nil, fmt.Errorf("%s: %w", outageName, err)
	}
	if err := e.measureAttacks(ctx, report); err != nil {
		return nil, err
	}
	return report, nil
}

// measureScenarios measures all groups. Each has new processes: what larger
// events leave in the pools of a process makes its collector run less often, and
// so makes smaller events cheaper.
func (e *environment) measureScenarios(ctx context.Context, report *Report) error {
	for _, g := range groupsOf(e.options) {
		if err := e.measureGroup(ctx, report, g); err != nil {
			return err
		}
	}
	return nil
}

// measureGroup measures the scenarios of a group in turn, several rounds.
func (e *environment) measureGroup(ctx context.Context, report *Report, group group) error {
	progress("%s, %s", group.protocol, formatSize(group.size))
	gateways, err := e.startAll(ctx, report, &group)
	defer func() {
		for _, g := range gateways {
			g.stop()
		}
	}()
	if err != nil {
		return err
	}
	results := make(map[string][]round) // by scenario
	var hmacs []float64
	for n := range e.rounds {
		events := newEvents(e.nextBatch(), group.size, e.eventsFor(group.size))
		hmacs = append(hmacs, microseconds(timeHMAC(events.body)))
		for k := range group.scenarios {
			s := group.scenarios[(k+n)%len(group.scenarios)]
			r, err := e.measure(ctx, gateways[s.gateway], s, group.protocol, events)
			if err != nil {
				return fmt.Errorf("%s: %w", cellName(s.name, group.protocol, group.size), err)
			}
			results[s.name] = append(results[s.name], r)
		}
	}
	report.HMAC[group.size] = spreadOf(hmacs)
	report.summarize(group, results)
	return e.writeProfiles(ctx, group, gateways)
}

// startAll starts the gateways of a group. Scenarios whose gateway cannot be had
// leave the group. The gateways must be stopped also if there is an error.
func (e *environment) startAll(ctx context.Context, report *Report, group *group) (map[string]*gateway, error) {
	gateways := make(map[string]*gateway)
	unavailable := make(map[string]bool)
	for _, s := range group.scenarios {
		if gateways[s.gateway] != nil || unavailable[s.gateway] {
			continue
		}
		g, err := e.start(ctx, s.gateway)
		switch {
		case errors.Is(err, errSkipped):
			unavailable[s.gateway] = true
			if line := fmt.Sprintf("%s: %v", s.name, err); !slices.Contains(report.Skipped, line) {
				report.Skipped = append(report.Skipped, line)
				progress("%s", line)
			}
		case err != nil:
			return gateways, err
		default:
			gateways[s.gateway] = g
		}
	}
	group.scenarios = slices.DeleteFunc(group.scenarios, func(s scenario) bool { return unavailable[s.gateway] })
	return gateways, nil
}

// eventsFor returns how many events are more than a measurement can send, or
// what -requests allows.
func (e *environment) eventsFor(size int) int {
	warmUp := 2*e.connections + 1
	n := warmUp + int(2.2*e.duration.Seconds()*float64(eventsPerSecond(size)))
	if e.requests > 0 {
		n = min(n, warmUp+2*e.requests)
	}
	return n
}

// eventsPerSecond is more than a gateway can deliver on a few cores.
func eventsPerSecond(size int) int { return min(30_000, 1<<30/size) }

// measure is one measurement of one scenario.
func (e *environment) measure(ctx context.Context, g *gateway, s scenario, protocol string, events *events) (r round, err error) {
	l := newLoad(g.address[protocol], protocol, e.connections, events, s.kind, s.want)
	defer l.close()
	if err := l.prepare(); err != nil {
		return r, err
	}
	warmUp := e.requests
	if warmUp == 0 {
		warmUp = events.fresh() / 2
	}
	if _, err := l.run(ctx, e.duration, warmUp); err != nil {
		return r, err
	}
	before, _, err := g.usage()
	if err != nil {
		return r, err
	}
	cpuBefore, err := g.cpu() // without what the above has used
	if err != nil {
		return r, err
	}
	sent, err := l.run(ctx, e.duration, e.requests)
	if err != nil {
		return r, err
	}
	after, cpuAfter, err := g.usage()
	if err != nil {
		return r, err
	}
	if sent.requests == 0 {
		return r, errors.New("nothing was sent")
	}
	count := float64(sent.requests)
	r = round{
		cpu:        microseconds(cpuAfter-cpuBefore) / count,
		gc:         after.gcSeconds - before.gcSeconds,
		busy:       after.busySeconds - before.busySeconds,
		throughput: count / sent.elapsed.Seconds(),
		p50:        microseconds(percentile(sent.latency, 0.5)),
		p99:        microseconds(percentile(sent.latency, 0.99)),
		mallocs:    float64(after.mallocs-before.mallocs) / count,
		bytes:      float64(after.bytes-before.bytes) / count,
		pause:      microseconds(after.longestPause(before)),
	}
	return r, nil
}

// timeHMAC returns how long the bare HMAC of a body takes.
func timeHMAC(body []byte) time.Duration {
	mac := hmac.New(sha256.New, []byte(secret))
	n := max(10, 1<<20/len(body))
	best := time.Hour
	for range 5 {
		began := time.Now()
		for range n {
			sign(mac, body)
		}
		best = min(best, time.Since(began)/time.Duration(n))
	}
	return best
}
