package buzzbip

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// enforceOff is the only value of the option enforce.
const enforceOff = "off"

// observeTimeout bounds how much later a request ends because the store of IDs is
// asked what would have become of it.
const observeTimeout = 50 * time.Millisecond

// observe passes a request on as if the plugin were not there, and reports what
// would have become of it.
func (h *Handler) observe(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) (err error) {
	o := newObservation(h, r)
	recorder := &responseRecorder{ResponseWriterWrapper: caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, onSuccess: o}
	returned := false
	defer func() { o.finish(r, returned && err == nil && recorder.status == 0) }() // also if the next handlers panic
	err = next.ServeHTTP(recorder, r)
	returned = true
	return err
}

// observation is a request that is only observed. As a body, it keeps what the next
// handlers read, until it has all of it.
type observation struct {
	io.ReadCloser
	handler   *Handler
	signature [sha256.Size]byte
	declared  int64
	accepted  bool // by the next handlers

	mu     sync.Mutex // a transport may still read after the response
	judged bool       // state and digest are final
	body   []byte
	state  requestState
	digest dedupe.Digest
	err    error // why it would be rejected
}

// newObservation begins to observe r.
func newObservation(h *Handler, r *http.Request) *observation {
	now := time.Now()
	o := &observation{handler: h, declared: r.ContentLength}
	o.state = requestState{body: new(content), start: now, now: now, number: 1, result: webhook.ResultFailed, wouldBe: webhook.ResultRejected, observed: true}
	var reason webhook.Reason
	if o.signature, reason, o.err = admitHeaders(r); o.err != nil {
		o.judge(reason, o.err)
		return o
	}
	if r.Body == nil || r.Body == http.NoBody {
		o.take(nil, io.EOF)
		return o
	}
	o.ReadCloser, r.Body = r.Body, o
	return o
}

// Read implements [io.Reader].
func (o *observation) Read(b []byte) (int, error) {
	n, err := o.ReadCloser.Read(b)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.take(b[:n], err)
	return n, err
}

// take keeps what was read of the body. The caller locks.
func (o *observation) take(data []byte, err error) {
	if o.judged {
		return
	}
	o.body = append(o.body, data...)
	switch {
	case int64(len(o.body)) > o.handler.maxBodySize:
		o.judge(bodyRejection(webhook.ErrBodyTooLarge))
	case errors.Is(err, io.EOF), int64(len(o.body)) == o.declared:
		if time.Since(o.state.start) > o.handler.readTimeout {
			o.judge(webhook.ReasonBodyTimeout, errors.New("the body did not arrive within read_timeout"))
			return
		}
		reason, err := o.handler.verify(&o.state, o.body, o.signature)
		if reason == "" { // else the buffer may be in use again
			o.digest = dedupe.DigestOf(o.body)
		}
		o.judge(reason, err)
	case err != nil:
		o.judge(bodyRejection(err))
	}
}

// judge records the outcome of the steps before the store is asked. The body is not
// needed any more: it does not take memory while the backend works.
func (o *observation) judge(reason webhook.Reason, err error) {
	o.judged, o.body, o.err = true, nil, err
	o.state.reason = reason
	o.state.body.bytes, o.state.body.data, o.state.body.createdAt = nil, nil, bytes.Clone(o.state.body.createdAt)
}

// succeed implements [successHook].
func (o *observation) succeed(status int) int {
	o.accepted = true
	return status
}

// finish reports the request when the next handlers have returned.
func (o *observation) finish(r *http.Request, unhandled bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	h, s := o.handler, &o.state
	s.now = time.Now()
	if o.accepted {
		s.result = webhook.ResultDelivered
	}
	traffic.attempt(o.accepted, s.now)
	switch {
	case !o.judged:
		o.judge("", nil)
		s.wouldBe = webhook.WouldBeUnknown
	case s.reason != "":
		s.remote = remoteAddress(r)
		o.logRejection(r)
	case !h.events.match(s.event.Type):
		s.wouldBe = webhook.ResultIgnored
	default:
		s.wouldBe = o.outcome(r)
		if unhandled && s.wouldBe == webhook.ResultFailed {
			s.reason = webhook.ReasonUnhandled
		}
	}
	metrics.wouldBe.WithLabelValues(string(s.wouldBe), string(s.reason)).Inc()
	observed.add(s)
	if other := stateOf(r); other != nil {
		other.wouldBe = s.wouldBe // another buzzbip_webhook has reported the request
		return
	}
	s.publish(r.Context())
	s.report()
}

// outcome returns what would have become of a valid event: it is a duplicate if the
// backend has accepted it before.
func (o *observation) outcome(r *http.Request) webhook.Result {
	h, s := o.handler, &o.state
	if h.store == nil {
		return o.delivery()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), observeTimeout)
	defer cancel()
	verdict, err := h.claim(s, r.WithContext(ctx), h.claimRequest(s, o.digest))
	if err != nil {
		if s.reason, o.err = claimRejection(err); s.reason == webhook.ReasonInFlight {
			return webhook.ResultInFlight
		}
		o.logRejection(r)
		return webhook.ResultRejected
	}
	switch verdict.State {
	case dedupe.Delivered:
		return webhook.ResultDuplicate
	case dedupe.Conflicting:
		return webhook.ResultConflict
	}
	_ = h.store.settle(ctx, verdict.Claim, o.accepted) // its error is counted
	return o.delivery()
}

func (o *observation) delivery() webhook.Result {
	switch {
	case o.accepted:
		return webhook.ResultDelivered
	case o.handler.inbox != nil:
		return webhook.ResultStored
	}
	return webhook.ResultFailed
}

func (o *observation) logRejection(r *http.Request) {
	h, s := o.handler, &o.state
	h.sampled.log(h.logger, zapcore.WarnLevel, "request would be rejected, but enforce is off", string(s.reason), func() []zap.Field {
		return rejectionFields(s, r, o.err)
	})
}

// observed counts the requests of the process that were only observed.
var observed observations

type observations struct {
	mu      sync.Mutex
	count   uint64
	wouldBe map[webhook.Result]uint64
	reasons map[webhook.Reason]uint64
}

func (all *observations) add(s *requestState) {
	all.mu.Lock()
	defer all.mu.Unlock()
	if all.count++; all.count == 1 {
		all.wouldBe, all.reasons = make(map[webhook.Result]uint64), make(map[webhook.Reason]uint64)
	}
	all.wouldBe[s.wouldBe]++
	if s.reason != "" {
		all.reasons[s.reason]++
	}
}

// report returns what the admin API tells, or nil if no request was observed.
func (all *observations) report() *adminapi.Observed {
	all.mu.Lock()
	defer all.mu.Unlock()
	if all.count == 0 {
		return nil
	}
	return &adminapi.Observed{Requests: all.count, WouldBe: maps.Clone(all.wouldBe), Reasons: maps.Clone(all.reasons)}
}

// enforces reports whether no handler has enforce off.
func (a *App) enforces() bool {
	return !slices.ContainsFunc(a.handlers, func(h *Handler) bool { return h.Enforce == enforceOff })
}
