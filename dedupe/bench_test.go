package dedupe

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

const million = 1_000_000

// benchRequest makes request n without the cost of KeyOf.
func benchRequest(n uint64) Request {
	return Request{Scope: "scope", Key: counterKey(n), Digest: Digest(n), Wait: time.Second, Retention: 24 * time.Hour}
}

func claimAndSettle(b *testing.B, l *Ledger, n uint64, limits Limits) {
	v, err := l.Claim(context.Background(), benchRequest(n), limits)
	if err != nil || v.State != Claimed {
		b.Fatal(v.State, err)
	}
	l.Settle(v.Claim, true, time.Now(), limits)
}

// fullLedger returns a ledger that remembers as many IDs as its limits allow.
func fullLedger(b *testing.B) (*Ledger, Limits) {
	l, limits := new(Ledger), Limits{Capacity: million}
	for n := range uint64(million) {
		claimAndSettle(b, l, n, limits)
	}
	return l, limits
}

// Every new ID evicts an old one.
func BenchmarkNewIDAtCapacity(b *testing.B) {
	l, limits := fullLedger(b)
	b.ReportAllocs()
	for n := uint64(million); b.Loop(); n++ {
		claimAndSettle(b, l, n, limits)
	}
}

func BenchmarkNewIDAtCapacityParallel(b *testing.B) {
	l, limits := fullLedger(b)
	var counter atomic.Uint64
	counter.Store(million)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			claimAndSettle(b, l, counter.Add(1), limits)
		}
	})
}

func BenchmarkDuplicateOfAMillion(b *testing.B) {
	l, limits := fullLedger(b)
	b.ReportAllocs()
	for n := uint64(0); b.Loop(); n += 7919 { // a prime, so that the order is not that in memory
		v, err := l.Claim(context.Background(), benchRequest(n%million), limits)
		if err != nil || v.State != Delivered {
			b.Fatal(v.State, err)
		}
	}
}

func BenchmarkKeyOf(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		KeyOf("evt_7f3a9b2c")
	}
}

func BenchmarkDigestOf(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			body := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				DigestOf(body)
			}
		})
	}
}
