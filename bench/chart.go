package main

import (
	_ "embed"
	"fmt"
	"html"
	"os"
	"strings"
	"text/template"
)

//go:embed chart.svg
var chartTemplate string

// charted are the scenarios of the chart.
var charted = []struct{ scenario, label string }{
	{"plain", "reverse_proxy"},
	{"plain+buffers", "reverse_proxy, request_buffers"},
	{"memory", "buzzbip_webhook"},
	{"memory+buffers", "buzzbip_webhook, request_buffers"},
	{"nginx", "nginx"},
	{"nginx+lua", "nginx with Lua"},
	{"express", "Express (Node.js)"},
}

// What the template draws; lengths in pixels.
type (
	chart struct {
		Width, Height, NoteY int
		Title, Note          string
		Panels               []panel
	}
	panel struct {
		Y     int
		Title string
		Bars  []bar
	}
	bar struct {
		Y               int
		Label, Value    string
		Class           string // ours, or other
		Width, Low, End float64
	}
)

const (
	chartWidth = 760
	labelWidth = 250
	barsWidth  = 410
	barStep    = 26
)

// newChart draws the CPU time of a request over HTTP/1.1 at the usual sizes.
func newChart(r *Report) chart {
	c := chart{
		Width: chartWidth,
		Title: "CPU time of the gateway per event",
		Note:  fmt.Sprintf("HTTP/1.1, %d connections, median of %d rounds with quartiles. %s. Caddy %s.", r.Connections, r.Rounds, r.Machine, r.Caddy),
	}
	y := 50
	for _, size := range usual {
		p := panel{Y: y, Title: formatSize(size) + " events"}
		var cells []Cell
		longest := 0.0
		for _, row := range charted {
			if cell, found := r.cell(row.scenario, http1, size); found {
				cell.About = row.label
				cells = append(cells, cell)
				longest = max(longest, cell.CPU.High)
			}
		}
		if len(cells) == 0 {
			continue
		}
		scale := barsWidth / longest
		for n, cell := range cells {
			b := bar{
				Y: y + 12 + n*barStep, Label: cell.About, Class: "other",
				Value: fmt.Sprintf("%.0f µs", cell.CPU.Median),
				Width: cell.CPU.Median * scale, Low: labelWidth + cell.CPU.Low*scale, End: labelWidth + cell.CPU.High*scale,
			}
			if strings.HasPrefix(cell.Scenario, "memory") {
				b.Class = "ours"
			}
			p.Bars = append(p.Bars, b)
		}
		y += 12 + len(cells)*barStep + 34
		c.Panels = append(c.Panels, p)
	}
	c.NoteY, c.Height = y-10, y+4
	return c
}

func (r *Report) writeChart(file string) error {
	var svg strings.Builder
	t := template.Must(template.New("chart").Funcs(template.FuncMap{
		"text": html.EscapeString,
		"add":  func(a, b float64) float64 { return a + b },
	}).Parse(chartTemplate))
	if err := t.Execute(&svg, newChart(r)); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(svg.String()), 0o644) //nolint:gosec // to be read by all
}
