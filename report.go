package buzzbip

import (
	"net/http"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// report tells the metrics, the page of the admin endpoint and the access log
// what became of a request.
func (h *Handler) report(d *delivery, r *http.Request, start time.Time) {
	metrics.deliveries.WithLabelValues(string(d.result), eventTypeLabel(d)).Inc()
	if d.reason != "" {
		metrics.rejections.WithLabelValues(string(d.reason)).Inc()
	}
	latest.add(d, start)
	if log, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		if d.verified() {
			log.Set(zap.String("buzzbip_event_id", d.event.ID))
			log.Set(zap.String("buzzbip_event_type", d.event.Type))
		}
		log.Set(zap.String("buzzbip_result", string(d.result)))
		if d.reason != "" {
			log.Set(zap.String("buzzbip_reason", string(d.reason)))
		}
		if f := d.failure; f != nil {
			log.Set(zap.String("buzzbip_cause", string(f.Cause)))
			if f.Status != 0 { // error routes may give the sender another
				log.Set(zap.Int("buzzbip_status", f.Status))
			}
		}
	}
}

// sampler lets one log entry a second pass for each key, and says how many it
// suppressed. The zero value is ready for use.
type sampler struct {
	mu   sync.Mutex
	keys map[string]*sample // closed sets only
}

type sample struct {
	next       time.Time
	suppressed int
}

// log makes an entry, sampled by its message, with fields that are made only if
// it passes.
func (s *sampler) log(logger *zap.Logger, level zapcore.Level, message string, fields func() []zap.Field) {
	s.logEach(message, logger, level, message, fields)
}

// logEach is log, sampled by another key.
func (s *sampler) logEach(key string, logger *zap.Logger, level zapcore.Level, message string, fields func() []zap.Field) {
	now := time.Now()
	s.mu.Lock()
	if s.keys == nil {
		s.keys = make(map[string]*sample)
	}
	entries := s.keys[key]
	if entries == nil {
		entries = new(sample)
		s.keys[key] = entries
	}
	if now.Before(entries.next) {
		entries.suppressed++
		s.mu.Unlock()
		return
	}
	suppressed := entries.suppressed
	*entries = sample{next: now.Add(time.Second)}
	s.mu.Unlock()
	if c := logger.Check(level, message); c != nil {
		list := fields()
		if suppressed > 0 {
			list = append(list, zap.Int("suppressed", suppressed))
		}
		c.Write(list...)
	}
}
