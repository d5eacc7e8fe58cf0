//go:build monitoring

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// panel is what the tests read of a panel of the dashboard.
type panel struct {
	ID                       int
	Type, Title, Description string
	GridPos                  struct{ X, Y, W, H int }
	Datasource               struct{ Type, UID string }
	Targets                  []struct {
		RefID, Expr    string
		Instant, Range bool
	}
	FieldConfig struct {
		Defaults struct{ Unit, NoValue string }
	}
}

type dashboard struct {
	UID, Title string
	Templating struct {
		List []struct {
			Name, Type string
			Query      any
		}
	}
	Panels []panel
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	if err := json.Unmarshal([]byte(example(t, "monitoring/grafana-dashboard.json")), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// query returns the first query of a panel.
func (d dashboard) query(t *testing.T, title string) string {
	t.Helper()
	for _, p := range d.Panels {
		if p.Title == title && len(p.Targets) > 0 {
			return p.Targets[0].Expr
		}
	}
	t.Fatalf("there is no panel %q", title)
	return ""
}

// Grafana is not there to import it: these are the mistakes that it would show.
func TestMonitoringDashboardIsWellFormed(t *testing.T) {
	d := readDashboard(t)
	if d.UID == "" || d.Title == "" {
		t.Error("the dashboard has no uid or no title")
	}
	types := make(map[string]string)
	for _, v := range d.Templating.List {
		types[v.Name] = v.Type
	}
	if want := map[string]string{"datasource": "datasource", "job": "query", "instance": "query"}; !maps.Equal(types, want) {
		t.Errorf("the variables are %v, want %v", types, want)
	}
	ids := make(map[int]bool)
	taken := make(map[[2]int]string)
	for _, p := range d.Panels {
		if p.ID == 0 || ids[p.ID] {
			t.Errorf("%s: the id %d is not its own", p.Title, p.ID)
		}
		ids[p.ID] = true
		g := p.GridPos
		if g.W < 1 || g.H < 1 || g.X < 0 || g.X+g.W > 24 {
			t.Errorf("%s is at %+v", p.Title, g)
		}
		over := make(map[string]bool)
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other, overlap := taken[[2]int{x, y}]; overlap && !over[other] {
					over[other] = true
					t.Errorf("%s is over %s", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Title == "" || p.Description == "" || p.FieldConfig.Defaults.NoValue == "" ||
			p.FieldConfig.Defaults.Unit == "" && p.Type != "state-timeline" {
			t.Errorf("%s has no title, description, unit or noValue: %+v", cmp.Or(p.Title, strconv.Itoa(p.ID)), p)
		}
		if p.Datasource.Type != "prometheus" || p.Datasource.UID != "${datasource}" {
			t.Errorf("%s has the data source %v", p.Title, p.Datasource)
		}
		refs := make(map[string]bool)
		for _, target := range p.Targets {
			if target.RefID == "" || refs[target.RefID] || target.Expr == "" || target.Instant == target.Range {
				t.Errorf("%s has the query %+v", p.Title, target)
			}
			refs[target.RefID] = true
		}
		if len(refs) == 0 {
			t.Errorf("%s asks for nothing", p.Title)
		}
	}
}

// prometheus is a running process.
type prometheus struct {
	t       *testing.T
	address string
	log     caddytest.Output
}

// startPrometheus runs Prometheus with the configuration and the rules of the
// example, which scrapes Caddy's admin endpoint.
func startPrometheus(t *testing.T, target string) *prometheus {
	t.Helper()
	binary, err := exec.LookPath("prometheus")
	if err != nil {
		t.Fatalf("%v: make monitoring installs it", err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"prometheus.yml": example(t, "monitoring/prometheus.yml",
			"localhost:2019", target, "scrape_interval: 15s", "scrape_interval: 1s", "evaluation_interval: 15s", "evaluation_interval: 1s"),
		// 10 minutes are too long for a test
		"alerts.yml": example(t, "monitoring/alerts.yml", "oldest_seconds > 600", "oldest_seconds > 1"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := &prometheus{t: t, address: caddytest.FreeAddress(t)}
	cmd := exec.Command(binary, "--config.file", filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path", filepath.Join(dir, "data"),
		"--web.listen-address", p.address, "--log.level", "warn")
	p.log = caddytest.Capture(t, cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(caddytest.Patience):
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("log of Prometheus:\n%s", p.log.String())
		}
	})
	caddytest.WaitFor(t, "Prometheus to be ready", func() bool {
		select {
		case <-ended:
			t.Fatalf("Prometheus ended: %s", p.log.String())
		default:
		}
		res, err := http.Get("http://" + p.address + "/-/ready")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return p
}

// get asks the API of Prometheus.
func (p *prometheus) get(path string, query url.Values, data any) {
	p.t.Helper()
	res, err := http.Get("http://" + p.address + "/api/v1/" + path + "?" + query.Encode())
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	answer := struct {
		Status, Error string
		Warnings      []string
		Data          any
	}{Data: data}
	if err := json.Unmarshal(raw, &answer); err != nil || answer.Status != "success" || len(answer.Warnings) > 0 {
		p.t.Fatalf("%s %v: %v: %s", path, query, err, raw)
	}
}

// sample is a value and its time, as Prometheus writes them.
type sample [2]any

func (s sample) value() float64 {
	text, _ := s[1].(string)
	value, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return math.NaN()
	}
	return value
}

type series struct {
	Metric map[string]string
	Value  sample
	Values []sample
}

// query evaluates an expression now.
func (p *prometheus) query(expr string) []series {
	p.t.Helper()
	var data struct{ Result []series }
	p.get("query", url.Values{"query": {expr}}, &data)
	return data.Result
}

// by returns the values of an expression by a label.
func (p *prometheus) by(label, expr string) map[string]float64 {
	p.t.Helper()
	values := make(map[string]float64)
	for _, s := range p.query(expr) {
		values[s.Metric[label]] = s.Value.value()
	}
	return values
}

// view is how Grafana looks at the dashboard: at a span of time, and at what is
// selected in the variables.
type view struct {
	*prometheus
	start, end    time.Time
	job, instance string // as regular expressions
}

const (
	viewStep = 2 * time.Second
	// Grafana takes 4 scrape intervals, or one and a step.
	viewRateInterval = "4s"
)

// interpolate does as Grafana does.
func (v *view) interpolate(expr string) string {
	v.t.Helper()
	expr = strings.NewReplacer(
		"$__rate_interval", viewRateInterval,
		"$__range", fmt.Sprintf("%.0fs", v.end.Sub(v.start).Seconds()),
		"$job", v.job,
		"$instance", v.instance,
	).Replace(expr)
	if strings.Contains(expr, "$") {
		v.t.Fatalf("there is no such variable: %s", expr)
	}
	return expr
}

// values returns all that a query of a panel yields.
func (v *view) values(expr string, instant bool) (all []float64) {
	v.t.Helper()
	query := url.Values{"query": {v.interpolate(expr)}}
	var data struct{ Result []series }
	if instant {
		query.Set("time", v.end.Format(time.RFC3339Nano))
		v.get("query", query, &data)
	} else {
		query.Set("start", v.start.Format(time.RFC3339Nano))
		query.Set("end", v.end.Format(time.RFC3339Nano))
		query.Set("step", viewStep.String())
		v.get("query_range", query, &data)
	}
	for _, s := range data.Result {
		if instant {
			s.Values = []sample{s.Value}
		}
		for _, at := range s.Values {
			all = append(all, at.value())
		}
	}
	return all
}

// quoted is a regular expression that matches a value, in a PromQL string.
func quoted(value string) string {
	return strings.ReplaceAll(regexp.QuoteMeta(value), `\`, `\\`)
}

// load sends requests of all kinds, and counts the outcomes to expect.
type load struct {
	t                   *testing.T
	hooks, others       *tour
	files               string // a directory
	arrived, release    chan struct{}
	results, rejections map[string]float64
	matches             map[string]float64
}

// does makes a request, and notes what Caddy does with it. Without a secret, the
// signature of the request stays as it is.
func (l *load) does(result, reason, secret string, do func()) {
	l.t.Helper()
	do()
	l.results[result]++
	if reason != "" {
		l.rejections[reason]++
	}
	if secret != "" {
		l.matches[secret]++
	}
}

const hooksPath = "/webhooks/buzzbip"

// round makes requests of each kind, and n of most.
func (l *load) round(n int) {
	l.t.Helper()
	h, o := l.hooks, l.others
	for i := range n {
		first := caddytest.Event{Data: `{"n":1}`}.Body()
		l.does("delivered", "", "current", func() { h.sends(hooksPath, caddytest.Secret, first, 200) })
		l.does("delivered", "", "current", func() { h.sends(hooksPath, caddytest.Secret, caddytest.Event{Type: "contact.created"}.Body(), 200) })
		l.does("delivered", "", "current", func() {
			h.sends(hooksPath, caddytest.Secret, caddytest.Event{Type: "shop.sold", Created: time.Now().Add(-time.Minute)}.Body(), 200)
		})
		l.does("duplicate", "", "current", func() { h.sends(hooksPath, caddytest.Secret, first, 200) })
		l.failure()
		for range 2 {
			l.does("rejected", "signature_mismatch", "", func() {
				h.expect(h.request(http.MethodPost, hooksPath, strings.Repeat("0", 64), caddytest.NewEvent()), 401)
			})
		}
		l.does("rejected", "signature_missing", "", func() { h.expect(h.request(http.MethodPost, hooksPath, "", caddytest.NewEvent()), 401) })
		l.does("rejected", "signature_malformed", "", func() { h.expect(h.request(http.MethodPost, hooksPath, "sha256=12", caddytest.NewEvent()), 401) })
		l.does("rejected", "method_not_allowed", "", func() { h.expect(h.request(http.MethodGet, hooksPath, "", ""), 405) })
		// a store for one id, and one that is down
		l.does("delivered", "", "other", func() { o.sends("/small", otherSecret, caddytest.NewEvent(), 200) })
		l.does("rejected", "store_unavailable", "other", func() { o.sends("/down", otherSecret, caddytest.NewEvent(), 503) })
		if i > 0 {
			continue
		}
		l.does("conflict", "", "current", func() { h.sends(hooksPath, caddytest.Secret, strings.Replace(first, `"n":1`, `"n":2`, 1), 200) })
		l.does("delivered", "", "previous", func() { h.sends(hooksPath, oldSecret, caddytest.NewEvent(), 200) })
		l.does("rejected", "envelope_invalid", "current", func() { h.sends(hooksPath, caddytest.Secret, `{"id":"evt_1"}`, 400) })
		l.does("ignored", "", "other", func() { o.sends("/small", otherSecret, caddytest.Event{Type: "contact.updated"}.Body(), 200) })
	}
}

// failure is a delivery that the backend fails.
func (l *load) failure() {
	l.t.Helper()
	l.does("failed", "", "current", func() {
		body := caddytest.NewEvent()
		r := l.hooks.request(http.MethodPost, hooksPath, caddytest.Sign(body), body)
		r.Header.Set("X-Mode", "fail")
		l.hooks.expect(r, 500)
	})
}

// inbox stores an event that the backend cannot be reached for, one that is dead at once,
// one that nothing delivers, and one that is dead and removed, and has the file of another inbox removed.
func (l *load) inbox() {
	l.t.Helper()
	l.does("stored", "", "other", func() {
		body := caddytest.NewEvent()
		r := l.others.request(http.MethodPost, "/kept", caddytest.SignWith(otherSecret, body), body)
		r.Header.Set("X-Mode", "poison")
		l.others.expect(r, 200)
	})
	l.does("stored", "", "other", func() { l.others.sends("/kept", otherSecret, caddytest.NewEvent(), 200) })
	l.does("stored", "", "other", func() { l.others.sends("/temporary", otherSecret, caddytest.NewEvent(), 200) })
	l.does("stored", "", "other", func() { l.others.sends("/removed", otherSecret, caddytest.NewEvent(), 200) })
	for _, file := range []string{"there", "lost.db"} {
		if err := os.Remove(filepath.Join(l.files, file)); err != nil {
			l.t.Fatal(err)
		}
	}
}

// slow starts a delivery that lasts until there is something in l.release, and
// returns what makes its sender disconnect.
func (l *load) slow(body string) (disconnect func()) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(l.t.Context())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		r := l.others.request(http.MethodPost, "/small", caddytest.SignWith(otherSecret, body), body).WithContext(ctx)
		r.Header.Set("X-Mode", "slow")
		if res, err := http.DefaultClient.Do(r); err == nil {
			res.Body.Close()
		}
	}()
	caddytest.Receive(l.t, l.arrived, "the delivery")
	l.results["delivered"]++
	l.matches["other"]++
	return func() {
		cancel()
		<-gone
	}
}

// startLoad runs Caddy as in the example, with sites for what that does not have.
// metrics is the address of one for Prometheus alone.
func startLoad(t *testing.T) (l *load, metrics string) {
	t.Helper()
	l = &load{t: t, files: t.TempDir(), arrived: make(chan struct{}, 100), release: make(chan struct{}),
		results: make(map[string]float64), rejections: make(map[string]float64), matches: make(map[string]float64)}
	b := caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("X-Mode") {
		case "fail":
			w.WriteHeader(http.StatusInternalServerError)
		case "slow":
			l.arrived <- struct{}{}
			select {
			case <-l.release:
			case <-t.Context().Done():
			}
		}
	})
	if err := os.WriteFile(filepath.Join(l.files, "there"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	secrets := t.TempDir()
	for name, secret := range map[string]string{"buzzbip": caddytest.Secret, "buzzbip_previous": oldSecret} {
		if err := os.WriteFile(filepath.Join(secrets, name), []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l.hooks = &tour{t: t, address: caddytest.FreeAddress(t)}
	l.others = &tour{t: t, address: caddytest.FreeAddress(t)}
	metrics = caddytest.FreeAddress(t)
	example := example(t, "monitoring/Caddyfile",
		"hooks.example.com {", "http://"+l.hooks.address+" {", "/run/secrets", secrets, "127.0.0.1:9000", b.Address())
	_, example, _ = strings.Cut(example, "\n{\n")
	globals, sites, found := strings.Cut(example, "\n}\n")
	if !found {
		t.Fatal("the example has no global options")
	}
	sites += fmt.Sprintf(`
http://%[1]s {
	handle /small {
		buzzbip_webhook {
			secret {env.OTHER_SECRET} other
			events message.*
			answer_within 50ms
			store memory {
				capacity 1
			}
		}
		reverse_proxy %[2]s
	}
	handle /busy {
		buzzbip_webhook {
			secret {env.OTHER_SECRET} other
			dedupe off
			answer_within 50ms
			max_in_flight 1KiB
		}
		reverse_proxy %[2]s
	}
	handle /down {
		buzzbip_webhook {
			secret {env.OTHER_SECRET} other
			store redis redis://%[3]s { # nobody listens there
				timeout 100ms
				when_down refuse
			}
		}
		reverse_proxy %[2]s
	}
	@kept {
		path /kept /temporary
		expression "path('/kept') || file({'root': '%[4]s', 'try_files': ['there']})"
	}
	handle @kept {
		buzzbip_webhook {
			secret {env.OTHER_SECRET} other
			scope kept
			inbox sqlite %[4]s/kept.db {
				retry 100ms 1s
				dead_on 422
			}
		}
		@poison header X-Mode poison
		respond @poison 422
		reverse_proxy %[3]s # nobody listens there
	}
	handle /removed {
		buzzbip_webhook {
			secret {env.OTHER_SECRET} other
			scope removed
			inbox sqlite %[4]s/removed.db {
				dead_on 422
				keep_dead 10ms
			}
		}
		respond 422
	}
	handle /lost {
		buzzbip_webhook {
			secret {env.OTHER_SECRET} other
			scope lost
			inbox sqlite %[4]s/lost.db
		}
		reverse_proxy %[2]s
	}
}
`, l.others.address, b.Address(), caddytest.FreeAddress(t), l.files)
	sites += metricsSite(t, metrics)
	c := caddytest.Start(t, "", globals, sites, "OTHER_SECRET="+otherSecret)
	l.hooks.Caddy, l.others.Caddy = c, c
	return l, metrics
}

// metricsSite is the site for a Prometheus on another machine, as the documentation has it.
func metricsSite(t *testing.T, address string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "docs", "MONITORING.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, site, _ := strings.Cut(string(text), "```caddyfile\n")
	site, _, _ = strings.Cut(site, "```")
	for _, replace := range [][2]string{{"10.0.0.5:9180", address}, {"10.0.0.9", "127.0.0.1"}} {
		if strings.Count(site, replace[0]) != 1 {
			t.Fatalf("the documentation has no %s in %q", replace[0], site)
		}
		site = strings.Replace(site, replace[0], replace[1], 1)
	}
	return site
}

// sampleNames returns the names of our samples in what Caddy reports to Prometheus,
// and the names of the metrics that they are of.
func sampleNames(text string) (samples, families []string) {
	for _, found := range regexp.MustCompile(`(?m)^(caddy_buzzbip_webhook_\w+)|^# TYPE (caddy_buzzbip_webhook_\w+)`).FindAllStringSubmatch(text, -1) {
		if found[1] != "" {
			samples = append(samples, found[1])
		} else {
			families = append(families, found[2])
		}
	}
	slices.Sort(samples)
	return slices.Compact(samples), families
}

var ourMetric = regexp.MustCompile(`caddy_buzzbip_webhook_\w+`)

// The states that the alerts are to have after the load; those that have to last
// for longer than the test may have begun to fire on a very slow machine.
var (
	alertsThatFire = []string{"BuzzBipConflict", "BuzzBipInboxDead", "BuzzBipInboxUnserved", "BuzzBipInboxWaits", "BuzzBipOverloaded", "BuzzBipStoreRejects"}
	alertsThatWait = []string{"BuzzBipBackendFailing", "BuzzBipForgeries", "BuzzBipInboxDown", "BuzzBipOldSecretInUse", "BuzzBipSenderDisconnects",
		"BuzzBipStoreDown", "BuzzBipStoreForgets"}
	alertsAtRest = []string{"BuzzBipBackendSlow", "BuzzBipCaddyDown", "BuzzBipInboxPaused", "BuzzBipNoEvents", "BuzzBipNothingDelivered",
		"BuzzBipOldSecretUnused", "BuzzBipRouteBroken", "BuzzBipSecretWrong", "BuzzBipStoreLosesData", "BuzzBipStoreNearlyFull"}
)

func TestMonitoringExampleUnderLoad(t *testing.T) {
	l, forPrometheus := startLoad(t)
	c := l.hooks.Caddy
	p := startPrometheus(t, c.Admin)
	start := time.Now().Add(-5 * time.Minute)
	scraped := func(what, expr string, want float64) {
		t.Helper()
		caddytest.WaitFor(t, what+" to be scraped", func() bool {
			found := p.query(expr)
			return len(found) == 1 && found[0].Value.value() == want
		})
	}
	total := func(values map[string]float64) (sum float64) {
		for _, n := range values {
			sum += n
		}
		return sum
	}

	// What a series begins with is no rise, so there is a first round to begin
	// them, and Prometheus looks before and after it.
	scraped("Caddy", "sum(caddy_buzzbip_webhook_in_flight)", 0)
	for _, n := range []int{1, 10} {
		l.round(n)
		scraped("the load", "sum(caddy_buzzbip_webhook_requests_total)", total(l.results))
	}
	l.inbox()
	body := caddytest.NewEvent()
	disconnect := l.slow(body)
	scraped("a delivery in flight", "sum(caddy_buzzbip_webhook_in_flight)", 1)
	for range 2 { // the series begins with the first
		l.does("in_flight", "in_flight", "other", func() { l.others.sends("/small", otherSecret, body, 503) })
		scraped("a retry in flight", `sum(caddy_buzzbip_webhook_requests_total{result="in_flight"})`, l.results["in_flight"])
	}
	l.does("rejected", "overloaded", "other", func() { l.others.sends("/busy", otherSecret, caddytest.NewEvent(), 503) })
	for { // nothing shows when Caddy has noticed, so it may take more than four
		disconnect()
		time.Sleep(50 * time.Millisecond)
		l.release <- struct{}{}
		caddytest.WaitFor(t, "the delivery to end", func() bool { return c.Metric("in_flight") == 0 })
		if c.Metric("abandoned_deliveries_total") >= 4 {
			break
		}
		if l.results["delivered"] > 200 {
			t.Fatal("Caddy does not notice that senders disconnect")
		}
		disconnect = l.slow(caddytest.NewEvent())
	}
	// the panel "Last event" looks at every 15 seconds
	v := &view{prometheus: p, start: start, job: "caddy", instance: ".+"}
	last := readDashboard(t).query(t, "Last event")
	caddytest.WaitFor(t, "the last event to show", func() bool {
		l.failure()
		time.Sleep(500 * time.Millisecond)
		v.end = time.Now()
		return len(v.values(last, true)) > 0
	})
	scraped("everything", "sum(caddy_buzzbip_webhook_requests_total)", total(l.results))
	scraped("everything", "sum(caddy_buzzbip_webhook_abandoned_deliveries_total)", c.Metric("abandoned_deliveries_total"))

	nonzero := func(values map[string]float64) map[string]float64 {
		maps.DeleteFunc(values, func(_ string, n float64) bool { return n == 0 })
		return values
	}
	for label, want := range map[string]map[string]float64{"result": l.results, "reason": l.rejections, "secret": l.matches} {
		metric := map[string]string{"result": "requests_total", "reason": "rejections_total", "secret": "signature_matches_total"}[label]
		if got := nonzero(p.by(label, fmt.Sprintf("sum by (%s) (caddy_buzzbip_webhook_%s)", label, metric))); !maps.Equal(got, want) {
			t.Errorf("by %s Prometheus counts %v, want %v", label, got, want)
		}
	}
	if got := p.query("caddy_buzzbip_webhook_conflicts_total"); len(got) != 1 || got[0].Value.value() != l.results["conflict"] {
		t.Errorf("Prometheus counts the conflicts %v, want %v", got, l.results["conflict"])
	}

	t.Run("alerts", func(t *testing.T) { p.checkAlerts(t, c) })
	t.Run("dashboard", func(t *testing.T) { p.checkDashboard(t, c, start, l) })
	t.Run("site for Prometheus", func(t *testing.T) {
		res, err := http.Get("http://" + forPrometheus + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		want, _ := sampleNames(c.Metrics())
		if got, _ := sampleNames(string(text)); !slices.Equal(got, want) || len(want) == 0 {
			t.Errorf("the site has %v, the admin endpoint %v", got, want)
		}
	})
	t.Run("access log", func(t *testing.T) {
		failed := 0.0
		for _, entry := range c.Entries() {
			request, _ := entry["request"].(map[string]any)
			if headers, _ := request["headers"].(map[string]any); headers["X-Buzzbip-Signature"] != nil {
				t.Fatalf("the log has a signature: %v", entry)
			}
			if entry["buzzbip_result"] == "failed" && entry["buzzbip_event_id"] != nil && entry["buzzbip_cause"] == "status_5xx" && entry["buzzbip_status"] == 500.0 {
				failed++
			}
		}
		if failed != l.results["failed"] {
			t.Errorf("the log has %v failures, want %v", failed, l.results["failed"])
		}
	})
	t.Run("documentation", func(t *testing.T) {
		text, err := os.ReadFile(filepath.Join("..", "docs", "MONITORING.md"))
		if err != nil {
			t.Fatal(err)
		}
		_, families := sampleNames(c.Metrics())
		for _, name := range families {
			if short := strings.TrimPrefix(name, "caddy_buzzbip_webhook_"); !bytes.Contains(text, []byte("\n| `"+short)) {
				t.Errorf("%s is not in the table of metrics", short)
			}
		}
		for _, name := range slices.Concat(alertsThatFire, alertsThatWait, alertsAtRest) {
			if !bytes.Contains(text, []byte("\n| `"+name+"`")) {
				t.Errorf("%s is not in the table of alerts", name)
			}
		}
	})
}

// checkAlerts evaluates the rules, and compares the states of the alerts.
func (p *prometheus) checkAlerts(t *testing.T, c *caddytest.Caddy) {
	defer func(outer *testing.T) { p.t = outer }(p.t)
	p.t = t
	samples, _ := sampleNames(c.Metrics())
	for _, name := range ourMetric.FindAllString(example(t, "monitoring/alerts.yml"), -1) {
		if !slices.Contains(samples, name) {
			t.Errorf("Caddy has no %s, which alerts.yml asks for", name)
		}
	}

	type rule struct {
		Name, Query, Type, Health, LastError string
		Alerts                               []struct {
			State       string
			Annotations map[string]string
		}
	}
	var rules []rule
	states := func() map[string]string {
		var data struct{ Groups []struct{ Rules []rule } }
		p.get("rules", nil, &data)
		rules = nil
		found := make(map[string]string)
		for _, g := range data.Groups {
			rules = append(rules, g.Rules...)
		}
		for _, r := range rules {
			if r.Type != "alerting" {
				continue
			}
			found[r.Name] = "at rest"
			for _, a := range r.Alerts {
				if a.State == "firing" || found[r.Name] == "at rest" {
					found[r.Name] = a.State
				}
			}
		}
		return found
	}
	var got map[string]string
	settled := func() bool {
		got = states()
		for _, name := range alertsThatFire {
			if got[name] != "firing" {
				return false
			}
		}
		for _, name := range alertsThatWait {
			if got[name] == "at rest" {
				return false
			}
		}
		return true
	}
	for end := time.Now().Add(caddytest.Patience); !settled() && time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond)
	}
	want := make(map[string]string)
	for _, name := range alertsThatFire {
		want[name] = "firing"
	}
	for _, name := range alertsThatWait {
		want[name] = "pending"
		if got[name] == "firing" {
			want[name] = "firing"
		}
	}
	for _, name := range alertsAtRest {
		want[name] = "at rest"
	}
	if !maps.Equal(got, want) {
		t.Errorf("the alerts are %v, want %v", got, want)
	}

	// and as those see it that ask what fires
	var active struct {
		Alerts []struct {
			State  string
			Labels map[string]string
		}
	}
	p.get("alerts", nil, &active)
	for _, name := range alertsThatFire {
		if !slices.ContainsFunc(active.Alerts, func(a struct {
			State  string
			Labels map[string]string
		}) bool {
			return a.Labels["alertname"] == name && a.State == "firing" && a.Labels["severity"] != ""
		}) {
			t.Errorf("%s is not among the active alerts: %v", name, active.Alerts)
		}
	}

	selector := regexp.MustCompile(`(?:\b(?:caddy_buzzbip_webhook_|buzzbip:)[\w:]+|\bup)(?:\{[^}]*\})?`)
	for _, r := range rules {
		if r.Health != "ok" || r.LastError != "" {
			t.Errorf("%s is %s: %s", r.Name, r.Health, r.LastError)
		}
		for _, a := range r.Alerts {
			for name, text := range a.Annotations {
				if text == "" || strings.Contains(text, "<error") || strings.Contains(text, "<no value>") || strings.Contains(text, "{{") {
					t.Errorf("%s: %s is %q", r.Name, name, text)
				}
			}
		}
		if found := p.query(r.Query); len(found) == 0 && !slices.Contains(alertsAtRest, r.Name) {
			t.Errorf("%s yields nothing: %s", r.Name, r.Query)
		}
		// an alert at rest yields nothing; what it looks at is there all the same
		selectors := selector.FindAllString(r.Query, -1)
		for _, s := range selectors {
			if len(p.query(s)) == 0 {
				t.Errorf("%s looks at what is not there: %s", r.Name, s)
			}
		}
		if len(selectors) == 0 {
			t.Errorf("%s looks at nothing: %s", r.Name, r.Query)
		}
	}
}

// checkDashboard runs every query of the dashboard as Grafana does.
func (p *prometheus) checkDashboard(t *testing.T, c *caddytest.Caddy, start time.Time, l *load) {
	defer func(outer *testing.T) { p.t = outer }(p.t)
	p.t = t
	d := readDashboard(t)
	v := &view{prometheus: p, start: start}
	caddytest.WaitFor(t, "the last of the load to be a step ago", func() bool {
		return len(p.query(fmt.Sprintf("increase(caddy_buzzbip_webhook_abandoned_deliveries_total[1h] offset %s) > 0", viewStep))) > 0
	})
	v.end = time.Now()

	// what is there to choose from
	for _, variable := range d.Templating.List {
		if variable.Type != "query" {
			continue
		}
		query, _ := variable.Query.(map[string]any)
		found := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`).FindStringSubmatch(fmt.Sprint(query["query"]))
		if found == nil {
			t.Fatalf("the variable %s is %v", variable.Name, variable.Query)
		}
		var values []string
		p.get("label/"+found[2]+"/values", url.Values{"match[]": {v.interpolate(found[1])}}, &values)
		switch {
		case variable.Name == "job" && slices.Equal(values, []string{"caddy"}):
			v.job = values[0]
		case variable.Name == "instance" && slices.Equal(values, []string{c.Admin}):
			v.instance = "(" + quoted(values[0]) + "|other:2019)" // as if both were chosen
		default:
			t.Fatalf("the variable %s may be %v", variable.Name, values)
		}
	}

	samples, families := sampleNames(c.Metrics())
	shown := make(map[string]bool)
	nobody := &view{prometheus: p, start: v.start, end: v.end, job: "nobody", instance: v.instance}
	other := &view{prometheus: p, start: v.start, end: v.end, job: v.job, instance: "nowhere"}
	for _, panel := range d.Panels {
		for _, target := range panel.Targets {
			values := v.values(target.Expr, target.Instant)
			if !slices.ContainsFunc(values, func(n float64) bool { return n > 0 && !math.IsInf(n, 0) }) {
				t.Errorf("%q yields nothing but %v: %s", panel.Title, values, v.interpolate(target.Expr))
			}
			if strays := nobody.values(target.Expr, target.Instant); len(strays) > 0 {
				t.Errorf("%q does not heed the job: %s", panel.Title, target.Expr)
			}
			ours := ourMetric.FindAllString(target.Expr, -1)
			if strays := other.values(target.Expr, target.Instant); len(strays) > 0 && len(ours) > 0 {
				t.Errorf("%q does not heed the instance: %s", panel.Title, target.Expr)
			}
			for _, name := range ours {
				shown[name] = true
				if !slices.Contains(samples, name) {
					t.Errorf("%q shows %s, which Caddy does not have", panel.Title, name)
				}
			}
		}
	}
	for _, name := range families {
		if !shown[name] && !shown[name+"_bucket"] {
			t.Errorf("no panel shows %s", name)
		}
	}
	if len(families) < 14 {
		t.Errorf("Caddy has only the metrics %v", families)
	}

	// Known numbers. What increase() yields is extrapolated, by a scrape interval at most.
	compare := func(title, label string, want map[string]float64) {
		t.Helper()
		got := p.by(label, v.interpolate(d.query(t, title)))
		if !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want))) {
			t.Errorf("%q shows %v, want %v", title, got, want)
			return
		}
		for name, n := range want {
			if math.Abs(got[name]-n) > .25*n {
				t.Errorf("%q shows %v for %s, want about %v", title, got[name], name, n)
			}
		}
	}
	compare("Rejections in this time range", "reason", l.rejections)
	compare("Valid signatures in this time range", "secret", l.matches)
	if got := p.by("cause", `sum by (cause) (caddy_buzzbip_webhook_failures_total{cause="status_5xx"})`); !maps.Equal(got, map[string]float64{"status_5xx": l.results["failed"]}) {
		t.Errorf("by cause Prometheus counts %v, want %v", got, l.results["failed"])
	}
	if got, want := p.by("state", v.interpolate(d.query(t, "Events in the inbox"))), map[string]float64{"waiting": 2, "dead": 1, "delivered": 0}; !maps.Equal(got, want) {
		t.Errorf("the inbox has %v, want %v", got, want)
	}
	compare("Conflicts", "", map[string]float64{"": l.results["conflict"]})
	compare("Store", "store", map[string]float64{"sqlite": 1, "memory": 1, "redis": 0})
	firing := make(map[string]float64)
	for _, name := range alertsThatFire {
		firing[name] = 1
	}
	compare("Firing alerts", "alertname", firing)
	if last := p.query(v.interpolate(d.query(t, "Last event"))); len(last) != 1 || last[0].Value.value() > 60 {
		t.Errorf("the last event was %v ago", last)
	}
	share := p.query(v.interpolate(d.query(t, "Failed, last 15 minutes")))
	want := l.results["failed"] / (l.results["failed"] + l.results["delivered"])
	if len(share) != 1 || math.Abs(share[0].Value.value()-want) > .25*want {
		t.Errorf("the share of failures is %v, want about %v", share, want)
	}
}
