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
	if !e.only.MatchString("collector") {
		return nil
	}
	progress("collector: %d IDs", e.ids)
	const size = 64 << 10
	var gateways []*gateway
	defer func() {
		for _, g := range gateways {
			g.stop()
		}
	}()
	results := []Collector{{IDs: 0}, {IDs: e.ids}}
	p99s := make([][]float64, len(results))
	before := make([]runtimeUsage, len(results))
	cpuBefore := make([]time.Duration, len(results))
	for n, result := range results {
		g, err := e.startFilled(ctx, result.IDs)
		if err != nil {
			return err
		}
		gateways = append(gateways, g)
		if before[n], err = readRuntime(g.admin); err != nil {
			return err
		}
		if cpuBefore[n], err = g.cpu(); err != nil {
			return err
		}
	}
	duration := 2 * e.duration
	requests := make([]int, len(results))
	for range e.rounds {
		events := newEvents(e.nextBatch(), size, 2*e.eventsFor(size))
		for n, g := range gateways {
			l := newLoad(g.address[http1], http1, e.connections, events, fresh, passedOn)
			sent, err := l.run(ctx, duration, e.requests)
			l.close()
			if err != nil {
				return err
			}
			requests[n] += sent.requests
			p99s[n] = append(p99s[n], microseconds(percentile(sent.latency, 0.99)))
		}
	}
	for n, g := range gateways {
		after, err := readRuntime(g.admin)
		if err != nil {
			return err
		}
		cpu, err := g.cpu()
		if err != nil {
			return err
		}
		r := &results[n]
		r.CPU = microseconds(cpu-cpuBefore[n]) / float64(requests[n])
		r.Share = divide(after.gcSeconds-before[n].gcSeconds, after.busySeconds-before[n].busySeconds)
		r.Collections = int(after.collections - before[n].collections)
		r.Pause = microseconds(after.longestPause(before[n]))
		r.P99 = spreadOf(p99s[n])
		if resident, err := residentMemory(g.cmd.Process.Pid); err == nil {
			r.ResidentMiB = float64(resident) / (1 << 20)
		}
	}
	report.Collector = results
	return nil
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
