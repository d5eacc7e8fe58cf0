package redis

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

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

// BenchmarkServerMemory reports what an id takes in Redis.
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
