package buzzbip

import (
	"context"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// report adds the outcome of a request to the metrics and to what the page shows.
func (s *requestState) report() {
	s.typeSeries().requests[s.result]().Inc()
	if s.reason != "" && !s.observed {
		metrics.rejections.WithLabelValues(string(s.reason)).Inc()
	}
	e := latest.addRequest(s)
	traffic.request(&e, s.now)
	problems.add(&e)
}

// addToAccessLog adds the outcome of a request to its entry in the access log, if
// its server has one.
func (s *requestState) addToAccessLog(ctx context.Context) {
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); !ok || server.Logs == nil {
		return
	}
	if log, ok := ctx.Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		log.Add(zap.Inline((*accessLogFields)(s)))
	}
}

// accessLogFields are the fields of a request when the access log is written.
type accessLogFields requestState

// MarshalLogObject implements [zapcore.ObjectMarshaler].
func (f *accessLogFields) MarshalLogObject(log zapcore.ObjectEncoder) error {
	if s := (*requestState)(f); s.verified() {
		log.AddString("buzzbip_event_id", s.event.ID)
		log.AddString("buzzbip_event_type", s.event.Type)
	}
	log.AddString("buzzbip_result", string(f.result))
	if f.wouldBe != "" {
		log.AddString("buzzbip_would_be", string(f.wouldBe))
	}
	if f.number > 1 {
		log.AddInt("buzzbip_attempt", f.number)
	}
	if f.reason != "" {
		log.AddString("buzzbip_reason", string(f.reason))
	}
	if f.failure != nil {
		log.AddString("buzzbip_cause", string(f.failure.Cause))
		if f.failure.Status != 0 { // the sender may get another one, from error routes
			log.AddInt("buzzbip_status", f.failure.Status)
		}
		if f.failure.Error != "" {
			log.AddString("buzzbip_error", f.failure.Error)
		}
	}
	return nil
}
