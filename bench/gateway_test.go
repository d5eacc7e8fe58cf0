package main

import (
	"testing"
	"time"
)

func TestLongestPauseIsThatOfTheCollectionsSince(t *testing.T) {
	var before, after runtimeUsage
	for n := range after.pauses {
		after.pauses[n] = uint64(n + 1)
	}
	for _, test := range []struct {
		before, after uint32
		want          time.Duration
	}{
		{5, 5, 0},
		{5, 6, 6},
		{5, 9, 9},
		{250, 258, 256}, // the last two are at the start again
		{256, 258, 2},
		{0, 10_000, 256},
	} {
		before.collections, after.collections = test.before, test.after
		if got := after.longestPause(before); got != test.want {
			t.Errorf("collections %d to %d: %v, want %v", test.before, test.after, got, test.want)
		}
	}
}
