package sqlite

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/database"
)

var benchID atomic.Uint64

func BenchmarkDeliver(b *testing.B) {
	for _, parallel := range []int{1, 64, 256} {
		b.Run(fmt.Sprint(parallel, " at a time"), func(b *testing.B) {
			s := start(b, newPath(b))
			b.SetParallelism(max(parallel/runtime.GOMAXPROCS(0), 1))
			b.ReportAllocs()
			if parallel == 1 {
				for b.Loop() {
					deliver(b, s, numbered(benchID.Add(1)))
				}
			} else {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						v, err := s.Claim(context.Background(), numbered(benchID.Add(1)))
						if err == nil {
							err = s.Settle(context.Background(), v.Claim, true)
						}
						if err != nil {
							b.Error(err)
						}
					}
				})
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "deliveries/s")
			stop(b, s)
		})
	}
}

func BenchmarkDuplicate(b *testing.B) {
	s := start(b, newPath(b))
	deliver(b, s, numbered(1))
	b.ReportAllocs()
	for b.Loop() {
		if v, err := s.Claim(context.Background(), numbered(1)); err != nil || v.State == dedupe.Claimed {
			b.Fatal(v, err)
		}
	}
	stop(b, s)
}

// BenchmarkTenMillionIDs starts with a file of 10 million IDs. Set
// BUZZBIP_BENCH_IDS to another number.
func BenchmarkTenMillionIDs(b *testing.B) {
	ids := uint64(10_000_000)
	if n := os.Getenv("BUZZBIP_BENCH_IDS"); n != "" {
		fmt.Sscan(n, &ids)
	}
	path := newPath(b)
	s := start(b, path)
	fill(b, s, ids, time.Now().Add(time.Hour))
	stop(b, s)
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	debug.FreeOSMemory() // what fill took
	b.Run("start", func(b *testing.B) {
		for b.Loop() {
			stop(b, start(b, path))
		}
		b.ReportMetric(float64(info.Size())/float64(ids), "disk-B/id")
	})
	s = start(b, path)
	b.Run("duplicate", func(b *testing.B) {
		for n := uint64(0); b.Loop(); n++ {
			if v, err := s.Claim(context.Background(), numbered(n*7919%ids)); err != nil || v.State == dedupe.Claimed {
				b.Fatal(v, err)
			}
		}
	})
	b.Run("deliver", func(b *testing.B) {
		for b.Loop() {
			deliver(b, s, numbered(ids+benchID.Add(1)))
		}
	})
	b.Logf("the process occupies %d MB of memory", rss(b)>>20)
	stop(b, s)
}

// BenchmarkDeliverWhileAMillionExpire reports how long deliveries take while a
// burst of earlier ones expires.
func BenchmarkDeliverWhileAMillionExpire(b *testing.B) {
	path := newPath(b)
	s := start(b, path)
	expires := time.Now().Add(time.Minute)
	fill(b, s, 1_000_000, expires)
	time.Sleep(time.Until(expires))
	full, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	var took []time.Duration
	for b.Loop() {
		for counted(b, s) > 1000 || len(took) == 0 {
			for range 100 {
				before := time.Now()
				deliver(b, s, func() dedupe.Request {
					r := numbered(1<<32 + benchID.Add(1))
					r.Retention = time.Millisecond
					return r
				}())
				took = append(took, time.Since(before))
				time.Sleep(time.Millisecond)
			}
		}
	}
	slices.Sort(took)
	b.ReportMetric(time.Since(began).Seconds(), "s-until-gone")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
	b.ReportMetric(float64(took[len(took)-1].Microseconds()), "µs-max")
	for end := time.Now().Add(caddytest.Patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if now, err := os.Stat(path); err == nil && now.Size() < full.Size()/4 {
			break
		}
	}
	now, _ := os.Stat(path)
	b.ReportMetric(float64(full.Size())/(1<<20), "MB-before")
	b.ReportMetric(float64(now.Size())/(1<<20), "MB-after")
	stop(b, s)
}

// fill records numbered IDs in the order of their keys, which is faster.
func fill(b *testing.B, s *Store, ids uint64, expires time.Time) {
	keys := make([]uint64, ids)
	for n := range keys {
		keys[n] = uint64(n) * 0x9e3779b97f4a7c15
	}
	slices.Sort(keys)
	write := func(f func(c *database.Conn) error) {
		if err := opened(b, s).db.Write(context.Background(), f); err != nil {
			b.Fatal(err)
		}
	}
	write(func(c *database.Conn) error {
		return c.Exec("INSERT INTO scopes VALUES(1, 'scope', ?)", int64(ids))
	})
	last := expires.UnixMilli()
	for some := range slices.Chunk(keys, 100_000) {
		write(func(c *database.Conn) error {
			var key dedupe.Key
			for i, k := range some {
				binary.BigEndian.PutUint64(key[:], k)
				// the inverse of the factor tells the number
				if err := c.Exec("INSERT INTO delivered VALUES(?, 1, ?, ?)", key[:], int64(k*0xf1de83e19937733d), last); err != nil {
					return err
				}
				if i%1000 == 0 {
					last++
				}
			}
			return nil
		})
	}
}

// rss returns the memory that the process occupies.
func rss(b *testing.B) (bytes int) {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Skip(err)
	}
	var size int
	fmt.Sscan(string(statm), &size, &bytes)
	return bytes * os.Getpagesize()
}
