//go:build !linux && !windows

package main

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// cpuTime returns the CPU time that a process has used, in hundredths of a
// second.
func cpuTime(pid int) (time.Duration, error) {
	text, err := ps(pid, "time=")
	if err != nil {
		return 0, err
	}
	return parsePSTime(text)
}

// residentMemory returns the bytes of a process that are in memory.
func residentMemory(pid int) (int64, error) {
	text, err := ps(pid, "rss=")
	if err != nil {
		return 0, err
	}
	kib, err := strconv.ParseInt(text, 10, 64)
	return kib << 10, err
}

// children returns the processes that a process has started.
func children(pid int) (pids []int) {
	out, _ := exec.Command("pgrep", "-P", strconv.Itoa(pid)).Output() //nolint:gosec // a number
	for field := range strings.FieldsSeq(string(out)) {
		if child, err := strconv.Atoi(field); err == nil {
			pids = append(pids, child)
		}
	}
	return pids
}

func ps(pid int, column string) (string, error) {
	out, err := exec.Command("ps", "-o", column, "-p", strconv.Itoa(pid)).Output() //nolint:gosec // a number
	if err != nil {
		return "", fmt.Errorf("ps of process %d: %w", pid, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// parsePSTime reads [[days-]hours:]minutes:seconds.
func parsePSTime(text string) (time.Duration, error) {
	days, rest, found := strings.Cut(text, "-")
	if !found {
		days, rest = "0", text
	}
	total, err := strconv.ParseFloat(days, 64)
	if err != nil {
		return 0, fmt.Errorf("CPU time %q: %w", text, err)
	}
	total *= 24 // hours, if the rest has them
	parts := strings.Split(rest, ":")
	for n := range 3 {
		value := 0.0
		if skip := 3 - len(parts); n >= skip {
			if value, err = strconv.ParseFloat(parts[n-skip], 64); err != nil {
				return 0, fmt.Errorf("CPU time %q: %w", text, err)
			}
		}
		if n > 0 {
			total *= 60
		}
		total += value
	}
	return time.Duration(total * float64(time.Second)), nil
}
