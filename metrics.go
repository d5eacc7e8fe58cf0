package buzzbip

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// The values of the label event_type, besides the documented types.
const (
	typeOther      = "other"      // a type that BuzzBip does not document
	typeUnverified = "unverified" // nobody knows: the request was refused before
)

const (
	metricsNamespace = "caddy"
	metricsSubsystem = "buzzbip_webhook"
)

// metrics count over the life of the process, whatever the configurations that
// come and go: each registers them anew, for each has a registry of its own.
var metrics = struct {
	deliveries       *prometheus.CounterVec
	rejections       *prometheus.CounterVec
	failures         *prometheus.CounterVec
	signatureMatches *prometheus.CounterVec
	deliveryDuration *prometheus.HistogramVec
	eventAge         prometheus.Histogram
	inFlight         prometheus.GaugeFunc
	abandoned        prometheus.Counter
	conflicts        prometheus.Counter
	storeDuration    *prometheus.HistogramVec
	storeErrors      *prometheus.CounterVec
}{
	deliveries:       counters("deliveries_total", "Requests by what became of them.", "result", "event_type"),
	rejections:       counters("rejections_total", "Requests that were refused, by reason.", "reason"),
	failures:         counters("failures_total", "Deliveries that failed, by cause.", "cause"),
	signatureMatches: counters("signature_matches_total", "Requests whose signature was right, by the label of the secret that matched.", "secret"),
	deliveryDuration: histograms("delivery_duration_seconds", "How long the handlers after buzzbip_webhook took. BuzzBip hangs up after 10 seconds.",
		[]float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}, "event_type"),
	eventAge: prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "event_age_seconds",
		Help:    "How old verified events were on arrival, by their createdAt.",
		Buckets: []float64{.5, 1, 5, 15, 60, 300, 900, 3600, 6 * 3600, 24 * 3600},
	}),
	inFlight: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "in_flight",
		Help: "Deliveries that are with the handlers after buzzbip_webhook now.",
	}, func() float64 { return float64(inFlight.Load()) }),
	abandoned: counter("abandoned_deliveries_total", "Deliveries whose sender hung up before the answer: the backend is too slow."),
	conflicts: counter("conflicts_total", "Events that arrived with the id of another that was delivered."),
	storeDuration: histograms("store_operation_duration_seconds", "How long operations of the store took. A claim of a duplicate includes its wait for the first delivery.",
		[]float64{.00001, .0001, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10}, "store", "operation"),
	storeErrors: counters("store_errors_total", "Operations of the store that failed.", "store", "operation"),
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
	// a series that is not there yet cannot be seen to rise
	for _, reason := range webhook.Reasons {
		metrics.rejections.WithLabelValues(string(reason))
	}
	for _, cause := range webhook.Causes {
		metrics.failures.WithLabelValues(string(cause))
	}
}

// registerMetrics makes the metrics part of a configuration.
func (a *App) registerMetrics(ctx caddy.Context) error {
	for _, collector := range []prometheus.Collector{
		metrics.deliveries, metrics.rejections, metrics.failures, metrics.signatureMatches, metrics.deliveryDuration, metrics.eventAge,
		metrics.inFlight, metrics.abandoned, metrics.conflicts, metrics.storeDuration, metrics.storeErrors,
		storeCollector{},
	} {
		if err := ctx.GetMetricsRegistry().Register(collector); err != nil {
			return err
		}
	}
	return nil
}

// eventTypeLabel is from a closed set: anybody with a secret can make up types.
func eventTypeLabel(state *requestState) string {
	switch {
	case !state.verified():
		return typeUnverified
	case slices.Contains(webhook.DocumentedTypes, state.event.Type):
		return state.event.Type
	}
	return typeOther
}

// storeCollector asks the stores when it is scraped: those of the configuration
// that is in force, which is not the one it is part of if that failed to load.
type storeCollector struct{}

var (
	rememberedDesc = storeDesc("remembered_events", "Delivered event ids that are remembered; with redis, those that this instance delivered.")
	evictedDesc    = storeDesc("evicted_events_total", "Event ids that were forgotten before their retention had passed, for lack of room.")
	forgottenDesc  = storeDesc("store_forgotten_events_total", "Event IDs that the store no longer knew, although this instance had recorded them there.")
	storeUpDesc    = storeDesc("store_up", "1 while the store works, 0 while it runs on the memory of this instance alone, or refuses.")
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
	sums := make(map[string]*sum)
	for _, s := range app.backings() {
		of := sums[s.kind]
		if of == nil {
			of = &sum{up: 1}
			sums[s.kind] = of
		}
		for _, scope := range s.stats.Scopes {
			of.remembered += float64(scope.Delivered)
		}
		of.evicted += float64(s.stats.Evicted)
		of.forgotten += float64(s.stats.Forgotten)
		if s.stats.Err != nil {
			of.up = 0
		}
	}
	for name, of := range sums {
		values <- prometheus.MustNewConstMetric(rememberedDesc, prometheus.GaugeValue, of.remembered, name)
		values <- prometheus.MustNewConstMetric(evictedDesc, prometheus.CounterValue, of.evicted, name)
		values <- prometheus.MustNewConstMetric(forgottenDesc, prometheus.CounterValue, of.forgotten, name)
		values <- prometheus.MustNewConstMetric(storeUpDesc, prometheus.GaugeValue, of.up, name)
	}
}

// measured is a store whose operations are timed and whose errors are counted.
type measured struct {
	dedupe.Store
	name string
}

func (m *measured) observe(operation string, start time.Time, err error) {
	metrics.storeDuration.WithLabelValues(m.name, operation).Observe(time.Since(start).Seconds())
	if err != nil && !errors.Is(err, dedupe.ErrInFlight) && !errors.Is(err, dedupe.ErrFull) {
		metrics.storeErrors.WithLabelValues(m.name, operation).Inc()
	}
}

func (m *measured) Claim(ctx context.Context, r dedupe.Request) (v dedupe.Verdict, err error) {
	defer func(start time.Time) { m.observe("claim", start, err) }(time.Now())
	return m.Store.Claim(ctx, r)
}

func (m *measured) Settle(ctx context.Context, c dedupe.Claim, delivered bool) (err error) {
	defer func(start time.Time) { m.observe("settle", start, err) }(time.Now())
	return m.Store.Settle(ctx, c, delivered)
}

func (m *measured) Lookup(ctx context.Context, scope string, key dedupe.Key) (s dedupe.Status, err error) {
	defer func(start time.Time) { m.observe("lookup", start, err) }(time.Now())
	return m.Store.Lookup(ctx, scope, key)
}

func (m *measured) Forget(ctx context.Context, scope string, key dedupe.Key) (forgotten bool, err error) {
	defer func(start time.Time) { m.observe("forget", start, err) }(time.Now())
	return m.Store.Forget(ctx, scope, key)
}
