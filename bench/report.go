package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// Report is what a run has measured.
type Report struct {
	Date        string         `json:"date"`
	Machine     string         `json:"machine"`
	Caddy       string         `json:"caddy"`
	Rounds      int            `json:"rounds"`
	Duration    string         `json:"duration"`
	Connections int            `json:"connections"`
	Cells       []Cell         `json:"cells"`
	HMAC        map[int]spread `json:"hmac_us"` // by size
	Collector   []Collector    `json:"collector,omitempty"`
	Outage      *Outage        `json:"outage,omitempty"`
	Flood       *Flood         `json:"flood,omitempty"`
	SlowBodies  *SlowBodies    `json:"slow_bodies,omitempty"`
	Skipped     []string       `json:"skipped,omitempty"`
}

// Cell is one scenario with one protocol and one size. Each ratio is that to
// plain reverse_proxy in the same round.
type Cell struct {
	Scenario string `json:"scenario"`
	About    string `json:"about"`
	Protocol string `json:"protocol"`
	Size     int    `json:"size"`

	CPU             spread `json:"cpu_us"`
	CPURatio        spread `json:"cpu_ratio"`
	CPUExtra        spread `json:"cpu_extra_us"`
	InboxRatio      spread `json:"cpu_ratio_without_inbox,omitzero"` // to the same without an inbox
	Throughput      spread `json:"requests_per_second"`
	ThroughputRatio spread `json:"throughput_ratio"`
	P50             spread `json:"p50_us"`
	P99             spread `json:"p99_us"`
	P99Ratio        spread `json:"p99_ratio"`
	// Of Go programs only, otherwise zero.
	Allocs  spread  `json:"allocs"`
	Bytes   spread  `json:"alloc_bytes"`
	GCShare float64 `json:"gc_share"`            // of the CPU time of all rounds, as Go's runtime counts it
	Pause   float64 `json:"longest_gc_pause_us"` // of all rounds
}

func newReport(o options) *Report {
	version, _ := caddy.Version()
	return &Report{
		Date:    time.Now().UTC().Format(time.DateOnly),
		Machine: fmt.Sprintf("%s, %d CPUs, %s/%s, %s", processor(), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version()),
		Caddy:   version, Rounds: o.rounds, Duration: o.duration.String(), Connections: o.connections,
		HMAC: make(map[int]spread),
	}
}

// processor returns the name of the CPU, where /proc has it.
func processor() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

// summarize adds a cell for each scenario of a group, from its rounds by scenario.
func (r *Report) summarize(g group, results map[string][]round) {
	plain := results[baseline]
	for _, s := range g.scenarios {
		rounds := results[s.name]
		over := func(value func(n int) float64) spread {
			values := make([]float64, len(rounds))
			for n := range rounds {
				values[n] = value(n)
			}
			return spreadOf(values)
		}
		c := Cell{
			Scenario: s.name, About: s.about, Protocol: g.protocol, Size: g.size,
			CPU:             over(func(n int) float64 { return rounds[n].cpu }),
			CPURatio:        over(func(n int) float64 { return divide(rounds[n].cpu, plain[n].cpu) }),
			CPUExtra:        over(func(n int) float64 { return rounds[n].cpu - plain[n].cpu }),
			Throughput:      over(func(n int) float64 { return rounds[n].throughput }),
			ThroughputRatio: over(func(n int) float64 { return divide(rounds[n].throughput, plain[n].throughput) }),
			P50:             over(func(n int) float64 { return rounds[n].p50 }),
			P99:             over(func(n int) float64 { return rounds[n].p99 }),
			P99Ratio:        over(func(n int) float64 { return divide(rounds[n].p99, plain[n].p99) }),
			Allocs:          over(func(n int) float64 { return rounds[n].mallocs }),
			Bytes:           over(func(n int) float64 { return rounds[n].bytes }),
		}
		if rest, inbox := strings.CutPrefix(s.name, "inbox"); inbox && results["memory"+rest] != nil {
			c.InboxRatio = over(func(n int) float64 { return divide(rounds[n].cpu, results["memory"+rest][n].cpu) })
		}
		var gc, busy float64
		for _, one := range rounds {
			c.Pause = max(c.Pause, one.pause)
			gc, busy = gc+one.gc, busy+one.busy
		}
		c.GCShare = divide(gc, busy)
		r.Cells = append(r.Cells, c)
	}
}

// cell returns the cell of a scenario, if it was measured.
func (r *Report) cell(scenario, protocol string, size int) (Cell, bool) {
	n := slices.IndexFunc(r.Cells, func(c Cell) bool {
		return c.Scenario == scenario && c.Protocol == protocol && c.Size == size
	})
	if n < 0 {
		return Cell{}, false
	}
	return r.Cells[n], true
}

// writeMarkdown writes tables, and the verdict on the targets.
func (r *Report) writeMarkdown(w io.Writer) {
	fmt.Fprintf(w, "%s; %s; Caddy %s; %d rounds of %s each, %d connections.\n", r.Date, r.Machine, r.Caddy, r.Rounds, r.Duration, r.Connections)
	fmt.Fprintf(w, "Medians, with the quartiles of the rounds in parentheses. Ratios are to plain `reverse_proxy` in the same round. Pauses include the time that the system gave to others.\n")
	for n, c := range r.Cells {
		if n == 0 || c.Protocol != r.Cells[n-1].Protocol || c.Size != r.Cells[n-1].Size {
			fmt.Fprintf(w, "\n### %s, %s\n\n", strings.ToUpper(c.Protocol), formatSize(c.Size))
			fmt.Fprintln(w, "| scenario | | CPU (µs) | ratio | extra (µs) | throughput (1/s) | ratio | p50 (ms) | p99 (ms) | ratio | allocations | KiB | GC | longest pause (µs) |")
			fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
		}
		fmt.Fprintf(w, "| %s | %s | %.1f | %s | %s | %.0f | %s | %.2f | %.2f | %s |%s\n", c.Scenario, c.About,
			c.CPU.Median, c.CPURatio.format("%.2f"), c.CPUExtra.format("%+.1f"), c.Throughput.Median, c.ThroughputRatio.format("%.2f"),
			c.P50.Median/1000, c.P99.Median/1000, c.P99Ratio.format("%.2f"), c.runtimeColumns())
	}
	if len(r.HMAC) > 0 {
		fmt.Fprint(w, "\nThe bare HMAC of a body, in µs:")
		for _, size := range slices.Sorted(maps.Keys(r.HMAC)) {
			fmt.Fprintf(w, " %s %.1f;", formatSize(size), r.HMAC[size].Median)
		}
		fmt.Fprintln(w)
	}
	r.writeCollector(w)
	r.writeOutage(w)
	r.writeAttacks(w)
	r.writeTargets(w)
	if len(r.Skipped) > 0 {
		fmt.Fprint(w, "\n### Not measured\n\n")
		for _, line := range r.Skipped {
			fmt.Fprintf(w, "- %s\n", line)
		}
	}
}

// runtimeColumns are those that only Caddy has.
func (c Cell) runtimeColumns() string {
	if c.Allocs.Median == 0 {
		return " | | | |"
	}
	gc := "" // another build does not tell
	if c.GCShare > 0 {
		gc = fmt.Sprintf("%.1f %%", c.GCShare*100)
	}
	return fmt.Sprintf(" %.0f | %.1f | %s | %.0f |", c.Allocs.Median, c.Bytes.Median/1024, gc, c.Pause)
}

// format writes the median and, in parentheses, the quartiles if they differ.
func (s spread) format(verb string) string {
	median, low, high := fmt.Sprintf(verb, s.Median), fmt.Sprintf(verb, s.Low), fmt.Sprintf(verb, s.High)
	if low == high {
		return median
	}
	return fmt.Sprintf("%s (%s–%s)", median, low, high)
}

func (r *Report) writeJSON(file string) error {
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644) //nolint:gosec // to be read by all
}

func readReport(file string) (*Report, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := new(Report)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s is not written by -json: %w", file, err)
	}
	return r, nil
}
