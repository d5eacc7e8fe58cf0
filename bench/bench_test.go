package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// The bench starts itself as backend and as Caddy.
func TestMain(m *testing.M) {
	if child(os.Args) {
		return
	}
	os.Exit(m.Run())
}

// Each answer is checked while it is measured, so that each scenario is what it
// says.
func TestEverythingThatNeedsNoOtherProgramIsMeasured(t *testing.T) {
	report, err := measureAll(t.Context(), options{
		rounds: 2, duration: 100 * time.Millisecond, requests: 50, connections: 2, sizes: []int{1 << 10},
		only: regexp.MustCompile(`^(memory|sqlite|off|respond|duplicate|forged|filtered|inbox|always|collector|outage|attack)`),
		ids:  1000, slow: 10, readTimeout: time.Second, depths: []int{200, 400}, waiting: 100,
	})
	if err != nil {
		t.Fatal(err)
	}
	var measured []string
	for _, c := range report.Cells {
		measured = append(measured, cellName(c.Scenario, c.Protocol, c.Size))
		if c.Throughput.Median <= 0 || c.P50.Median <= 0 || c.P99.Median < c.P50.Median || c.Allocs.Median <= 0 || c.Bytes.Median <= 0 {
			t.Errorf("of %s this was measured: %+v", measured[len(measured)-1], c)
		}
	}
	want := []string{
		"plain http/1.1 1KiB", "memory http/1.1 1KiB", "memory+buffers http/1.1 1KiB", "inbox http/1.1 1KiB", "inbox+buffers http/1.1 1KiB",
		"sqlite+buffers http/1.1 1KiB", "always http/1.1 1KiB", "off http/1.1 1KiB",
		"respond http/1.1 1KiB", "duplicate http/1.1 1KiB", "forged http/1.1 1KiB", "filtered http/1.1 1KiB",
		"plain http/2 1KiB", "memory http/2 1KiB", "memory+buffers http/2 1KiB", "inbox http/2 1KiB", "inbox+buffers http/2 1KiB",
	}
	if !slices.Equal(measured, want) {
		t.Errorf("it measured %q, not %q", measured, want)
	}
	if len(report.Collector) != 2 || report.Collector[1].IDs != 1000 {
		t.Errorf("of the collector this was measured: %+v", report.Collector)
	}
	if o := report.Outage; o == nil || o.P99 <= 0 || o.PerSecond <= 0 || len(o.Drains) != 2 || o.Drains[1].Waiting < 400 || o.Drains[1].PerSecond <= 0 || o.Backlog.Start <= 0 {
		t.Errorf("of an outage this was measured: %+v", o)
	}
	if f := report.Flood; f == nil || f.Ratio.Median <= 0 {
		t.Errorf("of a flood this was measured: %+v", f)
	}
	if s := report.SlowBodies; s == nil && len(report.Skipped) == 0 || s != nil && s.Rejected != s.Connections {
		t.Errorf("of slow bodies this was measured: %+v", s)
	}
}

func TestProfilesAreWritten(t *testing.T) {
	dir := t.TempDir()
	if _, err := measureAll(t.Context(), options{
		rounds: 1, duration: 100 * time.Millisecond, requests: 50, connections: 2, sizes: []int{1 << 10},
		only: regexp.MustCompile(`^respond`), profiles: dir, profileSeconds: 1,
	}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"plain-http1.1-1KiB.pprof", "respond-http1.1-1KiB.pprof"} {
		if profile, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.HasPrefix(profile, []byte("\x1f\x8b")) { // gzip
			t.Errorf("%s: %v, %d bytes", name, err, len(profile))
		}
	}
}

func TestMistakesInFlagsAreErrors(t *testing.T) {
	for args, want := range map[string]string{
		"quick":                  "only flags",
		"-rounds 0":              "greater than zero",
		"-connections 0":         "greater than zero",
		"-only no-such-thing":    "matches no scenario",
		"-requests -1":           "greater than zero",
		"-only (":                "-only",
		"-sizes 64":              "from 512B to 1MiB",
		"-sizes 2MiB":            "from 512B to 1MiB",
		"-sizes 1KiB,":           "from 512B to 1MiB",
		"-compare no-such-file":  "no-such-file",
		"-compare bench_test.go": "not written by -json",
	} {
		err := command(t.Context(), strings.Fields(args))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("bench %s: %v, want an error with %q", args, err, want)
		}
	}
}
