package buzzbip

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// The values of the label event_type, besides the documented types.
const (
	typeOther      = "other"      // a type that BuzzBip does not document
	typeUnverified = "unverified" // the request was rejected before its type was known
)

// The values of the label result of attempts to deliver an event again.
const (
	attemptAccepted = "accepted"
	attemptFailed   = "failed"
	attemptUnserved = "unserved" // no handler of the active configuration delivers the event
)

var attemptResults = []string{attemptAccepted, attemptFailed, attemptUnserved}

const (
	metricsNamespace = "caddy"
	metricsSubsystem = "buzzbip_webhook"
)

// metrics count from the start of the process, across reloads. Each configuration
// has its own registry, so each registers them again.
var metrics = struct {
	requests         *prometheus.CounterVec
	rejections       *prometheus.CounterVec
	failures         *prometheus.CounterVec
	signatureMatches *prometheus.CounterVec
	deliveryDuration *prometheus.HistogramVec
	eventAge         prometheus.Histogram
	inFlight         prometheus.GaugeFunc
	inFlightBytes    prometheus.GaugeFunc
	abandoned        prometheus.Counter
	conflicts        prometheus.Counter
	storeDuration    *prometheus.HistogramVec
	storeErrors      *prometheus.CounterVec
	wouldBe          *prometheus.CounterVec
	enforced         prometheus.GaugeFunc
	inboxAttempts    *prometheus.CounterVec
	inboxExpired     *prometheus.CounterVec
}{
	requests:         counters("requests_total", "Requests, by result and event type.", "result", "event_type"),
	rejections:       counters("rejections_total", "Rejected requests, by reason.", "reason"),
	failures:         counters("failures_total", "Failed deliveries, by cause.", "cause"),
	signatureMatches: counters("signature_matches_total", "Requests with a valid signature, by the label of the secret that matched.", "secret"),
	deliveryDuration: histograms("delivery_duration_seconds", "Duration of the handlers after buzzbip_webhook. BuzzBip disconnects after 10 seconds.",
		[]float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}, "event_type"),
	eventAge: prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "event_age_seconds",
		Help:    "Age of verified events on arrival, by their createdAt.",
		Buckets: []float64{.5, 1, 5, 15, 60, 300, 900, 3600, 6 * 3600, 24 * 3600},
	}),
	inFlight: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "in_flight",
		Help: "Deliveries in progress in the handlers after buzzbip_webhook.",
	}, func() float64 { return float64(deliveries.count()) }),
	inFlightBytes: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "in_flight_bytes",
		Help: "Memory of verified events that are delivered or wait, as max_in_flight counts it.",
	}, func() float64 { return float64(underWay.total()) }),
	abandoned: counter("abandoned_deliveries_total", "Deliveries whose sender disconnected before the response: the backend is too slow."),
	conflicts: counter("conflicts_total", "Events with the ID of a delivered event, but another body."),
	storeDuration: histograms("store_operation_duration_seconds", "Duration of store operations. A claim of a duplicate includes its wait for the delivery in progress.",
		[]float64{.00001, .0001, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10}, "store", "operation"),
	inboxAttempts: counters("inbox_attempts_total", "Attempts to deliver an event of the inbox again, by result.", "result"),
	inboxExpired:  counters("inbox_expired_events_total", "Events of the inbox that were removed because of their age, by their state.", "state"),
	wouldBe:       counters("would_be_total", "Requests that were only observed, because enforce is off, by what their result and reason would have been.", "would_be", "reason"),
	enforced: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "enforced",
		Help: "0 while a handler has enforce off, so that forged requests and duplicates reach its backend; else 1.",
	}, func() float64 {
		if app := running(); app != nil && !app.enforces() {
			return 0
		}
		return 1
	}),
	storeErrors: counters("store_errors_total", "Failed store operations.", "store", "operation"),
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: name, Help: help})
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: name, Help: help}, labels)
}

func histograms(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: name, Help: help, Buckets: buckets}, labels)
}

func init() {
	// Prometheus sees no increase in the first sample of a series, so these start at 0.
	for _, reason := range webhook.Reasons {
		metrics.rejections.WithLabelValues(string(reason))
	}
	for _, cause := range webhook.Causes {
		metrics.failures.WithLabelValues(string(cause))
	}
	for _, state := range []inbox.State{inbox.Dead, inbox.Delivered} {
		metrics.inboxExpired.WithLabelValues(string(state))
	}
}

// registerMetrics registers the metrics with the registry of a configuration.
func (a *App) registerMetrics(ctx caddy.Context) error {
	for _, collector := range []prometheus.Collector{
		metrics.requests, metrics.rejections, metrics.failures, metrics.signatureMatches, metrics.deliveryDuration, metrics.eventAge,
		metrics.inFlight, metrics.inFlightBytes, metrics.abandoned, metrics.conflicts, metrics.storeDuration, metrics.storeErrors, metrics.inboxAttempts, metrics.inboxExpired,
		metrics.wouldBe, metrics.enforced, storeCollector{}, inboxCollector{},
	} {
		if err := ctx.GetMetricsRegistry().Register(collector); err != nil {
			return err
		}
	}
	return nil
}

// typeSeries are the series of one event type. They are looked up by their labels
// only once, and not before they are used, since series of what never happened say
// nothing.
type typeSeries struct {
	requests map[webhook.Result]func() prometheus.Counter
	duration func() prometheus.Observer
}

// seriesOfTypes has a closed set of event types, since anyone who knows a secret
// can invent types.
var seriesOfTypes = func() map[string]*typeSeries {
	all := make(map[string]*typeSeries)
	for _, typ := range append([]string{typeOther, typeUnverified}, webhook.DocumentedTypes...) {
		series := &typeSeries{
			requests: make(map[webhook.Result]func() prometheus.Counter),
			duration: sync.OnceValue(func() prometheus.Observer { return metrics.deliveryDuration.WithLabelValues(typ) }),
		}
		for _, result := range webhook.Results {
			series.requests[result] = sync.OnceValue(func() prometheus.Counter { return metrics.requests.WithLabelValues(string(result), typ) })
		}
		all[typ] = series
	}
	return all
}()

// typeSeries returns the series of the event's type.
func (s *requestState) typeSeries() *typeSeries {
	if !s.verified() {
		return seriesOfTypes[typeUnverified]
	}
	if series := seriesOfTypes[s.event.Type]; series != nil {
		return series
	}
	return seriesOfTypes[typeOther]
}

// storeCollector reads the statistics of the stores at each scrape. The stores
// are those of the active configuration, which is not the one that registered the
// collector if that one failed to load.
type storeCollector struct{}

var (
	rememberedDesc = storeDesc("remembered_events", "Remembered IDs of delivered events; with redis, of those that this instance delivered.")
	evictedDesc    = storeDesc("evicted_events_total", "Event IDs that were evicted before the end of their retention, for lack of room.")
	forgottenDesc  = storeDesc("store_forgotten_events_total", "Event IDs that the store had lost after this instance recorded them there.")
	storeUpDesc    = storeDesc("store_up", "1 while the store works; 0 while this instance uses its own memory alone, or rejects events.")
)

func storeDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(metricsNamespace, metricsSubsystem, name), help, []string{"store"}, nil)
}

// Describe implements [prometheus.Collector].
func (storeCollector) Describe(descs chan<- *prometheus.Desc) {
	descs <- rememberedDesc
	descs <- evictedDesc
	descs <- forgottenDesc
	descs <- storeUpDesc
}

// Collect implements [prometheus.Collector].
func (storeCollector) Collect(values chan<- prometheus.Metric) {
	app := running()
	if app == nil {
		return
	}
	type sum struct{ remembered, evicted, forgotten, up float64 }
	totals := make(map[string]*sum)
	for _, s := range app.backings() {
		total := totals[s.kind]
		if total == nil {
			total = &sum{up: 1}
			totals[s.kind] = total
		}
		for _, scope := range s.stats.Scopes {
			total.remembered += float64(scope.Delivered)
		}
		total.evicted += float64(s.stats.Evicted)
		total.forgotten += float64(s.stats.Forgotten)
		if s.stats.Err != nil {
			total.up = 0
		}
	}
	for name, total := range totals {
		values <- prometheus.MustNewConstMetric(rememberedDesc, prometheus.GaugeValue, total.remembered, name)
		values <- prometheus.MustNewConstMetric(evictedDesc, prometheus.CounterValue, total.evicted, name)
		values <- prometheus.MustNewConstMetric(forgottenDesc, prometheus.CounterValue, total.forgotten, name)
		values <- prometheus.MustNewConstMetric(storeUpDesc, prometheus.GaugeValue, total.up, name)
	}
}

// inboxCollector reads the statistics of the inboxes of the active configuration at
// each scrape.
type inboxCollector struct{}

var (
	inboxEventsDesc = inboxDesc("inbox_events", "Events in the inbox, by state.", "state")
	inboxBytesDesc  = inboxDesc("inbox_bytes", "Size of the events in the inbox that wait or are dead, as max_size counts it.")
	inboxOldestDesc = inboxDesc("inbox_oldest_seconds", "How long the oldest event has been waiting; 0 if none waits.")
	inboxPausedDesc = inboxDesc("inbox_paused", "1 while redelivery is paused.")
	inboxUpDesc     = inboxDesc("inbox_up", "1 while the inbox can keep events; 0 if its disk fails, or if it is full.")
)

func inboxDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(metricsNamespace, metricsSubsystem, name), help, labels, nil)
}

// Describe implements [prometheus.Collector].
func (inboxCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{inboxEventsDesc, inboxBytesDesc, inboxOldestDesc, inboxPausedDesc, inboxUpDesc} {
		descs <- desc
	}
}

// Collect implements [prometheus.Collector]. With several inboxes it sums up.
func (inboxCollector) Collect(values chan<- prometheus.Metric) {
	app := running()
	if app == nil {
		return
	}
	all := app.inboxes()
	if len(all) == 0 {
		return
	}
	var waiting, dead, delivered, bytes, oldest, paused float64
	up := 1.0
	for _, h := range all {
		stats := h.inbox.Stats()
		waiting += float64(stats.Waiting)
		dead += float64(stats.Dead)
		delivered += float64(stats.Delivered)
		bytes += float64(stats.Bytes)
		if !stats.Oldest.IsZero() {
			oldest = max(oldest, time.Since(stats.Oldest).Seconds())
		}
		if !stats.Paused.IsZero() {
			paused = 1
		}
		if stats.Err != nil || h.inbox.room.isFull(stats) {
			up = 0
		}
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		values <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	gauge(inboxEventsDesc, waiting, string(inbox.Waiting))
	gauge(inboxEventsDesc, dead, string(inbox.Dead))
	gauge(inboxEventsDesc, delivered, string(inbox.Delivered))
	gauge(inboxBytesDesc, bytes)
	gauge(inboxOldestDesc, oldest)
	gauge(inboxPausedDesc, paused)
	gauge(inboxUpDesc, up)
}

// measured is a store that measures its operations and counts their errors.
type measured struct {
	store dedupe.Store
	name  string
	// backing tells what this store shares with others of its kind. It is asked
	// for once, and not by `caddy validate`.
	backing  func() string
	duration map[string]func() prometheus.Observer // by operation
}

const (
	operationClaim  = "claim"
	operationSettle = "settle"
	operationLookup = "lookup"
	operationForget = "forget"
)

func newMeasured(store dedupe.Store, name string) *measured {
	m := &measured{
		store:    store,
		name:     name,
		backing:  sync.OnceValue(func() string { return name + " " + store.Stats().Backing }),
		duration: make(map[string]func() prometheus.Observer),
	}
	for _, operation := range []string{operationClaim, operationSettle, operationLookup, operationForget} {
		m.duration[operation] = sync.OnceValue(func() prometheus.Observer { return metrics.storeDuration.WithLabelValues(name, operation) })
	}
	return m
}

// observe records an operation and returns the time at its end.
func (m *measured) observe(operation string, start time.Time, err error) (end time.Time) {
	end = time.Now()
	m.duration[operation]().Observe(end.Sub(start).Seconds())
	if err != nil && !errors.Is(err, dedupe.ErrInFlight) && !errors.Is(err, dedupe.ErrFull) {
		metrics.storeErrors.WithLabelValues(m.name, operation).Inc()
	}
	return end
}

// claim is Claim of the store, begun at start. It also returns the time at its end.
func (m *measured) claim(ctx context.Context, r dedupe.Request, start time.Time) (v dedupe.Verdict, end time.Time, err error) {
	v, err = m.store.Claim(ctx, r)
	return v, m.observe(operationClaim, start, err), err
}

func (m *measured) settle(ctx context.Context, c dedupe.Claim, delivered bool) error {
	start := time.Now()
	err := m.store.Settle(ctx, c, delivered)
	m.observe(operationSettle, start, err)
	return err
}

func (m *measured) lookup(ctx context.Context, scope string, key dedupe.Key) (dedupe.Status, error) {
	start := time.Now()
	s, err := m.store.Lookup(ctx, scope, key)
	m.observe(operationLookup, start, err)
	return s, err
}

func (m *measured) forget(ctx context.Context, scope string, key dedupe.Key) (bool, error) {
	start := time.Now()
	forgotten, err := m.store.Forget(ctx, scope, key)
	m.observe(operationForget, start, err)
	return forgotten, err
}
