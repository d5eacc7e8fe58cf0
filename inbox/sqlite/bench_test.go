package sqlite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/inbox/inboxtest"
	"github.com/buzzbip/caddy-webhook/internal/database"
)

const benchSize = 1024 // of bodies

var benchNumber atomic.Int64

func BenchmarkAdd(b *testing.B) {
	for _, parallel := range []int{1, 64} {
		b.Run(fmt.Sprint(parallel, " at a time"), func(b *testing.B) {
			s := start(b, newPath(b))
			b.SetParallelism(max(parallel/runtime.GOMAXPROCS(0), 1))
			b.ReportAllocs()
			if parallel == 1 {
				for b.Loop() {
					add(b, s, numbered(int(benchNumber.Add(1)), benchSize))
				}
			} else {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						add(b, s, numbered(int(benchNumber.Add(1)), benchSize))
					}
				})
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			stop(b, s)
		})
	}
}

// BenchmarkFind looks for events that are not kept.
func BenchmarkFind(b *testing.B) {
	for _, kept := range []int{0, 1000, 1_000_000} {
		b.Run(fmt.Sprint(kept, " kept"), func(b *testing.B) {
			s := start(b, newPath(b))
			fill(b, s, 0, kept, 64)
			b.ReportAllocs()
			n := 0
			keys := make([]dedupe.Key, 4096)
			for i := range keys {
				keys[i] = dedupe.KeyOf(fmt.Sprint("other ", i))
			}
			for b.Loop() {
				if _, err := s.Find(context.Background(), "scope", keys[n%len(keys)]); !errors.Is(err, inbox.ErrNotFound) {
					b.Fatal(err)
				}
				n++
			}
			stop(b, s)
		})
	}
}

// BenchmarkDrain delivers events from a backlog, 8 at a time, as a dispatcher
// does: at most limit of them. It shows that this takes no longer the more there are.
func BenchmarkDrain(b *testing.B) {
	const limit = 5000
	for _, kept := range []int{1000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(kept, " waiting"), func(b *testing.B) {
			var took time.Duration
			var dueTook []time.Duration
			for b.Loop() {
				b.StopTimer()
				s := start(b, newPath(b))
				fill(b, s, 0, kept, benchSize)
				n := min(kept, limit)
				b.StartTimer()
				began := time.Now()
				var mu sync.Mutex
				underWay := make(map[int64]bool)
				events := make(chan inbox.Event)
				var workers sync.WaitGroup
				for range 8 {
					workers.Go(func() {
						for e := range events {
							ctx := context.Background()
							_, err := s.Load(ctx, e.Number)
							err = errors.Join(err, s.Accepted(ctx, e.Number, inbox.Attempt{Time: time.Now(), Status: 200}, false), s.Remembered(ctx, e.Number))
							if err != nil {
								b.Error(err)
							}
							mu.Lock()
							delete(underWay, e.Number)
							mu.Unlock()
						}
					})
				}
				for left := n; left > 0; {
					asked := time.Now()
					due, err := s.Due(context.Background(), inboxtest.Target, time.Now(), min(8, left), func(n int64) bool {
						mu.Lock()
						defer mu.Unlock()
						return underWay[n]
					})
					if err != nil {
						b.Fatal(err)
					}
					dueTook = append(dueTook, time.Since(asked))
					left -= len(due)
					for _, e := range due {
						mu.Lock()
						underWay[e.Number] = true
						mu.Unlock()
						events <- e
					}
				}
				close(events)
				workers.Wait()
				took += time.Since(began)
				b.StopTimer()
				if got := s.Stats().Waiting; got != kept-n {
					b.Errorf("%d wait, want %d", got, kept-n)
				}
				stop(b, s)
				b.StartTimer()
			}
			slices.Sort(dueTook)
			b.ReportMetric(float64(b.N*min(kept, limit))/took.Seconds(), "events/s")
			b.ReportMetric(float64(dueTook[len(dueTook)/2].Nanoseconds())/1000, "µs/due")
		})
	}
}

// BenchmarkMillion uses a file with 1 million events that wait. Set
// BUZZBIP_BENCH_EVENTS to another number.
func BenchmarkMillion(b *testing.B) {
	kept := benchEvents(1_000_000)
	path := newPath(b)
	s := start(b, path)
	fill(b, s, 0, kept, benchSize)
	stop(b, s)
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	b.Run("start", func(b *testing.B) {
		for b.Loop() {
			stop(b, start(b, path))
		}
		b.ReportMetric(float64(info.Size())/float64(kept), "disk-B/event")
	})
	s = start(b, path)
	for _, test := range []struct {
		name string
		run  func() error
	}{
		{"add", func() error {
			_, err := s.Add(ctx, numbered(kept+int(benchNumber.Add(1)), benchSize), noLimit)
			return err
		}},
		{"due", func() error {
			_, err := s.Due(ctx, inboxtest.Target, time.Now(), 8, func(int64) bool { return false })
			return err
		}},
		{"next due", func() error {
			_, err := s.NextDue(ctx, inboxtest.Target, func(int64) bool { return false })
			return err
		}},
		{"stats", func() error { return s.Stats().Err }},
		{"page", func() error {
			_, err := s.List(ctx, inbox.Filter{State: []inbox.State{inbox.Waiting}}, int64(kept/2), 100)
			return err
		}},
		{"page of dead", func() error {
			_, err := s.List(ctx, inbox.Filter{State: []inbox.State{inbox.Dead}}, 0, 100)
			return err
		}},
		{"count of a type", func() error { _, err := s.Count(ctx, inbox.Filter{Type: []string{"message.sent"}}); return err }},
		{"page of a status", func() error { _, err := s.List(ctx, inbox.Filter{Status: []int{404}}, 0, 100); return err }},
		{"page of a state and a status", func() error {
			_, err := s.List(ctx, inbox.Filter{State: []inbox.State{inbox.Waiting}, Status: []int{404}}, 0, 100)
			return err
		}},
		{"page of a rare type", func() error { _, err := s.List(ctx, inbox.Filter{Type: []string{"message.sent"}}, 0, 100); return err }},
		{"page of the last hour", func() error { _, err := s.List(ctx, inbox.Filter{Since: time.Now()}, 0, 100); return err }},
		{"one by ID", func() error { _, err := s.List(ctx, inbox.Filter{ID: []string{"evt_00000123"}}, 0, 100); return err }},
	} {
		b.Run(test.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := test.run(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(rss(b))/(1<<20), "MB-RSS")
		})
	}
	stop(b, s)
}

// BenchmarkAddWhile reports how long it takes to add events while 100,000 others
// change. Set BUZZBIP_BENCH_EVENTS to another number.
func BenchmarkAddWhile(b *testing.B) {
	kept := benchEvents(100_000)
	ctx := context.Background()
	for _, test := range []struct {
		name string
		run  func(s *Store) error
	}{
		{"retry", func(s *Store) error { _, err := s.Retry(ctx, inbox.Filter{}, time.Now()); return err }},
		{"discard", func(s *Store) error { _, err := s.Discard(ctx, inbox.Filter{}, func(inbox.Event) {}); return err }},
		{"expire", func(s *Store) error {
			return expireAll(s, time.Now(), time.Time{})
		}},
		{"prune dead ones", func(s *Store) error { return expireAll(s, time.Time{}, time.Now()) }},
	} {
		b.Run(test.name, func(b *testing.B) {
			var took []time.Duration
			var all time.Duration
			for b.Loop() {
				b.StopTimer()
				s := start(b, newPath(b))
				fill(b, s, 0, kept, benchSize)
				if test.name == "prune dead ones" {
					if err := die(s); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				done := make(chan error, 1)
				began := time.Now()
				go func() { done <- test.run(s) }()
				for running := true; running; {
					before := time.Now()
					add(b, s, numbered(kept+int(benchNumber.Add(1)), benchSize))
					took = append(took, time.Since(before))
					select {
					case err := <-done:
						if err != nil {
							b.Error(err)
						}
						running = false
					case <-time.After(2 * time.Millisecond):
					}
				}
				all += time.Since(began)
				b.StopTimer()
				stop(b, s)
				b.StartTimer()
			}
			slices.Sort(took)
			b.ReportMetric(float64(b.N*kept)/all.Seconds(), "events/s")
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-add-p50")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-add-p99")
			b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "ms-add-max")
		})
	}
}

// die declares all events dead, as long ago as they have arrived. One statement for
// a million would take more memory than SQLite has.
func die(s *Store) error {
	const step = 10_000
	for first, n := 1, step; n == step; first += step {
		err := s.state.write(context.Background(), func(c *database.Conn) error {
			err := c.Exec("UPDATE events SET state = 'dead' WHERE number >= ? AND number < ?", first, first+step)
			n = c.Changes()
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func benchEvents(byDefault int) int {
	events := byDefault
	if n := os.Getenv("BUZZBIP_BENCH_EVENTS"); n != "" {
		fmt.Sscan(n, &events)
	}
	return events
}

// expireAll expires events step by step, as a dispatcher does: half of the time is for
// others.
func expireAll(s *Store, waitingBefore, diedBefore time.Time) error {
	for {
		began := time.Now()
		expired, err := s.Expire(context.Background(), time.Now(), waitingBefore, diedBefore, time.Time{}, 200)
		if err != nil || expired.Changed() < 200 {
			return err
		}
		time.Sleep(time.Since(began))
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

// BenchmarkHotLane delivers the events of one lane, one after another. That takes no
// longer the more there are.
func BenchmarkHotLane(b *testing.B) {
	for _, kept := range []int{100, 100_000} {
		b.Run(fmt.Sprint(kept, " waiting"), func(b *testing.B) {
			s := start(b, newPath(b))
			fillLane(b, s, kept, benchSize)
			ctx := context.Background()
			b.ReportAllocs()
			for b.Loop() {
				due, err := s.Due(ctx, inboxtest.Target, time.Now(), 128, func(int64) bool { return false })
				if err != nil || len(due) != 1 {
					b.Fatalf("%d are due, error %v", len(due), err)
				}
				n := due[0].Number
				err = errors.Join(s.Attempted(ctx, n, inbox.Attempt{Time: time.Now(), Status: 500}, time.Now(), time.Now()))
				if _, retryErr := s.Retry(ctx, inbox.Filter{Number: []int64{n}}, time.Now()); err != nil || retryErr != nil {
					b.Fatal(err, retryErr)
				}
				if _, err := s.NextDue(ctx, inboxtest.Target, func(other int64) bool { return n == other }); err != nil {
					b.Fatal(err)
				}
			}
			stop(b, s)
		})
	}
}
