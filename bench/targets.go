package main

import (
	"fmt"
	"io"
)

// target is something that the project wants to reach.
type target struct {
	about    string
	measured spread
	limit    float64
	atLeast  bool   // otherwise at most
	verb     string // of both numbers
}

func (t target) met() bool {
	if t.atLeast {
		return t.measured.Median >= t.limit
	}
	return t.measured.Median <= t.limit
}

// targets returns the targets that the report can judge.
func (r *Report) targets() (list []target) {
	for _, protocol := range []string{http1, http2} {
		for _, limit := range []struct {
			size  int
			extra float64 // µs
		}{{1 << 10, 8}, {4 << 10, 12}, {64 << 10, 90}} {
			where := ", " + protocol + " " + formatSize(limit.size)
			if c, found := r.cell("memory+buffers", protocol, limit.size); found {
				list = append(list, target{"CPU with `request_buffers`, ratio" + where, c.CPURatio, 1, false, "%.2f"})
				list = append(list, c.speedTargets(" with `request_buffers`, ratio"+where)...)
			}
			if c, found := r.cell("memory", protocol, limit.size); found {
				list = append(list, target{"extra CPU, µs" + where, c.CPUExtra, limit.extra, false, "%+.1f"})
				list = append(list, c.speedTargets(", ratio"+where)...)
			}
		}
	}
	list = append(list, r.rejectionTargets()...)
	list = append(list, r.inboxTargets()...)
	if f := r.Flood; f != nil {
		list = append(list, target{"p99 of deliveries during a flood of forged requests, ratio to calm", f.Ratio, 2, false, "%.2f"})
	}
	if s := r.SlowBodies; s != nil {
		count := func(n int) spread { return exactly(float64(n)) }
		list = append(list,
			target{"resident memory of a connection with a slow body, KiB", exactly(s.KiBEach), 16, false, "%.1f"},
			target{"connections with a slow body that were not answered 408", count(s.Connections - s.Rejected), 0, false, "%.0f"},
			target{"goroutines that remained of them", count(max(0, s.GoroutinesAfter-s.GoroutinesBefore)), 10, false, "%.0f"})
	}
	return list
}

func (c Cell) speedTargets(where string) []target {
	return []target{
		{"throughput" + where, c.ThroughputRatio, 0.95, true, "%.2f"},
		{"p99" + where, c.P99Ratio, 1.10, false, "%.2f"},
	}
}

// exactly is the spread of what was measured once.
func exactly(value float64) spread { return spread{value, value, value} }

// rejectionTargets are those of requests that the plugin answers itself.
func (r *Report) rejectionTargets() (list []target) {
	for _, size := range usual {
		respond, found := r.cell("respond", http1, size)
		if !found {
			continue
		}
		where := ", " + formatSize(size)
		if c, found := r.cell("duplicate", http1, size); found && size == 1<<10 { // the HMAC of larger ones takes longer than that
			list = append(list, target{"CPU of a duplicate, µs: `respond` + 8" + where, c.CPU, respond.CPU.Median + 8, false, "%.1f"})
		}
		c, found := r.cell("forged", http1, size)
		if !found {
			continue
		}
		if size == 64<<10 {
			list = append(list, target{"CPU of a forged request, µs: `respond` + HMAC + 5" + where, c.CPU,
				respond.CPU.Median + r.HMAC[size].Median + 5, false, "%.1f"})
		} else if ours, found := r.cell("memory", http1, size); found {
			plain, _ := r.cell(baseline, http1, size)
			list = append(list, target{"CPU of a forged request, µs: `buzzbip_webhook` − (`reverse_proxy` − `respond`)" + where, c.CPU,
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
		if t.measured.Low <= t.limit && t.limit <= t.measured.High && t.measured.Low < t.measured.High {
			verdict += ", within the spread"
		}
		fmt.Fprintf(w, "| %s | %s"+t.verb+" | %s | %s |\n", t.about, sign, t.limit, t.measured.format(t.verb), verdict)
	}
}
