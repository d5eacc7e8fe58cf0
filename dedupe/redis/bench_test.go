package redis

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

var benchID atomic.Int64

func BenchmarkDeliver(b *testing.B) {
	server := redistest.Start(b)
	s := newInstance(b, config(server))
	for _, parallel := range []int{2, 16, 256} {
		b.Run(fmt.Sprint(parallel, " at a time"), func(b *testing.B) {
			b.SetParallelism(max(parallel/runtime.GOMAXPROCS(0), 1))
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					v, err := s.Claim(context.Background(), arrival(fmt.Sprint(benchID.Add(1)), 1))
					if err == nil {
						err = s.Settle(context.Background(), v.Claim, true)
					}
					if err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "deliveries/s")
		})
	}
}

func BenchmarkDuplicate(b *testing.B) {
	s := newInstance(b, config(redistest.Start(b)))
	deliver(b, s, arrival("a", 1))
	b.ReportAllocs()
	for b.Loop() {
		if v, err := s.Claim(context.Background(), arrival("a", 1)); err != nil || v.State != dedupe.Delivered {
			b.Fatal(v, err)
		}
	}
}

// BenchmarkServerMemory reports how much memory an ID takes in Redis.
func BenchmarkServerMemory(b *testing.B) {
	server := redistest.Start(b)
	s := newInstance(b, config(server))
	used := func() (bytes float64) {
		for line := range strings.Lines(server.Do("INFO", "memory")) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), "used_memory_dataset:"); ok {
				bytes, _ = strconv.ParseFloat(value, 64)
			}
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), "used_memory_overhead:"); ok {
				overhead, _ := strconv.ParseFloat(value, 64)
				bytes += overhead
			}
		}
		return bytes
	}
	before := used()
	const ids = 200_000
	for b.Loop() {
		if b.N > 1 {
			continue
		}
		work := make(chan int)
		done := make(chan error)
		for range 64 {
			go func() {
				var failed error
				for n := range work {
					r := arrival(fmt.Sprint(n), 1)
					r.Scope = "0123456789abcdef" // as long as a default scope
					v, err := s.Claim(context.Background(), r)
					if err == nil {
						err = s.Settle(context.Background(), v.Claim, true)
					}
					if err != nil {
						failed = err
					}
				}
				done <- failed
			}()
		}
		for n := range ids {
			work <- n
		}
		close(work)
		for range 64 {
			if err := <-done; err != nil {
				b.Error(err)
			}
		}
	}
	b.ReportMetric((used()-before)/ids, "server-B/id")
}

// BenchmarkNotice reports how long it takes to settle a delivery on one instance
// and then answer a duplicate that waits on another.
func BenchmarkNotice(b *testing.B) {
	server := redistest.Start(b)
	owner, other := newInstance(b, config(server)), newInstance(b, config(server))
	var took []time.Duration
	for b.Loop() {
		id := fmt.Sprint(benchID.Add(1))
		c := expect(b, owner, arrival(id, 1), dedupe.Claimed)
		waiter := claimAsync(b, other, waiting(arrival(id, 1)))
		waitFor(b, "the waiter", func() bool { return waits(other, id) })
		start := time.Now()
		settle(b, owner, c, true)
		if got := await(b, waiter, "the waiter's answer"); got.err != nil || got.State != dedupe.Delivered {
			b.Fatalf("the waiter got %+v", got)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	for _, percent := range []int{50, 99, 100} {
		at := took[(len(took)-1)*percent/100]
		b.ReportMetric(float64(at.Microseconds())/1000, fmt.Sprintf("p%d-ms", percent))
	}
}
