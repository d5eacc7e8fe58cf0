package main

import (
	"os"
	"testing"
	"time"
)

func TestCPUTimeGrowsByWhatAProcessUses(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	body := newBody(64 << 10)
	began := time.Now()
	var used time.Duration
	for used < 100*time.Millisecond {
		timeHMAC(body)
		now, err := cpuTime(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if used = now - before; time.Since(began) > time.Minute {
			t.Fatalf("only %v of CPU time after a minute of work", used)
		}
	}
	if took := time.Since(began); used > 100*took {
		t.Errorf("%v of CPU time in %v", used, took)
	}
}

func TestCPUTimeOfNoProcessIsAnError(t *testing.T) {
	if used, err := cpuTime(1 << 22); err == nil {
		t.Errorf("it is %v", used)
	}
}
