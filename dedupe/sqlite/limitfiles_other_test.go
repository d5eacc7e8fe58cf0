//go:build !linux

package sqlite

import "testing"

func limitFiles(t *testing.T, _ int64) (lift func()) {
	t.Helper()
	t.Fatal("limitFiles is for Linux only")
	return nil
}
