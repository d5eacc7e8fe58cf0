package main

import (
	"context"
	"fmt"
	"io"
	"time"
)

// Collector is what Go's garbage collector costs a Caddy that remembers a number
// of IDs, with events of 64 KiB, which make the most garbage.
type Collector struct {
	IDs         int     `json:"ids"`
	CPU         float64 `json:"cpu_us"`   // of a request
	Share       float64 `json:"gc_share"` // of the CPU time, as Go's runtime counts it
	Collections int     `json:"collections"`
	Pause       float64 `json:"longest_pause_us"`
	P99         spread  `json:"p99_us"`
	ResidentMiB float64 `json:"resident_mib"`
}

// measureCollector sends events to a gateway that remembers many IDs and to one
// that does not, in turn.
func (e *environment) measureCollector(ctx context.Context, report *Report) error {
	if !e.only.MatchString(collectorName) {
		return nil
	}
	progress("collector: %d IDs", e.ids)
	const size = 64 << 10
	var runs []*collectorRun
	for _, ids := range []int{0, e.ids} {
		g, err := e.startFilled(ctx, ids)
		if err != nil {
			return err
		}
		defer g.stop()
		run := &collectorRun{gateway: g, ids: ids}
		if run.before, run.cpuBefore, err = g.usage(); err != nil {
			return err
		}
		runs = append(runs, run)
	}
	for range e.rounds {
		events := newEvents(e.nextBatch(), size, 2*e.eventsFor(size))
		for _, run := range runs {
			l := newLoad(run.gateway.address[http1], http1, e.connections, events, fresh, passedOn)
			sent, err := l.run(ctx, 2*e.duration, e.requests)
			l.close()
			if err != nil {
				return err
			}
			run.requests += sent.requests
			run.p99s = append(run.p99s, microseconds(percentile(sent.latency, 0.99)))
		}
	}
	for _, run := range runs {
		c, err := run.result()
		if err != nil {
			return err
		}
		report.Collector = append(report.Collector, c)
	}
	return nil
}

// collectorRun is one of the gateways, and what was measured of it so far.
type collectorRun struct {
	gateway   *gateway
	ids       int
	before    runtimeUsage
	cpuBefore time.Duration
	requests  int
	p99s      []float64
}

func (run *collectorRun) result() (Collector, error) {
	after, cpu, err := run.gateway.usage()
	if err != nil {
		return Collector{}, err
	}
	c := Collector{
		IDs:         run.ids,
		CPU:         microseconds(cpu-run.cpuBefore) / float64(run.requests),
		Share:       divide(after.gcSeconds-run.before.gcSeconds, after.busySeconds-run.before.busySeconds),
		Collections: int(after.collections - run.before.collections),
		Pause:       microseconds(after.longestPause(run.before)),
		P99:         spreadOf(run.p99s),
	}
	if resident, err := residentMemory(run.gateway.cmd.Process.Pid); err == nil {
		c.ResidentMiB = float64(resident) / (1 << 20)
	}
	return c, nil
}

func (r *Report) writeCollector(w io.Writer) {
	if len(r.Collector) == 0 {
		return
	}
	fmt.Fprint(w, "\n### Memory and pauses\n\n64KiB events over HTTP/1.1, `store memory`. With more memory in use, the collector runs less often.\n\n")
	fmt.Fprint(w, "| IDs remembered | CPU (µs) | GC, of the CPU time | collections | longest pause (µs), of the last 256 | p99 (ms) | resident (MiB) |\n|---|---|---|---|---|---|---|\n")
	for _, c := range r.Collector {
		fmt.Fprintf(w, "| %d | %.1f | %.1f %% | %d | %.0f | %s | %.0f |\n", c.IDs, c.CPU, c.Share*100, c.Collections, c.Pause,
			c.P99.scaled(1e-3).format("%.2f"), c.ResidentMiB)
	}
}
