package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// cpuTime returns the CPU time that a process has used, from the clock that the
// kernel has for each process: /proc shows the same in hundredths of a second.
func cpuTime(pid int) (time.Duration, error) {
	const schedulerClock = 2 // CPUCLOCK_SCHED; see clock_getcpuclockid(3)
	var at syscall.Timespec
	_, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(int32(^pid<<3|schedulerClock)), uintptr(unsafe.Pointer(&at)), 0) //nolint:gosec // a system call that package syscall has no function for
	if errno != 0 {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, errno)
	}
	return time.Duration(at.Nano()), nil
}

// residentMemory returns the bytes of a process that are in memory.
func residentMemory(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	var total, resident int64
	if _, err := fmt.Sscan(string(text), &total, &resident); err != nil {
		return 0, err
	}
	return resident * int64(os.Getpagesize()), nil
}

// children returns the processes that a process has started.
func children(pid int) (pids []int) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for field := range strings.FieldsSeq(string(text)) {
		var child int
		if _, err := fmt.Sscan(field, &child); err == nil {
			pids = append(pids, child)
		}
	}
	return pids
}
