//go:build !linux

package caddytest

import "testing"

// LimitFiles is for Linux only.
func LimitFiles(t *testing.T, _ int64) (lift func()) {
	t.Helper()
	t.Fatal("LimitFiles is for Linux only")
	return nil
}
