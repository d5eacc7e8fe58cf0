//go:build !linux && !windows

package main

import (
	"testing"
	"time"
)

func TestTimesOfPSAreRead(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0:00.25":    250 * time.Millisecond,
		"12:03.50":   12*time.Minute + 3500*time.Millisecond,
		"1:02:03":    time.Hour + 2*time.Minute + 3*time.Second,
		"2-01:00:00": 49 * time.Hour,
	} {
		if got, err := parsePSTime(text); err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
	}
	if got, err := parsePSTime("yesterday"); err == nil {
		t.Errorf("yesterday: %v", got)
	}
}
