package e2e

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// The secrets of tour.
const (
	oldSecret   = "old-secret-of-the-same-webhook-32"
	otherSecret = "other-secret-of-another-webhook-3"
	redisSecret = "redis-password-that-nobody-sees"
)

// tour is a Caddy that has been through every result and every reason once, and
// through two of some.
type tour struct {
	*caddytest.Caddy
	t       *testing.T
	address string
	backend *caddytest.Backend
	sites   string
	forged  []string // expected signatures that the senders did not know
	answers strings.Builder
}

// sendsTo posts a body with the signature of a secret, and expects an answer.
func (tr *tour) sends(path, secret, body string, status int) {
	tr.t.Helper()
	tr.expect(tr.request(http.MethodPost, path, caddytest.SignWith(secret, body), body), status)
}

func (tr *tour) request(method, path, signature, body string) *http.Request {
	r, err := http.NewRequest(method, "http://"+tr.address+path, strings.NewReader(body))
	if err != nil {
		tr.t.Fatal(err)
	}
	if signature != "" {
		r.Header.Set("X-BuzzBip-Signature", signature)
	}
	return r
}

func (tr *tour) expect(r *http.Request, status int) {
	tr.t.Helper()
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		tr.t.Fatal(err)
	}
	defer res.Body.Close()
	_ = res.Header.Write(&tr.answers)
	if _, err := io.Copy(&tr.answers, res.Body); err != nil {
		tr.t.Fatal(err)
	}
	if res.StatusCode != status {
		tr.t.Fatalf("%s %s was answered %d %s, want %d", r.Method, r.URL, res.StatusCode, res.Header.Get("X-BuzzBip-Result"), status)
	}
}

func typedEvent(typ string, created time.Time, data string) string {
	return fmt.Sprintf(`{"id":%q,"type":%q,"createdAt":%q,"data":%s}`, caddytest.NewID(), typ, created.UTC().Format(time.RFC3339), data)
}

func freshEvent(data string) string { return typedEvent("message.received", time.Now(), data) }

// takeTour makes requests of all kinds. global are options for Caddy.
func takeTour(t *testing.T, global string) *tour {
	t.Helper()
	release := make(chan struct{})
	var arrived = make(chan struct{}, 100)
	b := caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		switch r.Header.Get("X-Mode") {
		case "fail":
			w.WriteHeader(http.StatusInternalServerError)
		case "slow":
			<-release
		}
	})
	secretFile := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secretFile, []byte(caddytest.Secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tr := &tour{t: t, address: caddytest.FreeAddress(t), backend: b}
	tr.sites = fmt.Sprintf(`
http://%[1]s {
	log
	handle /main {
		buzzbip_webhook {
			secret_file %[2]s main
			secret {env.OLD_SECRET} old
			events message.* shop.*
			max_age 1h
			max_body_size 2KiB
			read_timeout 200ms
			duplicate_wait 50ms
		}
		reverse_proxy %[3]s
	}
	handle /full {
		buzzbip_webhook {
			secret {env.OTHER_SECRET} other
			store memory {
				capacity 1
				when_full refuse
			}
		}
		reverse_proxy %[3]s
	}
	handle /nowhere {
		buzzbip_webhook {
			secret {env.OTHER_SECRET} other
			dedupe off
		}
	}
	handle /down {
		buzzbip_webhook {
			secret {env.OTHER_SECRET} other
			store redis {env.REDIS_URL} {
				timeout 100ms
				when_down refuse
			}
		}
		reverse_proxy %[3]s
	}
}`, tr.address, secretFile, b.Address())
	// nobody listens there
	tr.Caddy = caddytest.Start(t, "", global, tr.sites,
		"OLD_SECRET="+oldSecret, "OTHER_SECRET="+otherSecret, "REDIS_URL=redis://caddy:"+redisSecret+"@"+caddytest.FreeAddress(t))

	first := freshEvent(`{"n":1}`)
	tr.sends("/main", caddytest.Secret, first, http.StatusOK)                                                // delivered
	tr.sends("/main", oldSecret, typedEvent("shop.sold", time.Now(), `{}`), http.StatusOK)                   // delivered, of a type that is not documented
	tr.sends("/main", oldSecret, typedEvent("contact.created", time.Now(), `{}`), http.StatusOK)             // ignored
	tr.sends("/main", caddytest.Secret, first, http.StatusOK)                                                // duplicate
	tr.sends("/main", caddytest.Secret, strings.Replace(first, `{"n":1}`, `{"n":2}`, 1), http.StatusOK)      // conflict
	tr.sends("/main", caddytest.Secret, typedEvent("message.sent", time.Now().Add(-2*time.Hour), `{}`), 403) // event_stale
	tr.sends("/main", caddytest.Secret, typedEvent("message.sent", time.Now().Add(time.Hour), `{}`), 403)    // event_from_future
	tr.sends("/main", caddytest.Secret, `{"id":"evt_1"}`, http.StatusBadRequest)                             // envelope_invalid
	tr.sends("/main", caddytest.Secret, freshEvent(`{"long":"`+strings.Repeat("x", 3000)+`"}`), 413)         // body_too_large
	tr.expect(tr.request(http.MethodGet, "/main", "", ""), http.StatusMethodNotAllowed)                      // method_not_allowed
	tr.expect(tr.request(http.MethodPost, "/main", "", freshEvent(`{}`)), http.StatusUnauthorized)           // signature_missing
	tr.expect(tr.request(http.MethodPost, "/main", "sha256=12", freshEvent(`{}`)), http.StatusUnauthorized)  // signature_malformed
	for range 20 {                                                                                           // signature_mismatch
		forgery := freshEvent(`{}`)
		tr.expect(tr.request(http.MethodPost, "/main", strings.Repeat("0", 64), forgery), http.StatusUnauthorized)
		for _, secret := range []string{caddytest.Secret, oldSecret} {
			tr.forged = append(tr.forged, caddytest.SignWith(secret, forgery))
		}
	}
	tr.sends("/full", otherSecret, freshEvent(`{}`), http.StatusOK)
	tr.sends("/full", otherSecret, freshEvent(`{}`), http.StatusServiceUnavailable) // store_full
	tr.sends("/nowhere", otherSecret, freshEvent(`{}`), http.StatusBadGateway)      // unhandled
	tr.sends("/down", otherSecret, freshEvent(`{}`), http.StatusServiceUnavailable) // store_unavailable
	failing := freshEvent(`{}`)
	r := tr.request(http.MethodPost, "/main", caddytest.SignWith(caddytest.Secret, failing), failing)
	r.Header.Set("X-Mode", "fail")
	tr.expect(r, http.StatusInternalServerError) // failed

	for len(arrived) > 0 {
		<-arrived
	}
	slow := freshEvent(`{}`)
	ctx, hangUp := context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		r := tr.request(http.MethodPost, "/main", caddytest.SignWith(caddytest.Secret, slow), slow).WithContext(ctx)
		r.Header.Set("X-Mode", "slow")
		if res, err := http.DefaultClient.Do(r); err == nil {
			res.Body.Close()
			t.Error("the sender that hung up was answered")
		}
	}()
	<-arrived
	if n := tr.Metric("in_flight"); n != 1 {
		t.Errorf("%v deliveries are in flight, want 1", n)
	}
	tr.sends("/main", caddytest.Secret, slow, http.StatusServiceUnavailable) // in_flight
	hangUp()
	<-gone
	time.Sleep(500 * time.Millisecond) // nothing tells that Caddy has noticed
	close(release)
	caddytest.WaitFor(t, "the abandoned delivery to end", func() bool { return tr.Metric("in_flight") == 0 })

	for _, end := range []bool{true, false} { // body_incomplete, body_timeout
		conn, err := net.Dial("tcp", tr.address)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /main HTTP/1.1\r\nHost: %s\r\nX-BuzzBip-Signature: %s\r\nContent-Length: 100\r\n\r\n{", tr.address, strings.Repeat("0", 64))
		if end {
			conn.(*net.TCPConn).CloseWrite()
		}
		if _, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil {
			t.Error(err)
		}
		conn.Close()
	}
	return tr
}

// what the tour counts up to
var (
	tourDeliveries = map[string]float64{
		`event_type="message.received",result="delivered"`: 3, // the first, the one at /full and the abandoned one
		`event_type="other",result="delivered"`:            1,
		`event_type="contact.created",result="ignored"`:    1,
		`event_type="message.received",result="duplicate"`: 1,
		`event_type="message.received",result="conflict"`:  1,
		`event_type="message.received",result="in_flight"`: 1,
		`event_type="message.received",result="failed"`:    2, // one unhandled
		`event_type="message.sent",result="rejected"`:      2,
		`event_type="message.received",result="rejected"`:  2, // full, down
		`event_type="unverified",result="rejected"`:        27,
	}
	tourFailures   = map[string]float64{"status_5xx": 1, "unhandled": 1}
	tourRejections = map[string]float64{
		"method_not_allowed": 1, "signature_missing": 1, "signature_malformed": 1, "body_too_large": 1, "body_timeout": 1,
		"body_incomplete": 1, "signature_mismatch": 20, "envelope_invalid": 1, "event_stale": 1, "event_from_future": 1,
		"in_flight": 1, "store_unavailable": 1, "store_full": 1, "unhandled": 1,
	}
)

func TestMetricsCountWhatHappensAcrossReloads(t *testing.T) {
	tr := takeTour(t, "")
	check := func(when string) {
		t.Helper()
		if got := tr.Series("requests_total"); !maps.Equal(got, tourDeliveries) {
			t.Errorf("%s the deliveries are %v, want %v", when, got, tourDeliveries)
		}
		rejections := make(map[string]float64)
		for reason, n := range tourRejections {
			rejections[fmt.Sprintf("reason=%q", reason)] = n
		}
		if got := tr.Series("rejections_total"); !maps.Equal(got, rejections) {
			t.Errorf("%s the rejections are %v, want %v", when, got, rejections)
		}
		for _, cause := range []string{"status_3xx", "status_4xx", "status_5xx", "status_other", "unreachable", "timeout", "connection_broken", "canceled", "unhandled", "panic"} {
			if got := tr.Metric(fmt.Sprintf("failures_total{cause=%q}", cause)); got != tourFailures[cause] {
				t.Errorf("%s %v failures are %s, want %v", when, got, cause, tourFailures[cause])
			}
		}
		for series, want := range map[string]float64{
			`signature_matches_total{secret="main"}`:  9,
			`signature_matches_total{secret="old"}`:   2,
			`signature_matches_total{secret="other"}`: 4,
			"in_flight":                           0,
			"abandoned_deliveries_total":          1,
			"conflicts_total":                     1,
			"event_age_seconds_count":             14,
			`event_age_seconds_bucket{le="3600"}`: 13,
			`delivery_duration_seconds_count{event_type="message.received"}`:            5,
			`delivery_duration_seconds_count{event_type="other"}`:                       1,
			`remembered_events{store="memory"}`:                                         4,
			`remembered_events{store="redis"}`:                                          0,
			`evicted_events_total{store="memory"}`:                                      0,
			`store_forgotten_events_total{store="redis"}`:                               0,
			`store_up{store="memory"}`:                                                  1,
			`store_up{store="redis"}`:                                                   0,
			`store_errors_total{operation="claim",store="redis"}`:                       1,
			`store_operation_duration_seconds_count{operation="settle",store="memory"}`: 5,
			`store_operation_duration_seconds_count{operation="claim",store="memory"}`:  9,
		} {
			if got := tr.Metric(series); got != want {
				t.Errorf("%s %s is %v, want %v", when, series, got, want)
			}
		}
	}
	check("before a reload")
	tr.Reload()
	check("after a reload")

	config, err := os.ReadFile(tr.Config)
	if err != nil {
		t.Fatal(err)
	}
	broken := strings.Replace(string(config), "handle /nowhere {", "handle /nowhere {\n\t\tbuzzbip_webhook {env.NOT_SET}\n", 1)
	if status, _ := tr.Load(broken); status == http.StatusOK {
		t.Fatal("a configuration without a secret was loaded")
	}
	check("after a reload that failed")
}

// Prometheus takes the first value of a series for where it begins: if that were
// the first match of an old secret, it would seem unused.
func TestMetricsHaveSecretsThatHaveNotMatchedYet(t *testing.T) {
	c := caddytest.Start(t, "", "", fmt.Sprintf(`
http://%s {
	buzzbip_webhook {
		secret %s current
		secret %s previous
		dedupe off
	}
}`, caddytest.FreeAddress(t), caddytest.Secret, oldSecret))
	want := map[string]float64{`secret="current"`: 0, `secret="previous"`: 0}
	if got := c.Series("signature_matches_total"); !maps.Equal(got, want) {
		t.Errorf("the matches are %v, want %v", got, want)
	}
}

func TestAccessLogSaysWhatBecameOfEachRequest(t *testing.T) {
	tr := takeTour(t, "")
	total := 0.0
	for _, n := range tourDeliveries {
		total += n
	}
	results, reasons := make(map[any]float64), make(map[any]float64)
	logged := 0.0
	caddytest.WaitFor(t, "all entries", func() bool {
		clear(results)
		clear(reasons)
		logged = 0
		for _, entry := range tr.Entries() {
			if strings.HasPrefix(fmt.Sprint(entry["logger"]), "http.log.access") {
				logged++
				results[entry["buzzbip_result"]]++
				if reason := entry["buzzbip_reason"]; reason != nil {
					reasons[reason]++
				}
				if cause := entry["buzzbip_cause"]; (cause != nil) != (entry["buzzbip_result"] == "failed") || cause == "status_5xx" && entry["buzzbip_status"] != 500.0 {
					t.Fatalf("the entry of a %v request has the cause %v: %v", entry["buzzbip_result"], cause, entry)
				}
				verified := entry["buzzbip_event_id"] != nil && entry["buzzbip_event_type"] != nil
				if result := entry["buzzbip_result"]; !verified && result != "rejected" {
					t.Fatalf("the entry of a %v request names no event: %v", result, entry)
				}
			}
		}
		return logged >= total
	})
	wantResults := make(map[any]float64)
	for labels, n := range tourDeliveries {
		wantResults[strings.Split(labels, `"`)[3]] += n
	}
	wantReasons := make(map[any]float64)
	for reason, n := range tourRejections {
		wantReasons[reason] = n
	}
	if !maps.Equal(results, wantResults) || !maps.Equal(reasons, wantReasons) {
		t.Errorf("the access log has %v and %v, want %v and %v", results, reasons, wantResults, wantReasons)
	}
}

func TestRefusalsAreLoggedByReasonWithoutAFlood(t *testing.T) {
	tr := takeTour(t, "")
	logged := make(map[string]int)
	levels := make(map[string]any)
	for _, entry := range tr.Entries() {
		if entry["msg"] == "request rejected" {
			reason := fmt.Sprint(entry["reason"])
			logged[reason]++
			levels[reason] = entry["level"]
			if path := fmt.Sprint(entry["path"]); entry["host"] != tr.address || !strings.HasPrefix(path, "/") {
				t.Errorf("the entry for %s does not tell the webhook: %v", reason, entry)
			}
		}
	}
	for reason := range tourRejections {
		if reason == "unhandled" { // logged as a failed delivery
			continue
		}
		want := "warn"
		if reason == "store_unavailable" {
			want = "error"
		}
		if logged[reason] == 0 || levels[reason] != want {
			t.Errorf("%d entries at level %v for %s", logged[reason], levels[reason], reason)
		}
	}
	// One after the other, so the log has them in order: an entry for the refusal,
	// if it is not suppressed, and then that of the access log.
	flood := func() (suppressed float64) {
		var refused, told float64
		for _, entry := range tr.Entries() {
			switch {
			case entry["buzzbip_reason"] == "signature_mismatch":
				refused++
			case entry["msg"] == "request rejected" && entry["reason"] == "signature_mismatch":
				n, _ := entry["suppressed"].(float64)
				suppressed += n
				if told += 1 + n; told != refused+1 {
					t.Fatalf("after %v refusals the log tells of %v", refused+1, told)
				}
			}
		}
		return suppressed
	}
	// the number of those suppressed comes with the next entry
	caddytest.WaitFor(t, "the next entry", func() bool {
		tr.expect(tr.request(http.MethodPost, "/main", strings.Repeat("0", 64), "{}"), http.StatusUnauthorized)
		return flood() > 0
	})
	var conflict, store bool
	for _, entry := range tr.Entries() {
		conflict = conflict || entry["level"] == "error" && entry["path"] == "/main" && strings.Contains(fmt.Sprint(entry["msg"]), "the ID of a delivered event")
		store = store || entry["level"] == "error" && strings.Contains(fmt.Sprint(entry["msg"]), "Redis is down")
	}
	if !conflict || !store {
		t.Errorf("at level error: the conflict %v, the store %v", conflict, store)
	}
}

// Whatever happens, on whatever path, nobody learns a secret, nor what the
// signature of a forgery should have been.
func TestNoSecretIsTold(t *testing.T) {
	tr := takeTour(t, "\tdebug\n\tlog {\n\t\tformat filter {\n\t\t\trequest>headers>X-Buzzbip-Signature delete\n\t\t\theaders>X-Buzzbip-Signature delete\n\t\t\twrap json\n\t\t}\n\t}")
	said := map[string]string{"the answers": tr.answers.String(), "the metrics": tr.Metrics()}
	for _, path := range []string{"/config/", "/buzzbip_webhook/scopes", "/buzzbip_webhook/events/evt_1", "/buzzbip_webhook/"} {
		_, said[path] = tr.Ask(http.MethodGet, path)
	}
	said["the stream of deliveries"] = firstEvents(t, "http://"+tr.Admin+"/buzzbip_webhook/deliveries", 2)
	// errors at load, with a secret at hand
	for name, broken := range map[string]string{
		"a repeated label":       "buzzbip_webhook {\n secret {env.OLD_SECRET} a\n secret {env.OTHER_SECRET} a\n}",
		"secrets in place":       "buzzbip_webhook " + caddytest.Secret + " " + oldSecret,
		"an unknown option":      "buzzbip_webhook " + caddytest.Secret + " {\n nothing\n}",
		"a store that is broken": "buzzbip_webhook {env.OLD_SECRET} {\n store redis {env.REDIS_URL} redis://caddy:" + redisSecret + "x@127.0.0.1:1\n}",
		"a URL that is broken":   "buzzbip_webhook {env.OLD_SECRET} {\n store redis redis://caddy:" + redisSecret + "@[::1\n}",
		"max_age":                "buzzbip_webhook {env.OLD_SECRET} {\n max_age 2d\n}",
	} {
		status, text := tr.Load(fmt.Sprintf("{\n\tadmin %s\n}\nhttp://%s {\n%s\n}", tr.Admin, caddytest.FreeAddress(t), broken))
		if status == http.StatusOK {
			t.Errorf("%s was loaded", name)
		}
		said["the error for "+name] = text
	}
	tr.Stop()
	said["the log"] = tr.Log.String()

	hidden := map[string]string{"main": caddytest.Secret, "old": oldSecret, "other": otherSecret, "of Redis": redisSecret}
	for i, signature := range tr.forged {
		hidden[fmt.Sprint("signature of forgery ", i)] = signature
	}
	for name, secret := range map[string]string{"main": caddytest.Secret, "old": oldSecret, "other": otherSecret} {
		// the scope that is derived from the secret
		hidden["scope of "+name] = caddytest.SignWith(secret, "buzzbip_webhook scope")[:16]
	}
	for what, text := range said {
		for name, value := range hidden {
			for _, form := range []string{value, hex.EncodeToString([]byte(value)), strings.ToUpper(value)} {
				if strings.Contains(text, form) {
					t.Errorf("%s tell the secret %s", what, name)
				}
			}
		}
	}
	if !strings.Contains(said["the log"], "signature_mismatch") || len(said["the metrics"]) < 1000 {
		t.Error("there is nothing to look at")
	}
}

// firstEvents returns the first server-sent events of a stream.
func firstEvents(t *testing.T, url string, count int) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var text strings.Builder
	lines := bufio.NewReader(res.Body)
	for range count {
		for line := ""; line != "\n"; {
			if line, err = lines.ReadString('\n'); err != nil {
				t.Fatalf("%v after %s", err, text.String())
			}
			text.WriteString(line)
		}
	}
	return text.String()
}

func TestAdminAPIStreamsTheLatestDeliveries(t *testing.T) {
	tr := takeTour(t, "")
	name, data, _ := strings.Cut(firstEvents(t, "http://"+tr.Admin+"/buzzbip_webhook/deliveries", 1), "\ndata: ")
	var latest struct {
		First      bool
		Deliveries []struct {
			Time                             time.Time
			ID, Type, Result, Reason, Secret string
			Duration                         float64
		}
	}
	if err := json.Unmarshal([]byte(data), &latest); err != nil || name != "event: deliveries" || !latest.First {
		t.Fatalf("%q, error %v: %s", name, err, data)
	}
	results := make(map[string]float64)
	for _, d := range latest.Deliveries {
		typ := d.Type
		switch {
		case d.Type == "":
			typ = "unverified"
		case strings.HasPrefix(d.Type, "shop."):
			typ = "other"
		}
		results[fmt.Sprintf("event_type=%q,result=%q", typ, d.Result)]++
		if (d.ID == "") != (d.Type == "") || d.ID != "" && d.Secret == "" || d.Duration <= 0 || time.Since(d.Time) > time.Hour {
			t.Errorf("a delivery is %+v", d)
		}
		if _, known := tourRejections[d.Reason]; !known && d.Reason != "" {
			t.Errorf("a reason is %q", d.Reason)
		}
	}
	if !maps.Equal(results, tourDeliveries) {
		t.Errorf("the stream has %v, want %v", results, tourDeliveries)
	}
}

// Whoever sends much of one kind, forgeries or a captured event again and again,
// cannot make the page forget the others.
func TestFloodOfOneKindLeavesTheOthersInTheFeed(t *testing.T) {
	tr := takeTour(t, "")
	latest := func() map[string]int {
		t.Helper()
		_, data, _ := strings.Cut(firstEvents(t, "http://"+tr.Admin+"/buzzbip_webhook/deliveries", 1), "\ndata: ")
		var feed struct {
			Deliveries []struct {
				Time             time.Time
				ID, Kind, Result string
			}
		}
		if err := json.Unmarshal([]byte(data), &feed); err != nil {
			t.Fatalf("%v: %s", err, data)
		}
		kinds := make(map[string]int)
		for i, d := range feed.Deliveries {
			kinds[d.Kind]++
			if d.Kind != d.Result && (d.Kind != "unverified" || d.Result != "rejected" || d.ID != "") {
				t.Errorf("a delivery is %+v", d)
			}
			if i > 0 && d.Time.Sub(feed.Deliveries[i-1].Time) < -time.Minute {
				t.Errorf("the feed is not in order")
			}
		}
		return kinds
	}
	want := latest()
	if want["delivered"] == 0 || want["failed"] == 0 || want["conflict"] == 0 || want["rejected"] == 0 || want["unverified"] == 0 {
		t.Fatalf("there is nothing to push out: %v", want)
	}
	captured := freshEvent(`{}`)
	tr.sends("/main", caddytest.Secret, captured, http.StatusOK)
	want["delivered"]++
	for range 300 {
		tr.sends("/main", "forged", freshEvent(`{}`), http.StatusUnauthorized)
		tr.sends("/main", caddytest.Secret, captured, http.StatusOK)
	}
	want["unverified"], want["duplicate"] = 100, 100
	if got := latest(); !maps.Equal(got, want) {
		t.Errorf("after the flood the feed has %v, want %v", got, want)
	}
}

func TestSecretFileIsReadAgainWhenItChanges(t *testing.T) {
	const newSecret = "new-secret-of-the-same-webhook-32"
	b := caddytest.NewBackend(t, nil)
	dir, address := t.TempDir(), caddytest.FreeAddress(t)
	path := filepath.Join(dir, "secret")
	write := func(text string) {
		t.Helper()
		// as secrets are put in place: a new file, renamed
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write(caddytest.Secret + "\n")
	c := caddytest.Start(t, "", "", fmt.Sprintf("http://%s {\n\tbuzzbip_webhook {\n\t\tsecret_file %s main\n\t}\n\treverse_proxy %s\n}", address, path, b.Address()))
	tr := &tour{t: t, Caddy: c, address: address}
	before := freshEvent(`{}`)
	tr.sends("/", caddytest.Secret, before, http.StatusOK)
	last := tr.overview().secret("main")
	if last == nil || time.Since(*last) > caddytest.Patience {
		t.Fatalf("the secret matched last at %v", last)
	}

	write(newSecret)
	caddytest.WaitFor(t, "the new secret to count", func() bool { return strings.Contains(c.Log.String(), "the secret has changed") })
	if last := tr.overview().secret("main"); last != nil {
		t.Errorf("the new secret is said to have matched, at %v", last)
	}
	tr.sends("/", caddytest.Secret, freshEvent(`{}`), http.StatusUnauthorized)
	tr.sends("/", newSecret, freshEvent(`{}`), http.StatusOK)

	for _, lost := range []string{"", "\n"} {
		write(lost)
		caddytest.WaitFor(t, "an error", func() bool { return strings.Contains(c.Log.String(), "keeping the current secret") })
		tr.sends("/", newSecret, freshEvent(`{}`), http.StatusOK)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	caddytest.WaitFor(t, "an error", func() bool { return strings.Contains(c.Log.String(), "no such file") })
	tr.sends("/", newSecret, freshEvent(`{}`), http.StatusOK)
	write(newSecret)
	caddytest.WaitFor(t, "the end of the error", func() bool { return strings.Contains(c.Log.String(), "can be read again") })

	write(caddytest.Secret + "\r\n")
	caddytest.WaitFor(t, "the first secret to be back", func() bool { return strings.Count(c.Log.String(), "the secret has changed") == 2 })
	tr.sends("/", caddytest.Secret, freshEvent(`{}`), http.StatusOK)
	tr.sends("/", caddytest.Secret, before, http.StatusOK) // a duplicate: each secret keeps its own memory
	if n := b.Count(before); n != 1 {
		t.Errorf("the event from before was delivered %d times", n)
	}
	for _, secret := range []string{caddytest.Secret, newSecret} {
		if strings.Contains(c.Log.String(), secret) {
			t.Error("the log tells a secret")
		}
	}
}

// overview is what GET /buzzbip_webhook/scopes answers.
type overview struct {
	Scopes []struct {
		Scope, Store        string
		Delivered, Capacity int
		InFlight            int `json:"in_flight"`
	}
	Stores []struct {
		Store, Error string
		Up           bool
		Evicted      int
	}
	Secrets []struct {
		Secret, Scope string
		LastMatch     *time.Time `json:"last_match"`
	}
}

func (tr *tour) overview() (o overview) {
	tr.t.Helper()
	status, text := tr.Ask(http.MethodGet, "/buzzbip_webhook/scopes")
	if err := json.Unmarshal([]byte(text), &o); err != nil || status != http.StatusOK {
		tr.t.Fatalf("%d %v: %s", status, err, text)
	}
	return o
}

// secret returns when a secret matched last.
func (o overview) secret(label string) *time.Time {
	for _, s := range o.Secrets {
		if s.Secret == label {
			return s.LastMatch
		}
	}
	return nil
}

func TestAdminAPITellsOfScopesStoresAndSecrets(t *testing.T) {
	tr := takeTour(t, "")
	o := tr.overview()
	var scopes []string
	for _, s := range o.Scopes {
		scopes = append(scopes, fmt.Sprintf("%s in %s: %d delivered, %d in flight, of %d", s.Scope, s.Store, s.Delivered, s.InFlight, s.Capacity))
	}
	slices.Sort(scopes)
	if want := []string{
		"secret:main in memory: 2 delivered, 0 in flight, of 1000000",
		"secret:old in memory: 1 delivered, 0 in flight, of 1000000",
		"secret:other in memory: 1 delivered, 0 in flight, of 1",
		"secret:other in redis: 0 delivered, 0 in flight, of 0",
	}; !slices.Equal(scopes, want) {
		t.Errorf("the scopes are %q, want %q", scopes, want)
	}
	for _, s := range o.Stores {
		if s.Up != (s.Store == "memory") || (s.Error == "") != s.Up {
			t.Errorf("a store is %+v", s)
		}
	}
	if len(o.Stores) != 2 || o.secret("main") == nil || o.secret("old") == nil || o.secret("old").After(*o.secret("main")) {
		t.Errorf("the stores and secrets are %+v", o)
	}

	// when it matched last is known also after a reload
	was := *o.secret("old")
	tr.Reload()
	if now := tr.overview().secret("old"); now == nil || !now.Equal(was) {
		t.Errorf("before a reload it matched at %v, after it at %v", was, now)
	}
}

// states returns the states of an event by scope and store, as the admin API
// tells them.
func (tr *tour) states(method, id string, wantStatus int) map[string]string {
	tr.t.Helper()
	var answer struct {
		ID, Error string
		Scopes    []struct {
			Scope, Store, State string
			Expires             *time.Time
			Forgotten           *bool
		}
	}
	status, text := tr.Ask(method, "/buzzbip_webhook/events/"+id)
	if err := json.Unmarshal([]byte(text), &answer); err != nil || status != wantStatus || (answer.Error == "") != (status == http.StatusOK) {
		tr.t.Fatalf("%s %s: %d %v: %s", method, id, status, err, text)
	}
	found := make(map[string]string)
	for _, s := range answer.Scopes {
		state := s.State
		if s.Forgotten != nil {
			state += fmt.Sprintf("forgotten: %t", *s.Forgotten)
		}
		if remembered := s.State == "delivered" || s.State == "redelivering"; (s.Expires != nil) != remembered {
			tr.t.Errorf("%s %s expires at %v", s.State, id, s.Expires)
		}
		found[s.Scope+" in "+s.Store] = state
	}
	return found
}

func TestAdminAPITellsOfAnEventAndForgetsIt(t *testing.T) {
	arrived, release := make(chan struct{}, 10), make(chan struct{})
	b := caddytest.NewBackend(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Mode") == "slow" {
			arrived <- struct{}{}
			<-release
		}
	})
	tr := &tour{t: t, address: caddytest.FreeAddress(t)}
	file := filepath.Join(t.TempDir(), "events.db")
	tr.Caddy = caddytest.Start(t, "", "", fmt.Sprintf(`
http://%[1]s {
	handle /main {
		buzzbip_webhook {
			secret %[2]s main
			secret %[3]s old
			on_conflict deliver
		}
		reverse_proxy %[4]s
	}
	handle /durable {
		buzzbip_webhook {
			secret %[5]s main
			store bolt %[6]s
		}
		reverse_proxy %[4]s
	}
	handle /named {
		buzzbip_webhook {
			secret %[2]s main
			scope shop
			store bolt %[6]s
		}
		reverse_proxy %[4]s
	}
}`, tr.address, caddytest.Secret, oldSecret, b.Address(), otherSecret, file))
	const id = "evt/ü 1?"
	const escaped = "evt%2F%C3%BC%201%3F"
	event := func(data string) string {
		return fmt.Sprintf(`{"id":%q,"type":"message.sent","createdAt":"2026-06-01T14:32:00Z","data":%s}`, id, data)
	}
	expect := func(when string, got, want map[string]string) {
		t.Helper()
		if !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	everywhere := func(main, named string) map[string]string {
		return map[string]string{"secret:main (2) in memory": main, "secret:old in memory": "unseen", "secret:main in bolt": "unseen", "shop in bolt": named}
	}
	expect("at first", tr.states(http.MethodGet, escaped, http.StatusOK), everywhere("unseen", "unseen"))
	send := func(body string) {
		r := tr.request(http.MethodPost, "/main", caddytest.Sign(body), body)
		r.Header.Set("X-Mode", "slow")
		go func() {
			if res, err := http.DefaultClient.Do(r); err != nil {
				t.Error(err)
			} else {
				res.Body.Close()
			}
		}()
		<-arrived
	}
	send(event(`{}`))
	expect("in flight", tr.states(http.MethodGet, escaped, http.StatusOK), everywhere("in_flight", "unseen"))
	release <- struct{}{}
	caddytest.WaitFor(t, "the delivery", func() bool { return tr.Metric("in_flight") == 0 })
	tr.sends("/named", caddytest.Secret, event(`{}`), http.StatusOK)
	expect("delivered", tr.states(http.MethodGet, escaped, http.StatusOK), everywhere("delivered", "delivered"))
	send(event(`{"other":1}`))
	expect("delivered again with another body", tr.states(http.MethodGet, escaped, http.StatusOK), everywhere("redelivering", "delivered"))
	release <- struct{}{}
	caddytest.WaitFor(t, "the delivery", func() bool { return tr.Metric("in_flight") == 0 })

	before := b.Count(event(`{}`))
	tr.sends("/named", caddytest.Secret, event(`{}`), http.StatusOK)
	if b.Count(event(`{}`)) != before {
		t.Error("a duplicate was delivered")
	}
	forgotten := everywhere("forgotten: true", "forgotten: true")
	forgotten["secret:old in memory"], forgotten["secret:main in bolt"] = "forgotten: false", "forgotten: false"
	expect("forgotten", tr.states(http.MethodDelete, escaped, http.StatusOK), forgotten)
	expect("afterwards", tr.states(http.MethodGet, escaped, http.StatusOK), everywhere("unseen", "unseen"))
	tr.sends("/named", caddytest.Secret, event(`{}`), http.StatusOK)
	if b.Count(event(`{}`)) != before+1 {
		t.Error("a redelivery did not pass after the event was forgotten")
	}

	for _, wrong := range []struct {
		method, path string
		status       int
		says         string
	}{
		{http.MethodGet, "/buzzbip_webhook/nothing", http.StatusNotFound, "/buzzbip_webhook/scopes"},
		{http.MethodGet, "/buzzbip_webhook/events/", http.StatusBadRequest, "give the id"},
		{http.MethodGet, "/buzzbip_webhook/events/" + strings.Repeat("x", 257), http.StatusBadRequest, "1 to 256 bytes"},
		{http.MethodPost, "/buzzbip_webhook/events/evt_1", http.StatusMethodNotAllowed, "POST"},
		{http.MethodDelete, "/buzzbip_webhook/scopes", http.StatusMethodNotAllowed, "DELETE"},
		{http.MethodPost, "/buzzbip_webhook/", http.StatusMethodNotAllowed, "POST"},
	} {
		status, text := tr.Ask(wrong.method, wrong.path)
		var answer struct{ Error string }
		if err := json.Unmarshal([]byte(text), &answer); err != nil || status != wrong.status || !strings.Contains(answer.Error, wrong.says) {
			t.Errorf("%s %s: %d %s", wrong.method, wrong.path, status, text)
		}
	}
	// it is on the admin endpoint only
	tr.expect(tr.request(http.MethodGet, "/buzzbip_webhook/scopes", "", ""), http.StatusOK) // Caddy's empty answer
	if strings.Contains(tr.answers.String(), "secret:") {
		t.Error("the site serves the admin API")
	}
	// and protected as the rest of that is
	r, err := http.NewRequest(http.MethodDelete, "http://"+tr.Admin+"/buzzbip_webhook/events/evt_1", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Origin", "https://evil.example")
	tr.expect(r, http.StatusForbidden)
	r.Header.Del("Origin")
	r.Host = "evil.example"
	tr.expect(r, http.StatusForbidden)
}

// An event that was not delivered is not one that never arrived.
func TestLookupTellsOfTheLastFailedAttempt(t *testing.T) {
	b := caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("X-Mode") {
		case "fail":
			w.WriteHeader(http.StatusInternalServerError)
		case "break":
			panic(http.ErrAbortHandler)
		}
	})
	tr := &tour{t: t, address: caddytest.FreeAddress(t)}
	tr.Caddy = caddytest.Start(t, "", "", fmt.Sprintf(`
http://%[1]s {
	handle /main {
		buzzbip_webhook {
			secret %[2]s main
			secret %[3]s old
		}
		reverse_proxy %[4]s
	}
	handle /durable {
		buzzbip_webhook {
			secret %[2]s main
			store bolt %[5]s
		}
		reverse_proxy %[4]s
	}
}`, tr.address, caddytest.Secret, oldSecret, b.Address(), filepath.Join(t.TempDir(), "events.db")))
	body := freshEvent(`{}`)
	id := regexp.MustCompile(`evt_\w+`).FindString(body)
	send := func(mode string, status int) {
		t.Helper()
		r := tr.request(http.MethodPost, "/main", caddytest.Sign(body), body)
		r.Header.Set("X-Mode", mode)
		tr.expect(r, status)
	}
	command := func() string {
		t.Helper()
		ran := run(t, "", "lookup", id, "--address", tr.Admin)
		ran.says(t, 0)
		return regexp.MustCompile(` +`).ReplaceAllString(ran.out, " ")
	}
	states := func(main string) map[string]string {
		return map[string]string{"secret:main in memory": main, "secret:old in memory": "unseen", "secret:main in bolt": "unseen"}
	}
	expect := func(when, state, said string) {
		t.Helper()
		if got, want := tr.states(http.MethodGet, id, http.StatusOK), states(state); !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
		if got := command(); !regexp.MustCompile(`(?m)^secret:main memory `+said).MatchString(got) || strings.Count(got, "unseen -") != strings.Count(fmt.Sprint(states(state)), "unseen") {
			t.Errorf("%s the command says\n%s", when, got)
		}
	}
	const at = ` at 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ -$`
	expect("at first", "unseen", "unseen -$")
	send("fail", http.StatusInternalServerError)
	expect("after a failure", "not_delivered", "not delivered: last attempt failed with 500"+at)
	send("break", http.StatusBadGateway)
	expect("after another", "not_delivered", `not delivered: last attempt failed \(connection_broken\)`+at)
	_, text := tr.Ask(http.MethodGet, "/buzzbip_webhook/events/"+id)
	type scopeAnswer struct {
		LastFailure *struct {
			Time     time.Time
			Cause    string
			Status   int
			Duration float64
		} `json:"last_failure"`
	}
	var answer struct{ Scopes []scopeAnswer }
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		t.Fatal(err)
	}
	answer.Scopes = slices.DeleteFunc(answer.Scopes, func(s scopeAnswer) bool { return s.LastFailure == nil })
	if len(answer.Scopes) != 1 {
		t.Fatalf("the last failure is not that of one scope: %s", text)
	}
	if f := answer.Scopes[0].LastFailure; f.Cause != "connection_broken" || f.Status != 0 || f.Duration <= 0 || time.Since(f.Time) > caddytest.Patience {
		t.Errorf("the last failure is %+v: %s", f, text)
	}
	tr.Reload()
	expect("after a reload", "not_delivered", `not delivered: last attempt failed \(connection_broken\)`+at)
	send("", http.StatusOK)
	expect("delivered", "delivered", `delivered 20`)
	tr.states(http.MethodDelete, id, http.StatusOK)
	expect("forgotten", "unseen", "unseen -$")
}

func TestAdminAPISaysWhenAStoreDoesNotAnswerOrNoHandlerRuns(t *testing.T) {
	tr := takeTour(t, "")
	states := tr.states(http.MethodGet, "evt_1", http.StatusServiceUnavailable)
	if states["secret:other in redis"] != "unknown" || states["secret:main in memory"] != "unseen" {
		t.Errorf("the states are %v", states)
	}
	if states := tr.states(http.MethodDelete, "evt_1", http.StatusServiceUnavailable); len(states) != 4 {
		t.Errorf("the answer to DELETE is about %v", states)
	}
	if err := os.WriteFile(tr.Config, []byte(fmt.Sprintf("{\n\tadmin %s\n}\n", tr.Admin)), 0o600); err != nil {
		t.Fatal(err)
	}
	tr.Reload()
	status, text := tr.Ask(http.MethodGet, "/buzzbip_webhook/scopes")
	if status != http.StatusNotFound || !strings.Contains(text, "has no buzzbip_webhook") {
		t.Errorf("without a handler: %d %s", status, text)
	}
}
