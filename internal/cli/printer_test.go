package cli

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestPrinterShowsHowLongACheckLasts(t *testing.T) {
	const line = "\r....  accepted      waiting, "
	const cleared = "\r\x1b[K"
	for lasts, want := range map[time.Duration]string{
		900 * time.Millisecond:  "",
		1500 * time.Millisecond: line + "1s\x1b[K" + cleared,
		2500 * time.Millisecond: line + "1s\x1b[K" + line + "2s\x1b[K" + cleared,
	} {
		synctest.Test(t, func(t *testing.T) {
			var shown strings.Builder
			stop := (&printer{progress: &shown, terminal: true}).waiting("accepted")
			time.Sleep(lasts)
			stop()
			if shown.String() != want {
				t.Errorf("after %s it has shown %q, want %q", lasts, shown.String(), want)
			}
		})
	}
}
