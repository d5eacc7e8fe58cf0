package main

import (
	"math"
	"slices"
	"time"
)

// spread is what several rounds gave: the median, and the quartiles around it.
type spread struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`  // first quartile
	High   float64 `json:"high"` // third quartile
}

// spreadOf returns the median and the quartiles of at least one value.
func spreadOf(values []float64) spread {
	sorted := slices.Sorted(slices.Values(values))
	return spread{quantile(sorted, 0.5), quantile(sorted, 0.25), quantile(sorted, 0.75)}
}

// quantile interpolates between the values next to it.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	below := math.Floor(at)
	low, high := sorted[int(below)], sorted[int(math.Ceil(at))]
	return low + (high-low)*(at-below)
}

// percentile returns the value below which a part of the durations is.
func percentile(sorted []time.Duration, part float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(part*float64(len(sorted))))]
}

// divide returns a ratio, or 0 if there is none: a clock that is too coarse for
// a short measurement shows nothing.
func divide(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

func sortDurations(d []time.Duration) { slices.Sort(d) }

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// scaled returns the spread in another unit.
func (s spread) scaled(by float64) spread { return spread{s.Median * by, s.Low * by, s.High * by} }
