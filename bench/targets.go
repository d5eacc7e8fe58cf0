package main

import (
	"fmt"
	"io"
)

// target is something that the project wants to reach.
type target struct {
	about    string
	measured float64
	spread   string
	limit    float64
	atLeast  bool // otherwise at most
	verb     string
}

func (t target) met() bool {
	if t.atLeast {
		return t.measured >= t.limit
	}
	return t.measured <= t.limit
}

// targets returns the targets that the report can judge.
func (r *Report) targets() (list []target) {
	ratio := func(about string, s spread, limit float64, atLeast bool) {
		list = append(list, target{about, s.Median, s.format("%.2f"), limit, atLeast, "%.2f"})
	}
	for _, protocol := range []string{http1, http2} {
		for _, limit := range []struct {
			size  int
			extra float64 // µs
		}{{1 << 10, 8}, {4 << 10, 12}, {64 << 10, 90}} {
			where := ", " + protocol + ", " + formatSize(limit.size)
			if c, found := r.cell("memory+buffers", protocol, limit.size); found {
				ratio("CPU with `request_buffers`, ratio"+where, c.CPURatio, 1, false)
			}
			if c, found := r.cell("memory", protocol, limit.size); found {
				list = append(list, target{"extra CPU, µs" + where, c.CPUExtra.Median, c.CPUExtra.format("%+.1f"), limit.extra, false, "%.0f"})
				ratio("throughput, ratio"+where, c.ThroughputRatio, 0.95, true)
				ratio("p99, ratio"+where, c.P99Ratio, 1.10, false)
			}
		}
	}
	list = append(list, r.rejectionTargets()...)
	if f := r.Flood; f != nil {
		list = append(list, target{"p99 of deliveries during a flood of forged requests, ratio to calm", f.Ratio.Median, f.Ratio.format("%.2f"), 2, false, "%.1f"})
	}
	if s := r.SlowBodies; s != nil {
		list = append(list, target{"resident memory of a connection with a slow body, KiB", s.KiBEach, "", 16, false, "%.0f"},
			target{"connections with a slow body that were not answered 408 in time", float64(s.Connections - s.Rejected), "", 0, false, "%.0f"},
			target{"goroutines that remained of them", float64(s.GoroutinesAfter - s.GoroutinesBefore), "", 10, false, "%.0f"})
	}
	return list
}

// rejectionTargets are those of requests that the plugin answers itself.
func (r *Report) rejectionTargets() (list []target) {
	for _, size := range usual {
		plain, _ := r.cell(baseline, http1, size)
		respond, found := r.cell("respond", http1, size)
		if !found {
			continue
		}
		where := ", " + formatSize(size)
		if c, found := r.cell("duplicate", http1, size); found {
			list = append(list, target{"a duplicate: `respond` + 8 µs" + where, c.CPU.Median, c.CPU.format("%.1f"), respond.CPU.Median + 8, false, "%.1f"})
		}
		c, found := r.cell("forged", http1, size)
		if !found {
			continue
		}
		if size == 64<<10 {
			list = append(list, target{"a forged request: `respond` + HMAC + 5 µs" + where, c.CPU.Median, c.CPU.format("%.1f"),
				respond.CPU.Median + r.HMAC[size].Median + 5, false, "%.1f"})
		} else if ours, found := r.cell("memory", http1, size); found {
			list = append(list, target{"a forged request: a delivery − (plain − `respond`), µs" + where, c.CPU.Median, c.CPU.format("%.1f"),
				ours.CPU.Median - (plain.CPU.Median - respond.CPU.Median), false, "%.1f"})
		}
	}
	return list
}

func (r *Report) writeTargets(w io.Writer) {
	list := r.targets()
	if len(list) == 0 {
		return
	}
	fmt.Fprint(w, "\n### Targets\n\n| target | limit | measured | |\n|---|---|---|---|\n")
	for _, t := range list {
		sign, verdict := "≤ ", "**not met**"
		if t.atLeast {
			sign = "≥ "
		}
		if t.met() {
			verdict = "met"
		}
		measured := t.spread
		if measured == "" {
			measured = fmt.Sprintf("%.1f", t.measured)
		}
		fmt.Fprintf(w, "| %s | %s"+t.verb+" | %s | %s |\n", t.about, sign, t.limit, measured, verdict)
	}
}
