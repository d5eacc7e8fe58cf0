package main

import (
	"encoding/xml"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// testReport is one of rounds in which the machine was slower and slower: what
// is constant is the ratios.
func testReport() *Report {
	o := options{rounds: 3, duration: time.Second, connections: 4, sizes: []int{1 << 10, 64 << 10}, only: regexp.MustCompile(`plain|memory|duplicate|forged|respond`)}
	cost := map[string]float64{"plain": 100, "plain-again": 100, "plain+buffers": 90, "memory": 107, "memory+buffers": 98, "respond": 30, "duplicate": 40, "forged": 35}
	r := newReport(o)
	for _, g := range groupsOf(o) {
		results := make(map[string][]round)
		for _, s := range g.scenarios {
			for slow := 1.0; slow <= 3; slow++ {
				cpu := cost[s.name] * slow
				results[s.name] = append(results[s.name],
					round{cpu: cpu, gc: 0.05 * slow, busy: 0.5 * slow, throughput: 1e6 / cpu, p50: 10 * cpu, p99: 20 * cpu, mallocs: 200, bytes: 2048, pause: slow})
			}
		}
		r.summarize(g, results)
	}
	r.HMAC = map[int]spread{1 << 10: exactly(0.7), 64 << 10: exactly(30)}
	r.Flood = &Flood{1000, 2000, spread{10, 9, 11}, spread{30, 20, 40}, spread{3, 2, 4}}
	r.SlowBodies = &SlowBodies{Connections: 5000, KiBEach: 15, Rejected: 5000, LastRejected: 10, GoroutinesBefore: 20, GoroutinesAfter: 20}
	r.Collector = []Collector{{IDs: 0, Share: 0.25}, {IDs: 10_000_000, Share: 0.125}}
	r.Skipped = []string{"nginx: not measured: there is no nginx"}
	return r
}

func TestRatiosAreThoseWithinARound(t *testing.T) {
	c, found := testReport().cell("memory", http1, 1<<10)
	if !found {
		t.Fatal("there is no cell")
	}
	if want := (spread{1.07, 1.07, 1.07}); c.CPURatio != want {
		t.Errorf("CPU: %v, want %v", c.CPURatio, want)
	}
	if got := c.CPUExtra.format("%.0f"); got != "14 (10–18)" {
		t.Errorf("extra CPU: %s", got)
	}
	if got := c.ThroughputRatio.format("%.3f"); got != "0.935" {
		t.Errorf("throughput: %s", got)
	}
	if math.Abs(c.GCShare-0.1) > 1e-9 || c.Pause != 3 {
		t.Errorf("collector: %v of the CPU, %v µs", c.GCShare, c.Pause)
	}
}

func TestOnlySelectsScenariosAndTheirBaseline(t *testing.T) {
	o := options{sizes: []int{1 << 10, 4 << 10}, only: regexp.MustCompile(`^memory .*4KiB`)}
	var got []string
	for _, g := range groupsOf(o) {
		for _, s := range g.scenarios {
			got = append(got, cellName(s.name, g.protocol, g.size))
		}
	}
	want := []string{"plain http/1.1 4KiB", "memory http/1.1 4KiB", "plain http/2 4KiB", "memory http/2 4KiB"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestMarkdownShowsEverything(t *testing.T) {
	var text strings.Builder
	testReport().writeMarkdown(&text)
	for _, want := range []string{
		"### HTTP/1.1, 1KiB\n",
		"### HTTP/2, 64KiB\n",
		"| memory | `buzzbip_webhook` | 214.0 | 1.07 | +14.0 (+10.5–+17.5) | 4673 | 0.93 | 2.14 | 4.28 | 1.07 | 200 | 2.0 | 10.0 % | 3 |\n",
		"1KiB 0.7; 64KiB 30.0;",
		"| 10000000 | 0.0 | 12.5 % |",
		"ratio 3.00 (2.00–4.00)",
		"take 15.0 KiB each",
		"| CPU with `request_buffers`, ratio, http/1.1 1KiB | ≤ 1.00 | 0.98 | met |\n",
		"| extra CPU, µs, http/1.1 1KiB | ≤ +8.0 | +14.0 (+10.5–+17.5) | **not met** |\n",
		"| throughput, ratio, http/1.1 1KiB | ≥ 0.95 | 0.93 | **not met** |\n",
		"| CPU of a duplicate, µs: `respond` + 8, 1KiB | ≤ 68.0 | 80.0 (60.0–100.0) | **not met**, within the spread |\n",
		"| CPU of a forged request, µs: `respond` + HMAC + 5, 64KiB | ≤ 95.0 | 70.0 (52.5–87.5) | met |\n",
		"| resident memory of a connection with a slow body, KiB | ≤ 16.0 | 15.0 | met |\n",
		"- nginx: not measured: there is no nginx\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("it lacks %q:\n%s", want, text.String())
		}
	}
}

func TestJSONCanBeReadAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "results.json")
	written := testReport()
	if err := written.writeJSON(file); err != nil {
		t.Fatal(err)
	}
	read, err := readReport(file)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(read, written) {
		t.Errorf("written:\n%+v\nread:\n%+v", written, read)
	}
}

func TestComparisonShowsWhatDiffersByMoreThanTheSpread(t *testing.T) {
	compare := func(change func(*Cell)) string {
		old, now := testReport(), testReport()
		for n := range now.Cells {
			c := &now.Cells[n]
			if c.Scenario == "plain+buffers" { // not of the plugin
				c.Allocs = exactly(999)
			}
			if c.Scenario == "plain-again" {
				c.CPURatio = exactly(1.02)
			}
			if c.Scenario == "memory" && c.Protocol == http1 && c.Size == 1<<10 {
				change(c)
			}
		}
		var text strings.Builder
		writeComparison(&text, old, now)
		return text.String()
	}
	for _, test := range []struct {
		change func(*Cell)
		want   string
	}{
		{func(*Cell) {}, "Nothing differs"},
		{func(c *Cell) { c.CPURatio = spread{1.2, 1.0, 1.3} }, "Nothing differs"},
		{func(c *Cell) { c.CPURatio = spread{1.2, 1.08, 1.3} }, "Nothing differs"}, // by more than two processes do
		{func(c *Cell) { c.Allocs = exactly(200.4) }, "Nothing differs"},
		{func(c *Cell) { c.CPURatio = spread{1.2, 1.1, 1.3} }, "- **worse**: memory http/1.1 1KiB, CPU, ratio: 1.20 (1.10–1.30), was 1.07\n"},
		{func(c *Cell) { c.CPURatio = spread{1.0, 0.9, 1.04} }, "- better: memory http/1.1 1KiB, CPU, ratio"},
		{func(c *Cell) { c.ThroughputRatio = spread{0.8, 0.7, 0.9} }, "- **worse**: memory http/1.1 1KiB, throughput"},
		{func(c *Cell) { c.ThroughputRatio = spread{0.98, 0.97, 0.99} }, "- better: memory http/1.1 1KiB, throughput"},
		{func(c *Cell) { c.Allocs = spread{201, 201, 201} }, "- **worse**: memory http/1.1 1KiB, allocations: 201.0"},
	} {
		if text := compare(test.change); !strings.Contains(text, test.want) || strings.Count(text, "\n- ") > 1 {
			t.Errorf("it says, without only %q:\n%s", test.want, text)
		}
	}
	var text strings.Builder
	writeComparison(&text, new(Report), testReport())
	if !strings.Contains(text.String(), "Nothing was measured in both") {
		t.Errorf("with nothing to compare it says:\n%s", text.String())
	}
}

func TestChartIsXMLWithABarForEachScenario(t *testing.T) {
	file := filepath.Join(t.TempDir(), "chart.svg")
	r := testReport()
	r.Machine = `a <machine> & "more"`
	if err := r.writeChart(file); err != nil {
		t.Fatal(err)
	}
	svg, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer svg.Close()
	bars := make(map[string]int) // by class
	var texts []string
	decoder := xml.NewDecoder(svg)
	for {
		token, err := decoder.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			if token.Name.Local == "rect" {
				bars[token.Attr[0].Value]++
			}
		case xml.CharData:
			texts = append(texts, string(token))
		}
	}
	// two sizes; no rivals are in the report
	if want := map[string]int{"ours": 4, "other": 4}; !reflect.DeepEqual(bars, want) {
		t.Errorf("bars: %v, want %v", bars, want)
	}
	for _, want := range []string{"1KiB events", "64KiB events", "buzzbip_webhook, request_buffers", "214 µs", r.Machine} {
		if !slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(text, want) }) {
			t.Errorf("no text has %q: %q", want, texts)
		}
	}
}
