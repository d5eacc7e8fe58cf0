package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/inbox/sqlite"
)

// Outage is what an inbox does while a backend is away and afterwards, with events of
// 1 KiB.
type Outage struct {
	// P99 is how long a sender waits for its answer at 500 events a second, each of
	// which a backend that answers at once has failed.
	P99       float64 `json:"acknowledged_p99_us"`
	PerSecond float64 `json:"acknowledged_per_second"` // with 64 at once
	Drains    []Drain `json:"drains"`
	Backlog   Backlog `json:"backlog"`
}

// Drain is how fast waiting events are delivered when the backend is back.
type Drain struct {
	Waiting   int     `json:"waiting"`
	PerSecond float64 `json:"per_second"`
}

// Backlog is a Caddy that starts with many events that wait, and gets new ones.
type Backlog struct {
	Waiting     int     `json:"waiting"`
	Start       float64 `json:"start_seconds"`
	ResidentMiB float64 `json:"resident_mib"`
	P99Ratio    float64 `json:"p99_ratio"` // of new events, to those of a Caddy with an empty inbox
}

const outageSize = 1 << 10

func inboxDirective(file string) string {
	return "inbox sqlite " + filepath.ToSlash(file) + " {\n\t\t\tretry 100ms 1s\n\t\t\tmax_size 100GiB\n\t\t}"
}

func (e *environment) measureOutage(ctx context.Context, report *Report) error {
	if !e.only.MatchString(outageName) {
		return nil
	}
	progress("%s", outageName)
	addresses, err := freeAddresses(1)
	if err != nil {
		return err
	}
	backend := addresses[0]
	g, err := startCaddy(ctx, e.dir, "outage", []string{e.self, "caddy", "0"},
		webhookDirective(inboxDirective(filepath.Join(e.dir, "outage.db")))+"\n\treverse_proxy "+backend)
	if err != nil {
		return err
	}
	defer g.stop()
	o := new(Outage)
	listener, err := net.Listen("tcp", backend)
	if err != nil {
		return err
	}
	// not a status such as 503, after which new events are stored without being tried
	failing := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusInternalServerError)
	})}
	go func() { _ = failing.Serve(listener) }()
	defer failing.Close()
	calm, err := e.acknowledge(g, e.connections, func(l *load) (traffic, error) { return l.pace(ctx, 8*e.duration, 500) })
	if err != nil {
		return err
	}
	o.P99 = microseconds(percentile(calm.latency, 0.99))
	_ = failing.Close()
	busy, err := e.acknowledge(g, 64, func(l *load) (traffic, error) { return l.run(ctx, 8*e.duration, e.requests) })
	if err != nil {
		return err
	}
	o.PerSecond = float64(busy.requests) / busy.elapsed.Seconds()
	for _, depth := range e.depths {
		d, err := e.drain(ctx, g, backend, depth)
		if err != nil {
			return err
		}
		o.Drains = append(o.Drains, d)
	}
	if o.Backlog, err = e.measureBacklog(ctx); err != nil {
		return err
	}
	report.Outage = o
	return nil
}

// acknowledge sends new events, which go to the inbox.
func (e *environment) acknowledge(g *gateway, connections int, send func(*load) (traffic, error)) (traffic, error) {
	events := newEvents(e.nextBatch(), outageSize, max(2000, int(8*e.duration.Seconds()*float64(eventsPerSecond(outageSize)))))
	l := newLoad(g.address[http1], http1, connections, events, fresh, answer{http.StatusOK, "stored"})
	defer l.close()
	return send(l)
}

// waiting returns how many events wait in the inbox.
func (g *gateway) waiting() (int, error) {
	var answer struct{ Waiting int }
	err := getJSON(g.admin, "/buzzbip_webhook/inbox?limit=1", &answer)
	return answer.Waiting, err
}

// drain lets so many events wait, and then measures how fast they are delivered.
func (e *environment) drain(ctx context.Context, g *gateway, backend string, depth int) (d Drain, err error) {
	if _, err = e.deliverAll(ctx, g, backend); err != nil { // what waits from before
		return d, err
	}
	if _, err = e.acknowledgeMany(ctx, g, depth); err != nil {
		return d, err
	}
	if d.Waiting, err = g.waiting(); err != nil {
		return d, err
	}
	d.PerSecond, err = e.deliverAll(ctx, g, backend)
	return d, err
}

// deliverAll runs the backend until no event waits, and returns how many it got in a
// second.
func (e *environment) deliverAll(ctx context.Context, g *gateway, backend string) (perSecond float64, err error) {
	listener, err := net.Listen("tcp", backend)
	if err != nil {
		return 0, err
	}
	// The first ones ask whether the backend is back, one at a time.
	const first = 100
	var count, began, ended atomic.Int64
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		now := time.Now().UnixNano()
		if count.Add(1) == first {
			began.Store(now)
		}
		ended.Store(now)
	})}
	go func() { _ = server.Serve(listener) }()
	defer server.Close()
	for left := 1; left > 0; {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if left, err = g.waiting(); err != nil {
			return 0, err
		}
	}
	took := time.Duration(ended.Load() - began.Load())
	return float64(count.Load()-first) / took.Seconds(), nil
}

func (e *environment) acknowledgeMany(ctx context.Context, g *gateway, n int) (traffic, error) {
	events := newEvents(e.nextBatch(), outageSize, n+duplicates)
	l := newLoad(g.address[http1], http1, 64, events, fresh, answer{http.StatusOK, "stored"})
	defer l.close()
	return l.run(ctx, time.Hour, n)
}

// measureBacklog starts a Caddy with many events in its inbox, which are not due for a
// day, and sends new ones to it and to another Caddy in turn.
func (e *environment) measureBacklog(ctx context.Context) (b Backlog, err error) {
	file := filepath.Join(e.dir, "backlog.db")
	if err := fillInbox(ctx, file, e.waiting); err != nil {
		return b, err
	}
	b.Waiting = e.waiting
	start := func(name, file string) (*gateway, error) {
		return startCaddy(ctx, e.dir, name, []string{e.self, "caddy", "0"}, webhookDirective(inboxDirective(file))+"\n\t"+e.proxy(false))
	}
	empty, err := start("empty-inbox", filepath.Join(e.dir, "empty.db"))
	if err != nil {
		return b, err
	}
	defer empty.stop()
	began := time.Now()
	full, err := start("full-inbox", file)
	if err != nil {
		return b, err
	}
	defer full.stop()
	b.Start = time.Since(began).Seconds()
	var ratios []float64
	for range e.rounds {
		events := newEvents(e.nextBatch(), outageSize, 2*e.eventsFor(outageSize))
		var p99s [2]float64
		for n, g := range []*gateway{empty, full} {
			r, err := e.measure(ctx, g, scenario{want: passedOn}, http1, events)
			if err != nil {
				return b, err
			}
			p99s[n] = r.p99
		}
		ratios = append(ratios, divide(p99s[1], p99s[0]))
	}
	b.P99Ratio = spreadOf(ratios).Median
	resident, err := residentMemory(full.cmd.Process.Pid)
	b.ResidentMiB = float64(resident) / (1 << 20)
	return b, err
}

// fillInbox makes n events wait in an inbox.
func fillInbox(ctx context.Context, file string, n int) error {
	store := &sqlite.Store{Path: file}
	if err := store.Provision(caddy.Context{}); err != nil {
		return err
	}
	if err := store.Start(); err != nil {
		return err
	}
	body := make([]byte, outageSize)
	due := time.Now().Add(24 * time.Hour)
	var next atomic.Int64
	var adding sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for range 64 {
		adding.Go(func() {
			for i := next.Add(1); i <= int64(n) && ctx.Err() == nil; i = next.Add(1) {
				id := fmt.Sprintf("evt_backlog_%d", i)
				_, err := store.Add(ctx, inbox.Event{
					Target: "localhost" + path, Scope: "backlog", Key: dedupe.KeyOf(id), ID: id, Type: "message.received",
					Arrived: time.Now(), Due: due, Body: body,
					Request: inbox.Request{Host: "localhost", URI: path, Proto: "HTTP/1.1", Header: http.Header{"Content-Type": {"application/json"}}},
				}, 1<<40)
				if err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
					return
				}
			}
		})
	}
	adding.Wait()
	return errors.Join(ctx.Err(), failed, store.Cleanup())
}

func (r *Report) writeOutage(w io.Writer) {
	o := r.Outage
	if o == nil {
		return
	}
	fmt.Fprint(w, "\n### While the backend is away\n\n")
	fmt.Fprintf(w, "- Events are stored and acknowledged: %.0f a second with 64 at once; at 500 a second that the backend fails, the p99 is %.2f ms.\n", o.PerSecond, o.P99/1000)
	for _, d := range o.Drains {
		fmt.Fprintf(w, "- When the backend is back, %d waiting events are delivered at %.0f a second.\n", d.Waiting, d.PerSecond)
	}
	b := o.Backlog
	fmt.Fprintf(w, "- With %d waiting events, Caddy starts in %.2f s and takes %.0f MiB. The p99 of new events is %.2f times that with an empty inbox.\n", b.Waiting, b.Start, b.ResidentMiB, b.P99Ratio)
}

func (r *Report) inboxTargets() (list []target) {
	for _, protocol := range []string{http1, http2} {
		for _, size := range over2 {
			for _, name := range []string{"inbox", "inbox+buffers"} {
				if c, found := r.cell(name, protocol, size); found && c.InboxRatio != (spread{}) {
					list = append(list, target{"CPU with an inbox, ratio to without, " + cellName(name, protocol, size), c.InboxRatio, 1.03, false, "%.2f"})
				}
			}
		}
	}
	o := r.Outage
	if o == nil {
		return list
	}
	list = append(list,
		target{"p99 of an event that the backend fails, ms", exactly(o.P99 / 1000), 10, false, "%.2f"},
		target{"events stored in a second, 64 at once", exactly(o.PerSecond), 5000, true, "%.0f"})
	for _, d := range o.Drains {
		list = append(list, target{fmt.Sprintf("events delivered in a second after an outage, of %d", d.Waiting), exactly(d.PerSecond), 2000, true, "%.0f"})
	}
	if n := len(o.Drains); n > 1 {
		list = append(list, target{"the same, ratio of the most to the least waiting", exactly(divide(o.Drains[n-1].PerSecond, o.Drains[0].PerSecond)), 0.5, true, "%.2f"})
	}
	where := fmt.Sprintf(" with %d waiting events", o.Backlog.Waiting)
	return append(list,
		target{"start" + where + ", s", exactly(o.Backlog.Start), 5, false, "%.2f"},
		target{"resident memory" + where + ", MiB", exactly(o.Backlog.ResidentMiB), 200, false, "%.0f"})
}
