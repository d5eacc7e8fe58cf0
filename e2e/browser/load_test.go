package browser

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/performance"
	"github.com/chromedp/chromedp"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// flood sends events, 1,000 a second if the machine is fast enough, until stop is
// called, which returns how many they were a second.
func (g *gateway) flood() (stop func() float64) {
	ctx, cancel := context.WithCancel(g.t.Context())
	var senders sync.WaitGroup
	var sent atomic.Int64
	begin := time.Now()
	const workers = 8
	for range workers {
		senders.Go(func() {
			tick := time.NewTicker(workers * time.Second / 1000)
			defer tick.Stop()
			for ctx.Err() == nil {
				<-tick.C
				g.send("/", caddytest.Secret, caddytest.NewEvent(), "")
				sent.Add(1)
			}
		})
	}
	return func() float64 {
		cancel()
		senders.Wait()
		return float64(sent.Load()) / time.Since(begin).Seconds()
	}
}

// mainThread returns the CPU time that the tasks of the page have taken, in seconds.
func (g *gateway) mainThread() float64 {
	g.t.Helper()
	result, err := chromedp.Call(g.page, performance.GetMetrics, cdp.Empty{})
	if err != nil {
		g.t.Fatal(err)
	}
	for _, m := range result.Metrics {
		if m.Name == "TaskDuration" {
			return m.Value
		}
	}
	return 0
}

func TestPageCanBeReadAndClickedInAFlood(t *testing.T) {
	g := open(t)
	stop := g.flood()
	g.until("the list is full", `document.querySelectorAll("#requests tbody tr").length === 100`)
	get[chromedp.Void](g, `(() => {
		window.draws = 0, window.long = [];
		new MutationObserver(() => window.draws++).observe(document.querySelector("#requests tbody"), {childList: true});
		new PerformanceObserver(list => window.long.push(...list.getEntries().map(e => Math.round(e.duration)))).observe({type: "longtask"});
	})()`)
	call(g, performance.Enable, performance.EnableParams{TimeDomain: performance.EnableTimeDomainThreadTicks})
	busy := g.mainThread()
	const watched = 4
	g.until("time passes", fmt.Sprintf(`performance.now() > %v`, get[float64](g, `performance.now()`)+watched*1000))
	if draws := get[int](g, `window.draws`); draws == 0 || draws > 2*watched+1 {
		t.Errorf("in %d s the list was drawn %d times", watched, draws)
	}
	busy = (g.mainThread() - busy) / watched
	long := get[[]int](g, `window.long`)
	if elements := get[int](g, `document.querySelectorAll("*").length`); elements > 1500 {
		t.Errorf("the page has %d elements", elements)
	}

	// a row that is pointed at stays, and can be clicked
	type spot struct {
		X, Y float64
		ID   string
	}
	const row = `(() => {
		const button = document.querySelector("#requests tbody tr:nth-child(3) button.id");
		button.scrollIntoView({block: "center"});
		const {x, y, width, height} = button.getBoundingClientRect();
		return {X: x + width / 2, Y: y + height / 2, ID: button.textContent};
	})()`
	at := get[spot](g, row)
	g.do(chromedp.MouseEvent("mouseMoved", at.X, at.Y))
	g.until("the list waits", `/^held while you point at it, .* new$/.test(document.querySelector("#shown").textContent)`)
	at = get[spot](g, row)
	g.do(chromedp.MouseClickXY(at.X, at.Y))
	g.until("the event is looked up", fmt.Sprintf(`document.querySelector("#lookup input").value === %q && document.querySelector("#answer").innerText.includes("delivered")`, at.ID))
	g.do(chromedp.MouseEvent("mouseMoved", 1, 1))
	get[chromedp.Void](g, `document.activeElement.blur()`)
	g.until("the list goes on", fmt.Sprintf(`!document.querySelector("#requests").innerText.includes(%q)`, at.ID))

	rate := stop()
	t.Logf("%.0f events a second: the main thread was busy for %.0f %% of the time; tasks longer than 50 ms in %d s, in ms: %v", rate, 100*busy, watched, long)
	g.isQuiet()
}

// With good events alone in the list, one would look for the failures.
func TestPageShowsFailuresHoweverManyGoodEventsFollow(t *testing.T) {
	g := start(t)
	g.send("/", caddytest.Secret, event("evt_failed", "message.sent", `{}`), "fail")
	for range 150 {
		g.send("/", caddytest.Secret, caddytest.NewEvent(), "")
	}
	g.browse()
	g.until("what went wrong is there", `document.querySelector("#problems").innerText.includes("500 Internal Server Error from") && document.querySelector("#problems").innerText.includes("evt_failed")`)
	g.do(click(`button[data-result=failed]`))
	if rows := g.rows("#requests"); len(rows) != 1 || !strings.Contains(rows[0], "evt_failed") {
		t.Errorf("of the failures it shows %q", rows)
	}
	g.isQuiet()
}

func TestPageStartsWithTheHistory(t *testing.T) {
	g := start(t)
	for range 30 {
		g.send("/", caddytest.Secret, caddytest.NewEvent(), "")
	}
	g.browse()
	g.until("the chart has the past", `/V.*H/.test(document.querySelector("#charts path:nth-of-type(2)")?.getAttribute("d"))`)
	g.until("its axes have numbers and times", `/\d(\/s|\/min)$/.test(document.querySelector(".axis.y span").textContent) && /^\d\d:\d\d UTC/.test(document.querySelector(".axis.x span:last-child").textContent)`)
	g.isQuiet()
}

func TestPageShowsTimesInOneFormatWithTheirZone(t *testing.T) {
	g := start(t)
	g.send("/", caddytest.Secret, event("evt_failed", "message.sent", `{}`), "fail")
	g.send("/", caddytest.Secret, event("evt_1", "message.sent", `{}`), "")
	g.browse()
	call(g, emulation.SetTimezoneOverride, emulation.SetTimezoneOverrideParams{TimezoneID: "Asia/Kolkata"})
	g.do(chromedp.Navigate(g.address))
	g.until("the requests are there", `document.querySelectorAll("#requests tbody tr").length === 2`)
	g.do(click(`#requests button.id`))
	g.until("the answer is there", `document.querySelectorAll("#answer .badge").length === 3`)
	if odd := get[[]string](g, `[...document.querySelectorAll("time")].map(t => t.textContent).filter(t => !/^(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d$| ago$/.test(t))`); len(odd) > 0 {
		t.Errorf("times are %q", odd)
	}
	for _, selector := range []string{"#requests th", "#problems th:last-child", "#since", "#answer"} {
		if text := get[string](g, fmt.Sprintf(`document.querySelector(%q).innerText`, selector)); !strings.Contains(text, "UTC+5:30") {
			t.Errorf("the zone is not in %q", text)
		}
	}
	g.isQuiet()
}

func TestPageSaysLoudlyThatNothingIsEnforced(t *testing.T) {
	g := startSite(t, `
	buzzbip_webhook {env.NEW_SECRET} {
		enforce off
	}
	reverse_proxy {backend}`)
	g.deliver(1)
	if got := g.send("/", "another secret", caddytest.NewEvent(), ""); got != 200 {
		t.Fatalf("a request that is only observed was answered %d", got)
	}
	g.browse()
	g.says("Yes, |Yes, but not all|Yes|No inbox", "Nothing is enforced: a handler has enforce off. Forged requests and duplicates reach its backend.")
	g.until("it says what would be", `/^delivered\s.*would be rejected, signature_mismatch, from 127/s.test([...document.querySelector("#requests tbody tr").cells].slice(1).map(c => c.innerText).join(" ")) &&
		/would be rejected signature_mismatch/.test(document.querySelector("#problems tbody").innerText)`)
	g.isQuiet()
}
