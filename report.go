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
			log.Set(zap.String("buzzbip_event_id", d.event.id))
			log.Set(zap.String("buzzbip_event_type", d.event.typ))
		}
		log.Set(zap.String("buzzbip_result", string(d.result)))
		if d.reason != "" {
			log.Set(zap.String("buzzbip_reason", string(d.reason)))
		}
	}
}

// sampler lets one log entry a second pass for each message, and says how many
// it left out. The zero value is ready for use.
type sampler struct {
	mu       sync.Mutex
	messages map[string]*sample
}

type sample struct {
	next    time.Time
	leftOut int
}

// log makes an entry with fields that are made only if it passes.
func (s *sampler) log(logger *zap.Logger, level zapcore.Level, message string, fields func() []zap.Field) {
	now := time.Now()
	s.mu.Lock()
	if s.messages == nil {
		s.messages = make(map[string]*sample)
	}
	of := s.messages[message]
	if of == nil {
		of = new(sample)
		s.messages[message] = of
	}
	if now.Before(of.next) {
		of.leftOut++
		s.mu.Unlock()
		return
	}
	leftOut := of.leftOut
	*of = sample{next: now.Add(time.Second)}
	s.mu.Unlock()
	if c := logger.Check(level, message); c != nil {
		all := fields()
		if leftOut > 0 {
			all = append(all, zap.Int("left_out", leftOut))
		}
		c.Write(all...)
	}
}
