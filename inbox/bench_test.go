package inbox

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// BenchmarkDrain shows how fast a backlog is delivered to a backend that accepts at
// once, at concurrency 8, when a commit takes 1 ms.
func BenchmarkDrain(b *testing.B) {
	for _, depth := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(depth, " waiting"), func(b *testing.B) {
			store := newMemory()
			for i := range depth + b.N {
				id := fmt.Sprint(i)
				_, _ = store.Add(context.Background(), Event{Target: "site", ID: id, Key: dedupe.KeyOf(id), Body: []byte("{}"), Arrived: time.Now(), Due: time.Now()}, 0)
			}
			store.commit = time.Millisecond
			d := NewDispatcher(store)
			delivered, enough := make(chan struct{}, 100), make(chan struct{})
			b.ResetTimer()
			d.Activate(Config{
				Policy: Policy{FirstRetry: 5 * time.Second, LongestRetry: 15 * time.Minute, Concurrency: 8},
				Deliver: func(ctx context.Context, _ Event) Outcome {
					select {
					case delivered <- struct{}{}:
						return Outcome{Attempt: Attempt{Status: 200}, Accepted: true}
					case <-enough:
						return Outcome{NoAttempt: true}
					}
				},
				Remember: func(context.Context, Event) error { return nil },
			})
			for range b.N {
				<-delivered
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			b.StopTimer()
			close(enough)
			d.Stop(context.Background())
		})
	}
}

// BenchmarkFirst is what a healthy delivery pays for the inbox.
func BenchmarkFirst(b *testing.B) {
	d := NewDispatcher(newMemory())
	defer d.Stop(context.Background())
	d.Activate(Config{Policy: Policy{FirstRetry: 5 * time.Second, LongestRetry: 15 * time.Minute, Concurrency: 8}})
	b.ReportAllocs()
	for b.Loop() {
		var f First
		f.Try(context.Background(), d, "site", nil)
		f.End(Outcome{Attempt: Attempt{Status: 200}, Accepted: true})
	}
}
