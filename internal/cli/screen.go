package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// screen shows people how a check goes. Colors and the line that says what the
// command waits for are for terminals only.
type screen struct {
	out, progress io.Writer
	silent        bool
	colors        bool
	terminal      bool
}

func newScreen(out, progress io.Writer, silent bool) *screen {
	return &screen{
		out: out, progress: progress, silent: silent,
		colors:   isTerminal(out) && os.Getenv("NO_COLOR") == "",
		terminal: isTerminal(progress),
	}
}

func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

func (s *screen) show(o outcome) {
	if s.silent {
		return
	}
	mark, color := "ok  ", "\x1b[32m"
	switch {
	case !o.OK:
		mark, color = "FAIL", "\x1b[31m"
	case o.Warning:
		mark, color = "warn", "\x1b[33m"
	}
	if s.colors {
		mark = color + mark + "\x1b[0m"
	}
	fmt.Fprintf(s.out, "%s  %-12s  %s\n                    seen: %s\n", mark, o.Name, o.Expected, o.Seen)
	if o.Hint != "" {
		fmt.Fprintf(s.out, "                    hint: %s\n", o.Hint)
	}
}

func (s *screen) say(text string) {
	if !s.silent {
		fmt.Fprintln(s.out, text)
	}
}

// wait shows how long a check has lasted, once that is a second, until it is
// stopped.
func (s *screen) wait(name string) (stop func()) {
	if !s.terminal {
		return func() {}
	}
	ended := make(chan struct{})
	var shown sync.WaitGroup
	shown.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for seconds := 1; ; seconds++ {
			select {
			case <-ended:
				if seconds > 1 {
					fmt.Fprint(s.progress, "\r\x1b[K")
				}
				return
			case <-tick.C:
				fmt.Fprintf(s.progress, "\r....  %-12s  waiting, %ds\x1b[K", name, seconds)
			}
		}
	})
	return func() {
		close(ended)
		shown.Wait()
	}
}
