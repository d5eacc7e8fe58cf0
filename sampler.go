package buzzbip

import (
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// sampler lets one log entry a second pass for each message and kind, and counts
// those that it suppresses. Kinds are from a closed set. The zero value is ready
// for use.
type sampler struct {
	mu      sync.Mutex
	samples map[[2]string]*sample // by message and kind
}

type sample struct {
	next       time.Time
	suppressed int
}

// log writes an entry unless it is suppressed; only then it calls fields.
func (s *sampler) log(logger *zap.Logger, level zapcore.Level, message, kind string, fields func() []zap.Field) {
	suppressed, pass := s.pass([2]string{message, kind}, time.Now())
	if !pass {
		return
	}
	if entry := logger.Check(level, message); entry != nil {
		list := fields()
		if suppressed > 0 {
			list = append(list, zap.Int("suppressed", suppressed))
		}
		entry.Write(list...)
	}
}

// pass reports whether an entry passes, and how many were suppressed before it.
func (s *sampler) pass(key [2]string, now time.Time) (suppressed int, pass bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.samples == nil {
		s.samples = make(map[[2]string]*sample)
	}
	latest := s.samples[key]
	if latest == nil {
		latest = new(sample)
		s.samples[key] = latest
	}
	if now.Before(latest.next) {
		latest.suppressed++
		return 0, false
	}
	suppressed = latest.suppressed
	*latest = sample{next: now.Add(time.Second)}
	return suppressed, true
}
