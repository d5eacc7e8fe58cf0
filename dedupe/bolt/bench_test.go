package bolt

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

var benchID atomic.Uint64

func BenchmarkDeliver(b *testing.B) {
	for _, parallel := range []int{1, 16, 256} {
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
		if v, err := s.Claim(context.Background(), numbered(1)); err != nil || v.State == 0 {
			b.Fatal(v, err)
		}
	}
	stop(b, s)
}

func BenchmarkOpenAMillionIDs(b *testing.B) {
	const million = 1_000_000
	path := newPath(b)
	s := start(b, path)
	f := opened(b, s)
	began := time.Now()
	for n := uint64(0); n < million; {
		changes := make([]change, 1000)
		for i := range changes {
			r := numbered(n)
			changes[i].record = record{"scope", r.Key, r.Digest, began.Add(time.Hour + time.Duration(n)).UnixNano()}
			n++
		}
		if err := commit(f.db, changes, began.UnixNano()); err != nil {
			b.Fatal(err)
		}
	}
	stop(b, s)
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		f, err := open(path)
		if err != nil {
			b.Fatal(err)
		}
		if err := f.Destruct(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(info.Size())/million, "disk-B/id")
}
