package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// printer prints the outcomes of checks for people. Colors, and the line that says
// what the command waits for, are for terminals only.
type printer struct {
	out, progress io.Writer
	silent        bool // print nothing to out
	colors        bool
	terminal      bool // progress is one
}

func newPrinter(out, progress io.Writer, silent bool) *printer {
	return &printer{
		out: out, progress: progress, silent: silent,
		colors:   isTerminal(out) && os.Getenv("NO_COLOR") == "",
		terminal: isTerminal(progress),
	}
}

func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

func (p *printer) outcome(o outcome) {
	if p.silent {
		return
	}
	mark, color := "ok  ", "\x1b[32m"
	switch {
	case !o.OK:
		mark, color = "FAIL", "\x1b[31m"
	case o.Warning:
		mark, color = "warn", "\x1b[33m"
	}
	if p.colors {
		mark = color + mark + "\x1b[0m"
	}
	fmt.Fprintf(p.out, "%s  %-12s  %s\n                    seen: %s\n", mark, o.Name, o.Expected, o.Seen)
	if o.Hint != "" {
		fmt.Fprintf(p.out, "                    hint: %s\n", o.Hint)
	}
}

func (p *printer) line(text string) {
	if !p.silent {
		fmt.Fprintln(p.out, text)
	}
}

// show replaces the line that says how far the command is.
func (p *printer) show(text string) {
	if p.terminal {
		fmt.Fprintf(p.progress, "\r%s\x1b[K", text)
	}
}

// clear removes the line that says how far the command is.
func (p *printer) clear() { p.show("") }

// waiting shows, each second, how long a check has lasted, until stop is called.
func (p *printer) waiting(name string) (stop func()) {
	if !p.terminal {
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
					p.clear()
				}
				return
			case <-tick.C:
				p.show(fmt.Sprintf("....  %-12s  waiting, %ds", name, seconds))
			}
		}
	})
	return func() {
		close(ended)
		shown.Wait()
	}
}
