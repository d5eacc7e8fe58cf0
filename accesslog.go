package buzzbip

import (
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
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
