package main

import (
	"errors"
	"syscall"
	"time"
)

// cpuTime returns the CPU time that a process has used.
func cpuTime(pid int) (time.Duration, error) {
	const queryLimitedInformation = 0x1000
	process, err := syscall.OpenProcess(queryLimitedInformation, false, uint32(pid))
	if err != nil {
		return 0, err
	}
	defer syscall.CloseHandle(process)
	var created, exited, kernel, user syscall.Filetime
	if err := syscall.GetProcessTimes(process, &created, &exited, &kernel, &user); err != nil {
		return 0, err
	}
	// not Filetime.Nanoseconds, which is for dates
	ticks := func(t syscall.Filetime) time.Duration {
		return time.Duration(int64(t.HighDateTime)<<32|int64(t.LowDateTime)) * 100
	}
	return ticks(kernel) + ticks(user), nil
}

func residentMemory(int) (int64, error) { return 0, errors.New("not measured on Windows") }

func children(int) []int { return nil }
