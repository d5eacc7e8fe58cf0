//go:build !linux

package sqlite

import "testing"

func limitFiles(t *testing.T, _ int64) (lift func()) {
	t.Skip("for Linux only")
	return nil
}
