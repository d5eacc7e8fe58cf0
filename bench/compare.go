package main

import (
	"fmt"
	"io"
)

// writeComparison says what is worse, and what is better, in a new report than
// in an old one: what differs by more than the quartiles of both.
func writeComparison(w io.Writer, old, now *Report) {
	fmt.Fprintf(w, "\n### Compared with %s (%s)\n\n", old.Date, old.Machine)
	if old.Machine != now.Machine {
		fmt.Fprint(w, "The machine is another one: ratios can be compared, with care.\n\n")
	}
	compared, lines := 0, 0
	for _, c := range now.Cells {
		before, found := old.cell(c.Scenario, c.Protocol, c.Size)
		if !found || c.Scenario == baseline {
			continue
		}
		compared++
		for _, m := range []struct {
			name         string
			before, now  spread
			moreIsBetter bool
			verb         string
		}{
			{"CPU, ratio", before.CPURatio, c.CPURatio, false, "%.2f"},
			{"throughput, ratio", before.ThroughputRatio, c.ThroughputRatio, true, "%.2f"},
			{"p99, ratio", before.P99Ratio, c.P99Ratio, false, "%.2f"},
			{"allocations", before.Allocs, c.Allocs, false, "%.1f"},
		} {
			more, less := differs(m.before, m.now)
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

// differs reports whether the quartiles do not overlap, and which are higher.
func differs(before, now spread) (more, less bool) {
	return now.Low > before.High, now.High < before.Low
}
