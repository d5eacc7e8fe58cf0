package main

import (
	"testing"
	"time"
)

func TestSpreadIsTheMedianAndTheQuartiles(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   spread
	}{
		{[]float64{7}, spread{7, 7, 7}},
		{[]float64{4, 2}, spread{3, 2.5, 3.5}},
		{[]float64{50, 10, 40, 20, 30}, spread{30, 20, 40}},
	} {
		if got := spreadOf(test.values); got != test.want {
			t.Errorf("of %v: %v, want %v", test.values, got, test.want)
		}
	}
}

func TestPercentileIsAboveItsPartOfTheValues(t *testing.T) {
	var sorted []time.Duration
	if got := percentile(sorted, 0.99); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
	for n := range 200 {
		sorted = append(sorted, time.Duration(n))
	}
	for part, want := range map[float64]time.Duration{0: 0, 0.5: 100, 0.99: 198, 1: 199} {
		if got := percentile(sorted, part); got != want {
			t.Errorf("%v: %d, want %d", part, got, want)
		}
	}
}
