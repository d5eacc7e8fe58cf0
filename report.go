package buzzbip

import (
	"net/http"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// report adds the outcome of a request to the metrics, the feed and the access
// log.
func (h *Handler) report(state *requestState, r *http.Request, start time.Time) {
	metrics.requests.WithLabelValues(string(state.result), eventTypeLabel(state)).Inc()
	if state.reason != "" {
		metrics.rejections.WithLabelValues(string(state.reason)).Inc()
	}
	latest.add(state, start)
	if log, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		if state.verified() {
			log.Set(zap.String("buzzbip_event_id", state.event.ID))
			log.Set(zap.String("buzzbip_event_type", state.event.Type))
		}
		log.Set(zap.String("buzzbip_result", string(state.result)))
		if state.reason != "" {
			log.Set(zap.String("buzzbip_reason", string(state.reason)))
		}
		if f := state.failure; f != nil {
			log.Set(zap.String("buzzbip_cause", string(f.Cause)))
			if f.Status != 0 { // the sender may get another one, from error routes
				log.Set(zap.Int("buzzbip_status", f.Status))
			}
		}
	}
}

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
