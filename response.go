package buzzbip

import (
	"io"
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// responseRecorder passes a response on and records its status.
type responseRecorder struct {
	caddyhttp.ResponseWriterWrapper
	onSuccess successHook
	status    int // of the final response; 0 until there is one
}

// successHook is called with a 2xx before the sender gets it, and returns the
// status that the sender gets.
type successHook interface{ succeed(status int) int }

func (rec *responseRecorder) WriteHeader(status int) {
	informational := status < 200 && status != http.StatusSwitchingProtocols
	if rec.status == 0 && !informational {
		if status >= 200 && status < 300 {
			status = rec.onSuccess.succeed(status)
		}
		rec.status = status
	}
	rec.ResponseWriter.WriteHeader(status)
}

// inFlight reports whether the backend is another buzzbip_webhook that answered
// that the event is in flight.
func (rec *responseRecorder) inFlight() bool {
	return rec.status == http.StatusServiceUnavailable && rec.Header().Get(webhook.ResultHeader) == string(webhook.ResultInFlight)
}

// implicitStatus writes the status 200 unless one was written, as net/http does.
func (rec *responseRecorder) implicitStatus() {
	if rec.status == 0 {
		rec.WriteHeader(http.StatusOK)
	}
}

func (rec *responseRecorder) Write(data []byte) (int, error) {
	rec.implicitStatus()
	return rec.ResponseWriter.Write(data)
}

func (rec *responseRecorder) ReadFrom(from io.Reader) (int64, error) {
	rec.implicitStatus()
	return rec.ResponseWriterWrapper.ReadFrom(from)
}

// FlushError is what [http.ResponseController] calls.
func (rec *responseRecorder) FlushError() error {
	rec.implicitStatus()
	return http.NewResponseController(rec.ResponseWriter).Flush()
}

// Interface guards
var (
	_ http.ResponseWriter = (*responseRecorder)(nil)
	_ io.ReaderFrom       = (*responseRecorder)(nil)
)
