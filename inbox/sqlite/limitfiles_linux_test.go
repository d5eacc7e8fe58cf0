package sqlite

import (
	"syscall"
	"testing"
)

// limitFiles makes writes beyond a size fail, as on a full disk, until the
// function that it returns is called.
func limitFiles(t *testing.T, size int64) (lift func()) {
	t.Helper()
	set := func(l syscall.Rlimit) {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
			t.Fatal(err)
		}
	}
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	set(syscall.Rlimit{Cur: uint64(size), Max: was.Max})
	return func() { set(was) }
}
