package main

import (
	"fmt"
	"io"
	"math"
	"slices"
)

// withoutPlugin are scenarios that no change of the plugin makes worse.
var withoutPlugin = []string{baseline, "plain-again", "plain+buffers", "respond", "nginx", "nginx+lua", "express"}

// writeComparison says what is worse, and what is better, in a new report than
// in an old one: what differs by more than the quartiles of both, and by more
// than two processes without the plugin differ in the new one.
func writeComparison(w io.Writer, old, now *Report) {
	fmt.Fprintf(w, "\n### Compared with %s (%s)\n\n", old.Date, old.Machine)
	if old.Machine != now.Machine {
		fmt.Fprint(w, "The machine is another one: ratios can be compared, with care.\n\n")
	}
	compared, lines := 0, 0
	for _, c := range now.Cells {
		before, found := old.cell(c.Scenario, c.Protocol, c.Size)
		if !found || slices.Contains(withoutPlugin, c.Scenario) {
			continue
		}
		compared++
		again, found := now.cell("plain-again", c.Protocol, c.Size)
		chance := func(ratio spread) float64 {
			if !found {
				return 0
			}
			return math.Abs(ratio.Median - 1)
		}
		for _, m := range []struct {
			name         string
			before, now  spread
			margin       float64
			moreIsBetter bool
			verb         string
		}{
			{"CPU, ratio", before.CPURatio, c.CPURatio, chance(again.CPURatio), false, "%.2f"},
			{"throughput, ratio", before.ThroughputRatio, c.ThroughputRatio, chance(again.ThroughputRatio), true, "%.2f"},
			{"p99, ratio", before.P99Ratio, c.P99Ratio, chance(again.P99Ratio), false, "%.2f"},
			{"allocations", before.Allocs, c.Allocs, 0.5, false, "%.1f"},
		} {
			more, less := differs(m.before, m.now, m.margin)
			if !more && !less {
				continue
			}
			verdict := "better"
			if more != m.moreIsBetter {
				verdict = "**worse**"
			}
			fmt.Fprintf(w, "- %s: %s, %s: %s, was %s\n", verdict, cellName(c.Scenario, c.Protocol, c.Size), m.name, m.now.format(m.verb), m.before.format(m.verb))
			lines++
		}
	}
	switch {
	case compared == 0:
		fmt.Fprintln(w, "Nothing was measured in both.")
	case lines == 0:
		fmt.Fprintln(w, "Nothing differs by more than the spread.")
	}
}

// differs reports whether there is more than a margin between the quartiles, and
// which are higher.
func differs(before, now spread, margin float64) (more, less bool) {
	return now.Low > before.High+margin, now.High < before.Low-margin
}
