// Command bench measures what buzzbip_webhook costs. It starts Caddy with and
// without the plugin, what people might use instead, and one backend, all on
// loopback; sends events to them in turn, several rounds; and prints the CPU
// time, the allocations and the latency of each request, and the throughput,
// next to those of a plain reverse_proxy in the same round:
//
//	go run ./bench
//	go run ./bench -quick -only 'memory.* http/1.1 (1|64)KiB'
//
// Caddy is this same program, run as "bench caddy": it has the packages of
// cmd/caddy. All requests are plain HTTP, HTTP/2 with prior knowledge (h2c), so
// TLS, which costs the same for all, is not in the figures.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// options is what the flags say.
type options struct {
	rounds         int
	duration       time.Duration // of one measurement
	requests       int           // the most of one measurement, or 0
	connections    int
	only           *regexp.Regexp
	sizes          []int
	ids            int           // that the collector is measured with
	slow           int           // connections of the attack with slow bodies
	readTimeout    time.Duration // of the gateway that they attack
	depths         []int         // how many events wait when the backend is back
	waiting        int           // events in the inbox of a Caddy that starts
	against        string
	profiles       string // directory
	profileSeconds int    // of each
	npm            bool
}

func main() {
	if child(os.Args) {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1) //nolint:gocritic // stop only restores signals
	}
}

// child runs the parts of the bench that are processes of their own, and
// reports whether args asked for one.
func child(args []string) bool {
	if len(args) < 2 {
		return false
	}
	switch args[1] {
	case "backend":
		serveBackend()
	case "caddy":
		runCaddy(args[2:])
	default:
		return false
	}
	return true
}

// files are what the flags say about the results.
type files struct{ json, svg, compare string }

// command is the bench with its flags.
func command(ctx context.Context, args []string) error {
	o, f, err := parseFlags(args)
	if err != nil {
		return err
	}
	var committed *Report // read first: a mistake shows at once
	if f.compare != "" {
		if committed, err = readReport(f.compare); err != nil {
			return err
		}
	}
	report, err := measureAll(ctx, o)
	if err != nil {
		return err
	}
	report.writeMarkdown(os.Stdout)
	if committed != nil {
		writeComparison(os.Stdout, committed, report)
	}
	if f.json != "" {
		if err := report.writeJSON(f.json); err != nil {
			return err
		}
	}
	if f.svg != "" {
		return report.writeChart(f.svg)
	}
	return nil
}

func parseFlags(args []string) (o options, f files, err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&o.rounds, "rounds", 30, "how often everything is measured")
	flags.DurationVar(&o.duration, "duration", 250*time.Millisecond, "how long each measurement takes")
	flags.IntVar(&o.requests, "requests", 0, "the most requests of each measurement; 0: as many as fit in -duration")
	flags.IntVar(&o.connections, "connections", 16, "how many connections send at once, one request at a time each")
	only := flags.String("only", "", "measure only scenarios that match this `regexp`, such as 'memory.* http/1.1 1KiB', collector, outage or attack")
	sizes := flags.String("sizes", "512B,1KiB,4KiB,64KiB,1MiB", "sizes of the events' bodies")
	flags.StringVar(&o.against, "against", "", "measure another build of Caddy with the plugin too: the `path` of its binary")
	flags.BoolVar(&o.npm, "npm", false, "let npm download Express into a temporary directory, to measure it too")
	quick := flags.Bool("quick", false, "about 2 minutes: fewer rounds, 1KiB and 64KiB, gentler attacks")
	flags.StringVar(&o.profiles, "profile", "", "write a CPU profile of each scenario of Caddy into this `directory`, after the measurements")
	flags.StringVar(&f.json, "json", "", "write the results as JSON to this `file`")
	flags.StringVar(&f.svg, "svg", "", "write a chart to this `file`")
	flags.StringVar(&f.compare, "compare", "", "say what got worse than in this `file`, which -json has written")
	if err := flags.Parse(args); err != nil {
		return o, f, err
	}
	if flags.NArg() > 0 {
		return o, f, fmt.Errorf("unknown argument %q: there are only flags, see -help", flags.Arg(0))
	}
	o.ids, o.slow, o.readTimeout, o.profileSeconds = 10_000_000, 5000, 10*time.Second, 5
	o.depths, o.waiting = []int{1000, 100_000}, 1_000_000
	if *quick {
		o.ids, o.slow, o.depths, o.waiting = 1_000_000, 500, []int{1000, 10_000}, 100_000
		set := make(map[string]bool)
		flags.Visit(func(f *flag.Flag) { set[f.Name] = true })
		for name, value := range map[string]string{"rounds": "5", "duration": "200ms", "sizes": "1KiB,64KiB"} {
			if !set[name] {
				_ = flags.Set(name, value)
			}
		}
	}
	if o.rounds < 1 || o.duration <= 0 || o.connections < 1 || o.requests < 0 {
		return o, f, errors.New("-rounds, -duration and -connections must be greater than zero, and -requests not less")
	}
	if o.only, err = regexp.Compile(*only); err != nil {
		return o, f, fmt.Errorf("-only: %w", err)
	}
	for size := range strings.SplitSeq(*sizes, ",") {
		n, err := parseSize(size)
		if err != nil {
			return o, f, err
		}
		o.sizes = append(o.sizes, n)
	}
	return o, f, nil
}

// progress tells people at a terminal that something happens.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
