package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// Flood is what forged requests do to genuine ones at half load.
type Flood struct {
	Genuine float64 `json:"genuine_per_second"`
	Forged  float64 `json:"forged_per_second"`
	Calm    spread  `json:"calm_p99_us"`
	Under   spread  `json:"flood_p99_us"`
	Ratio   spread  `json:"ratio"`
}

// SlowBodies is what connections cost that each claim a body of 1 MiB, and send
// a byte a second.
type SlowBodies struct {
	Connections      int     `json:"connections"`
	KiBEach          float64 `json:"resident_kib_each"`
	Rejected         int     `json:"rejected"` // with 408, within twice read_timeout
	LastRejected     float64 `json:"last_rejected_seconds"`
	GoroutinesBefore int     `json:"goroutines_before"`
	GoroutinesAfter  int     `json:"goroutines_after"`
}

func (e *environment) measureAttacks(ctx context.Context, report *Report) error {
	if e.only.MatchString(floodName) {
		progress("attack: a flood of forged requests")
		if err := e.measureFlood(ctx, report); err != nil {
			return fmt.Errorf("attack flood: %w", err)
		}
	}
	if e.only.MatchString(slowName) {
		progress("attack: %d slow bodies", e.slow)
		if err := e.measureSlowBodies(ctx, report); err != nil {
			return fmt.Errorf("attack slow bodies: %w", err)
		}
	}
	return nil
}

// measureFlood sends genuine events at half the rate that the gateway can
// deliver, alone and together with forged ones at all of that rate, in turn.
func (e *environment) measureFlood(ctx context.Context, report *Report) error {
	const size = 1 << 10
	g, err := e.start(ctx, "memory+buffers")
	if err != nil {
		return err
	}
	defer g.stop()
	duration := 2 * e.duration
	prepared := func(k kind, want answer) *load {
		events := newEvents(e.nextBatch(), size, int(30_000*duration.Seconds()))
		return newLoad(g.address[http1], http1, e.connections, events, k, want)
	}
	var calm, under, ratio, capacities []float64
	for range e.rounds {
		full, alone, attacked := prepared(fresh, passedOn), prepared(fresh, passedOn), prepared(fresh, passedOn)
		flood := prepared(forged, answer{http.StatusUnauthorized, ""})
		p99s, capacity, err := floodRound(ctx, duration, full, alone, attacked, flood)
		for _, l := range []*load{full, alone, attacked, flood} {
			l.close()
		}
		if err != nil {
			return err
		}
		calm, under, ratio = append(calm, p99s[0]), append(under, p99s[1]), append(ratio, divide(p99s[1], p99s[0]))
		capacities = append(capacities, capacity)
	}
	capacity := spreadOf(capacities).Median
	report.Flood = &Flood{capacity / 2, capacity, spreadOf(calm), spreadOf(under), spreadOf(ratio)}
	return nil
}

// floodRound returns the p99 of genuine events at half load, alone and under a
// flood, and how many the gateway can deliver in a second. That is measured each
// time, because what else the machine does changes it.
func floodRound(ctx context.Context, duration time.Duration, full, alone, attacked, flood *load) (p99s [2]float64, capacity float64, err error) {
	most, err := full.run(ctx, duration, 0)
	if err != nil {
		return p99s, 0, err
	}
	capacity = float64(most.requests) / most.elapsed.Seconds()
	calm, err := alone.pace(ctx, duration, capacity/2)
	if err != nil {
		return p99s, 0, err
	}
	flooding, stop := context.WithCancel(ctx)
	defer stop()
	flooded := make(chan error, 1)
	go func() {
		_, err := flood.pace(flooding, time.Hour, capacity)
		flooded <- err
	}()
	time.Sleep(duration / 10)
	under, err := attacked.pace(ctx, duration, capacity/2)
	stop()
	err = errors.Join(err, ignoreCanceled(<-flooded))
	p99s = [2]float64{microseconds(percentile(calm.latency, 0.99)), microseconds(percentile(under.latency, 0.99))}
	return p99s, capacity, err
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// measureSlowBodies opens many connections that never send what they claim.
func (e *environment) measureSlowBodies(ctx context.Context, report *Report) error {
	g, err := startCaddy(ctx, e.dir, "slow-bodies", []string{e.self, "caddy", "0"},
		webhookDirective("read_timeout "+e.readTimeout.String())+"\n\t"+e.proxy(false))
	if err != nil {
		return err
	}
	defer g.stop()
	// a first request, so that what is allocated only once is there
	events := newEvents(e.nextBatch(), 1<<10, 10_000)
	l := newLoad(g.address[http1], http1, e.connections, events, fresh, passedOn)
	_, err = l.run(ctx, e.duration, 0)
	l.close()
	if err != nil {
		return err
	}
	result := &SlowBodies{Connections: e.slow}
	if result.GoroutinesBefore, err = g.goroutines(); err != nil {
		return err
	}
	before, err := residentMemory(g.cmd.Process.Pid)
	if err != nil {
		report.Skipped = append(report.Skipped, "attack slow bodies: "+err.Error())
		return nil
	}
	conns, err := g.openSlowBodies(ctx, e.slow)
	defer func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}()
	if err != nil {
		return err
	}
	answered := watchSlowBodies(conns, 2*e.readTimeout)
	select { // all of them are being read
	case <-time.After(e.readTimeout / 2):
	case <-ctx.Done():
		return ctx.Err()
	}
	during, err := residentMemory(g.cmd.Process.Pid)
	if err != nil {
		return err
	}
	result.KiBEach = float64(during-before) / 1024 / float64(e.slow)
	for took := range answered {
		result.Rejected++
		result.LastRejected = max(result.LastRejected, took.Seconds())
	}
	for range 50 { // the server's goroutines end after the connections
		if result.GoroutinesAfter, err = g.goroutines(); err != nil || result.GoroutinesAfter <= result.GoroutinesBefore {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	report.SlowBodies = result
	return err
}

// openSlowBodies opens n connections, each with the head of a request.
func (g *gateway) openSlowBodies(ctx context.Context, n int) (conns []net.Conn, err error) {
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\nX-BuzzBip-Signature: %064d\r\n\r\n{", path, 1<<20, 0)
	for range n {
		if ctx.Err() != nil {
			return conns, ctx.Err()
		}
		conn, err := net.Dial("tcp", g.address[http1])
		if err != nil {
			return conns, fmt.Errorf("connection %d: %w", len(conns)+1, err)
		}
		conns = append(conns, conn)
		if _, err := io.WriteString(conn, head); err != nil {
			return conns, err
		}
	}
	return conns, nil
}

// watchSlowBodies sends a byte a second on each connection, and tells when each
// was answered 408. The channel is closed when all have ended, or
// the limit has passed.
func watchSlowBodies(conns []net.Conn, limit time.Duration) <-chan time.Duration {
	began := time.Now()
	answered := make(chan time.Duration, len(conns))
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Second):
				for _, conn := range conns {
					_, _ = conn.Write([]byte(" "))
				}
			}
		}
	}()
	var watching sync.WaitGroup
	for _, conn := range conns {
		watching.Go(func() {
			_ = conn.SetReadDeadline(began.Add(limit))
			res, err := http.ReadResponse(bufio.NewReaderSize(conn, 512), nil)
			if err == nil {
				_ = res.Body.Close()
				if res.StatusCode == http.StatusRequestTimeout {
					answered <- time.Since(began)
				}
			}
			_ = conn.Close()
		})
	}
	go func() {
		watching.Wait()
		close(stop)
		close(answered)
	}()
	return answered
}

// goroutines returns how many Caddy has.
func (g *gateway) goroutines() (int, error) {
	client := &http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	res, err := client.Get("http://" + g.admin + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	var n int
	_, err = fmt.Fscanf(res.Body, "goroutine profile: total %d", &n)
	return n, err
}

func (r *Report) writeAttacks(w io.Writer) {
	if r.Flood == nil && r.SlowBodies == nil {
		return
	}
	fmt.Fprint(w, "\n### Under attack\n\n")
	if f := r.Flood; f != nil {
		fmt.Fprintf(w, "- %.0f genuine events a second, half of what the gateway can deliver, have a p99 of %s ms; together with %.0f forged requests a second, of %s ms: ratio %s.\n",
			f.Genuine, f.Calm.scaled(1e-3).format("%.2f"), f.Forged, f.Under.scaled(1e-3).format("%.2f"), f.Ratio.format("%.2f"))
	}
	if s := r.SlowBodies; s != nil {
		fmt.Fprintf(w, "- %d connections that claim 1 MiB each and send a byte a second take %.1f KiB each. %d were answered 408, the last after %.1f s. Goroutines: %d before, %d after.\n",
			s.Connections, s.KiBEach, s.Rejected, s.LastRejected, s.GoroutinesBefore, s.GoroutinesAfter)
	}
}
