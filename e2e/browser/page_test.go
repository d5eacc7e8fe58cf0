// Package browser tests the page of the admin endpoint in a real browser.
package browser

import (
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

var screenshots = flag.String("screenshots", "", "directory to write screenshots to")

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(caddytest.Main(m))
}

const oldSecret = "old-secret-of-the-same-webhook-32"

// gateway is a Caddy with the plugin, and its page in a browser.
type gateway struct {
	*caddytest.Caddy
	t       *testing.T
	url     string
	backend *caddytest.Backend
	release chan struct{} // ends a slow delivery
	address string        // of the page
	inbox   string        // a file for the inbox, in {env.INBOX}
	page    context.Context

	mu       sync.Mutex
	problems []string // what the browser complains about
	visited  []string
}

// open starts a Caddy and opens its page.
func open(t *testing.T) *gateway {
	t.Helper()
	g := start(t)
	g.browse()
	return g
}

func start(t *testing.T) *gateway {
	t.Helper()
	return startSite(t, `
	handle /support {
		buzzbip_webhook {
			secret {env.OLD_SECRET} support
			scope support
			store memory {
				capacity 10
			}
		}
		reverse_proxy {backend}
	}
	handle {
		buzzbip_webhook {
			secret {env.NEW_SECRET} current
			secret {env.OLD_SECRET} previous
			events message.* contact.*
			answer_within 50ms
		}
		reverse_proxy {backend}
	}`)
}

// startSite starts a Caddy with one site, in which {backend} is the address of the
// backend.
func startSite(t *testing.T, directives string) *gateway {
	t.Helper()
	address := caddytest.FreeAddress(t)
	g := &gateway{t: t, url: "http://" + address, release: make(chan struct{}), inbox: filepath.Join(t.TempDir(), "inbox.db")}
	g.backend = caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("X-Mode") {
		case "fail":
			w.WriteHeader(http.StatusInternalServerError)
		case "slow":
			<-g.release
		}
	})
	g.Caddy = caddytest.Start(t, "", "", fmt.Sprintf("http://%s {%s\n}", address, strings.ReplaceAll(directives, "{backend}", g.backend.Address())),
		"NEW_SECRET="+caddytest.Secret, "OLD_SECRET="+oldSecret, "INBOX="+g.inbox)
	g.address = caddytest.ServePage(t, "--address", g.Admin)
	return g
}

// browse opens the page in a browser of its own, and waits until it is live.
func (g *gateway) browse() {
	g.t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(chromium(g.t)),
		chromedp.NoSandbox, // it does not run as root otherwise, and sees this page only
		chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.UserDataDir(g.t.TempDir()),
		chromedp.WindowSize(1440, 900),
	)
	browser, end := chromedp.NewExecAllocator(g.t.Context(), options...)
	page, closePage := chromedp.NewContext(browser)
	g.t.Cleanup(func() {
		closePage()
		end()
	})
	g.page = page
	err := chromedp.Listen(page, func(event any) {
		g.mu.Lock()
		defer g.mu.Unlock()
		switch event := event.(type) {
		case *network.EventRequestWillBeSent:
			g.visited = append(g.visited, event.Request.URL)
		case *log.EventEntryAdded:
			g.problems = append(g.problems, event.Entry.Text)
		case *runtime.EventExceptionThrown:
			g.problems = append(g.problems, fmt.Sprint(event.ExceptionDetails.Text, " ", event.ExceptionDetails.URL, event.ExceptionDetails.LineNumber))
		}
	})
	if err != nil {
		g.t.Fatal(err)
	}
	call(g, network.Enable, network.EnableParams{})
	call(g, log.Enable, cdp.Empty{})
	g.do(chromedp.Navigate(g.address))
	g.until("the page is live", `document.querySelector("#live").textContent.startsWith("live")`)
}

func chromium(t *testing.T) string {
	for _, name := range []string{os.Getenv("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatal("there is no Chromium here: install it, as make check does, or name it in CHROMIUM")
	return ""
}

// do acts in the browser.
func (g *gateway) do(actions ...chromedp.Action[chromedp.Void]) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.page, caddytest.Patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		g.t.Fatal(err)
	}
}

// click waits until an element is there with nothing before it, and clicks on
// it in the same step: the page may replace it in between otherwise.
func click(selector string) chromedp.Action[chromedp.Void] {
	return chromedp.PollFunction[chromedp.Void](`selector => {
		const found = document.querySelector(selector);
		if (!found) return false;
		found.scrollIntoView({block: "nearest"});
		const {x, y, width, height} = found.getBoundingClientRect();
		if (!found.contains(document.elementFromPoint(x + width / 2, y + height / 2))) return false;
		found.click();
		return true;
	}`, chromedp.WithPollingArgs(selector))
}

// write replaces the text of a field, as somebody who types does.
func write(selector, text string) chromedp.Action[chromedp.Void] {
	return chromedp.Steps(chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`document.querySelector(%q).select()`, selector)), chromedp.SendKeys(chromedp.CSS(selector), text))
}

// get returns the value of an expression in the page.
func get[T any](g *gateway, expression string) T {
	g.t.Helper()
	return run(g, chromedp.Evaluate[T](expression))
}

func run[T any](g *gateway, action chromedp.Action[T]) T {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.page, caddytest.Patience)
	defer cancel()
	value, err := chromedp.Run(ctx, action)
	if err != nil {
		g.t.Fatal(err)
	}
	return value
}

func call[P, R any](g *gateway, command cdp.Command[P, R], params P) {
	g.t.Helper()
	if _, err := chromedp.Call(g.page, command, params); err != nil {
		g.t.Fatal(err)
	}
}

// until waits until an expression is true in the page.
func (g *gateway) until(what, expression string) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.page, caddytest.Patience)
	defer cancel()
	if _, err := chromedp.Run(ctx, chromedp.Poll[bool]("!!("+expression+")")); err != nil {
		g.t.Fatalf("waiting until %s: %v; the page says:\n%s", what, err, get[string](g, `document.body.innerText`))
	}
}

// rows returns the texts of a table, with | between cells.
func (g *gateway) rows(table string) []string {
	g.t.Helper()
	return get[[]string](g, fmt.Sprintf(`[...document.querySelectorAll(%q)].map(row => [...row.cells].map(c => c.innerText.replaceAll("\n", " ")).join("|"))`, table+" tbody tr"))
}

// send posts a body, and returns the status.
func (g *gateway) send(path, secret, body, mode string) int {
	g.t.Helper()
	r, err := http.NewRequest(http.MethodPost, g.url+path, strings.NewReader(body))
	if err != nil {
		g.t.Error(err)
		return 0
	}
	r.Header.Set("X-BuzzBip-Signature", caddytest.SignWith(secret, body))
	r.Header.Set("X-Mode", mode)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		g.t.Error(err)
		return 0
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

func event(id, typ, data string) string {
	return caddytest.Event{ID: id, Type: typ, Created: caddytest.DocumentedTime, Data: data}.Body()
}

// sendsAll makes one delivery of each result; the last one is under way then.
func (g *gateway) sendsAll() {
	g.t.Helper()
	first := event("evt_7f3a9b2c", "message.received", `{}`)
	for _, step := range []struct {
		body, secret, mode string
		status             int
	}{
		{first, caddytest.Secret, "", 200},
		{first, caddytest.Secret, "", 200},                                                // duplicate
		{event("evt_7f3a9b2c", "message.received", `{"n":1}`), caddytest.Secret, "", 200}, // conflict
		{event("evt_51d0c774", "contact.updated", `{}`), oldSecret, "", 200},
		{event("evt_2be91f3a", "conversation.opened", `{}`), caddytest.Secret, "", 200}, // ignored
		{event("evt_90aa3c1e", "message.sent", `{}`), "forged", "", 401},
		{event("evt_c8871b0d", "message.failed", `{}`), caddytest.Secret, "fail", 500},
	} {
		if got := g.send("/", step.secret, step.body, step.mode); got != step.status {
			g.t.Fatalf("%s was answered %d, want %d", step.body, got, step.status)
		}
	}
	slow := event("evt_aa04e5d9", "message.sent", `{}`)
	go g.send("/", caddytest.Secret, slow, "slow")
	caddytest.WaitFor(g.t, "the delivery", func() bool { return g.backend.Count(slow) == 1 })
	if got := g.send("/", caddytest.Secret, slow, ""); got != 503 {
		g.t.Fatalf("a duplicate of an event in flight was answered %d", got)
	}
}

func TestPageShowsRequestsLive(t *testing.T) {
	g := open(t)
	g.until("it says that there is nothing", `document.querySelector("#requests").innerText.includes("No requests yet")`)
	g.sendsAll()
	g.until("the requests are there", `document.querySelectorAll("#requests tbody tr").length === 8`)
	g.until("one is with the backend", `document.querySelectorAll(".answer")[2]?.innerText.includes("1 under way")`)
	close(g.release)
	g.until("that is there, too", `document.querySelectorAll("#requests tbody tr").length === 9`)
	var got []string
	for _, row := range g.rows("#requests") {
		fields := strings.Split(row, "|")
		if _, err := time.Parse("15:04:05", fields[0]); err != nil {
			t.Error(err)
		}
		if !strings.HasSuffix(fields[6], " ms") && !strings.HasSuffix(fields[6], " s") {
			t.Errorf("a delivery took %q", fields[6])
		}
		got = append(got, strings.Join(fields[1:6], "|"))
	}
	want := []string{
		"delivered|evt_aa04e5d9|message.sent||current",
		"asked to retry|evt_aa04e5d9|message.sent|in_flight, from 127.0.0.1|current",
		"failed|evt_c8871b0d|message.failed|500 Internal Server Error from " + g.backend.Address() + "|current",
		"rejected|not verified||signature_mismatch, from 127.0.0.1|",
		"ignored|evt_2be91f3a|conversation.opened||current",
		"delivered|evt_51d0c774|contact.updated||previous",
		"conflict|evt_7f3a9b2c|message.received|from 127.0.0.1|current",
		"duplicate|evt_7f3a9b2c|message.received||current",
		"delivered|evt_7f3a9b2c|message.received||current",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the page shows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	g.until("the results are counted", `[...document.querySelectorAll("#results button:not([hidden])")].map(c => c.innerText).join() ===
		"all 9,delivered 3,stored 0,duplicate 1,ignored 1,asked to retry 1,failed 1,conflict 1,rejected 1"`)
	g.until("what went wrong is grouped", `[...document.querySelectorAll("#problems tbody tr")].map(r => r.cells[0].innerText.split("\n")[0].trim() + ": " + r.cells[1].innerText + " " + r.cells[2].innerText).join() ===
		"asked to retry in_flight: 127.0.0.1 1,failed 500 Internal Server Error from `+g.backend.Address()+`:  1,rejected signature_mismatch: 127.0.0.1 1,conflict: 127.0.0.1 1"`)
	g.until("the scopes show", `[...document.querySelectorAll("#scopes tbody tr")].map(r => [...r.cells].map(c => c.innerText.replace("\n", " ")).join(" ")).sort().join() ===
		"secret:current memory 0 2,secret:previous memory 0 1,support memory 0 0"`)
	g.until("the secrets show", `[...document.querySelectorAll("#secrets tbody tr")].map(r => r.cells[0].innerText + ": " + /^\d+ s ago$|^not yet$/.test(r.cells[2].innerText)).sort().join() ===
		"current: true,previous: true,support: true"`)
	g.until("the rate is drawn", `/V.*H/.test(document.querySelector("#charts path:nth-of-type(2)")?.getAttribute("d"))`)
	g.isQuiet()
}

// isQuiet fails the test if the browser complained, or asked for anything from
// elsewhere.
func (g *gateway) isQuiet() {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.problems) > 0 {
		g.t.Errorf("the browser complains: %q", g.problems)
	}
	for _, url := range g.visited {
		if !strings.HasPrefix(url, g.address) && !strings.HasPrefix(url, "data:") {
			g.t.Errorf("the page asks for %s", url)
		}
	}
	if len(g.visited) < 2 {
		g.t.Errorf("the page asked for %q only", g.visited)
	}
}

func TestPageShowsOnlyWhatIsAskedFor(t *testing.T) {
	g := open(t)
	g.sendsAll()
	close(g.release)
	g.until("the requests are there", `document.querySelectorAll("#requests tbody tr").length === 9`)
	count := func(what string, n int) {
		t.Helper()
		if rows := g.rows("#requests"); len(rows) != n {
			t.Errorf("%s the page shows %q", what, rows)
		}
	}
	g.do(click(`button[data-result=delivered]`))
	count("of the delivered", 3)
	g.do(write(`#filter`, "Previous"))
	count("of those with the previous secret", 1)
	g.do(click(`button[data-result=""]`), write(`#filter`, "signature_"))
	count("of those with a reason", 1)
	g.do(write(`#filter`, "status_5"))
	count("of those with a cause", 1)
	g.do(write(`#filter`, "mismatch, from 127.0.0.1"))
	count("of those with a reason and an address", 1)
	g.do(write(`#filter`, "nothing"))
	if rows := g.rows("#requests"); len(rows) != 1 || !strings.Contains(rows[0], "No matching requests") {
		t.Errorf("of nothing the page shows %q", rows)
	}
	g.do(write(`#filter`, "evt"), click(`#pause`))
	g.send("/", caddytest.Secret, event("evt_paused", "message.sent", `{}`), "")
	g.until("the delivery is counted", `document.querySelector("[data-result=delivered] b").textContent === "4"`)
	g.until("the page says that there is a new one", `document.querySelector("#shown").textContent === "paused, 1 new"`)
	if rows := strings.Join(g.rows("#requests"), "\n"); strings.Contains(rows, "evt_paused") {
		t.Errorf("although paused, the page shows %s", rows)
	}
	g.do(click(`#pause`))
	g.until("the page goes on", `document.querySelector("#requests").innerText.includes("evt_paused")`)
	g.isQuiet()
}

func TestPageLooksUpAndForgetsAnEvent(t *testing.T) {
	g := open(t)
	body := event("evt/ü 1?", "message.sent", `{}`)
	g.send("/", caddytest.Secret, body, "")
	g.do(click(`#requests button.id`))
	g.until("the answer is there", `document.querySelectorAll("#answer tr").length === 3`)
	answer := strings.Join(g.rows("#answer table"), "\n")
	if !strings.Contains(answer, "secret:current memory|delivered until ") || !strings.Contains(answer, "secret:previous memory|unseen") {
		t.Errorf("the answer is %s", answer)
	}
	// not by accident
	g.do(click(`#forget`), click(`#confirm button[value=""]`))
	g.do(click(`#lookup button`))
	g.send("/", caddytest.Secret, body, "")
	if n := g.backend.Count(body); n != 1 {
		t.Fatalf("the backend got the event %d times although nothing was forgotten", n)
	}
	g.do(click(`#forget`), click(`#yes`))
	g.until("it is forgotten", `document.querySelector("#answer").innerText.includes("forgotten")`)
	g.send("/", caddytest.Secret, body, "")
	if n := g.backend.Count(body); n != 2 {
		t.Errorf("after it was forgotten the backend got the event %d times", n)
	}
	g.do(write(`#lookup input`, "evt_never\n"))
	g.until("the answer to another is there", `[...document.querySelectorAll("#answer .badge")].every(b => b.innerText === "unseen") && document.querySelectorAll("#answer .badge").length === 3`)
	g.isQuiet()
}

func TestPageForgetsOnceHoweverFastItsUserIs(t *testing.T) {
	g := open(t)
	g.send("/", caddytest.Secret, event("evt_once", "message.sent", `{}`), "")
	g.do(click(`#requests button.id`))
	g.until("it can be looked up", `document.querySelector("#forget")`)
	get[chromedp.Void](g, `for (const button of ["#forget", '#confirm button[value=""]', "#forget", "#yes"]) document.querySelector(button).click()`)
	g.until("it is forgotten", `document.querySelector("#answer").innerText.includes("forgotten")`)
	g.isQuiet()
}

// An answer that comes late would be taken for one about another event.
func TestPageShowsTheAnswerToTheLatestQuestion(t *testing.T) {
	g := open(t)
	g.send("/", caddytest.Secret, event("evt_first", "message.sent", `{}`), "")
	g.do(click(`#requests button.id`))
	g.until("it can be looked up", `document.querySelector("#forget")`)
	get[chromedp.Void](g, `{
		const real = window.fetch;
		const held = new Promise(done => window.release = done);
		window.fetch = async (...call) => {
			const answer = await real(...call);
			if (call[0].endsWith("evt_first")) await held;
			return answer;
		};
	}`)
	g.do(click(`#requests button.id`), write(`#lookup input`, "evt_second\n"))
	g.until("the second answer is there", `document.querySelectorAll("#answer .badge").length === 3 && !document.querySelector("#forget")`)
	get[chromedp.Void](g, `release(), new Promise(done => setTimeout(done, 100))`)
	if get[bool](g, `!!document.querySelector("#forget")`) {
		t.Error("the answer to the first question replaced that to the second")
	}
	g.isQuiet()
}

func TestPageShowsWhatSendersWriteAsText(t *testing.T) {
	g := open(t)
	const markup = `<img src=x onerror="document.title='broken'">`
	g.send("/", caddytest.Secret, event(markup, "message."+markup, `{}`), "")
	g.do(click(`#requests button.id`))
	g.do(click(`#forget`), chromedp.WaitVisible(chromedp.ID("confirm")))
	images, title := get[int](g, `document.querySelectorAll("img").length`), get[string](g, `document.title`)
	if rows := strings.Join(g.rows("#requests"), "\n"); images != 0 || title != "BuzzBip webhooks" || !strings.Contains(rows, markup+"|message."+markup) {
		t.Errorf("%d images, the title is %q, the page shows %s", images, title, rows)
	}
	g.isQuiet()
}

// A flood of forgeries leaves the genuine events there.
func TestPageKeepsTheLatestOfEachKind(t *testing.T) {
	g := open(t)
	first := event("evt_first", "message.sent", `{}`)
	g.send("/", caddytest.Secret, first, "")
	g.send("/", caddytest.Secret, event("evt_failed", "message.sent", `{}`), "fail")
	for range 250 {
		g.send("/", "forged", "{}", "")
	}
	for range 150 {
		g.send("/", caddytest.Secret, first, "") // captured, and sent again
	}
	g.send("/", caddytest.Secret, event("evt_last", "message.sent", `{}`), "")
	check := func(when string) {
		t.Helper()
		g.until("the last is there", `document.querySelector("#requests tbody tr")?.innerText.includes("evt_last")`)
		kinds := make(map[string]int)
		for _, result := range []string{"delivered", "duplicate", "failed", "rejected"} {
			g.do(click(`button[data-result=` + result + `]`))
			for _, row := range g.rows("#requests") {
				fields := strings.Split(row, "|")
				kinds[fields[2]+" "+fields[1]]++
			}
		}
		want := map[string]int{"evt_last delivered": 1, "evt_first duplicate": 100, "not verified rejected": 100, "evt_failed failed": 1, "evt_first delivered": 1}
		if !maps.Equal(kinds, want) {
			t.Errorf("%s the page keeps %v, want %v", when, kinds, want)
		}
	}
	check("live")
	g.until("all are counted", `document.querySelector("[data-result=rejected] b").textContent === "250"`)
	g.do(chromedp.Navigate(g.address))
	check("opened later")
	g.isQuiet()
}

func TestPageShowsAStoreThatForgetsTooEarly(t *testing.T) {
	g := open(t)
	for i := range 12 {
		g.send("/support", oldSecret, event(fmt.Sprint("evt_", i), "message.sent", `{}`), "")
	}
	g.until("the evicted IDs are shown", `document.querySelector("#stores").innerText.startsWith("The store memory has evicted 2 IDs before the end of their retention, for lack of room.")`)
	g.until("the scope is full", `[...document.querySelectorAll("#scopes meter")].some(m => m.value === 1)`)
	g.isQuiet()
}

func TestPageFindsCaddyAgain(t *testing.T) {
	g := open(t)
	g.send("/", caddytest.Secret, event("evt_before", "message.sent", `{}`), "")
	g.until("a request is there", `document.querySelector("#requests").innerText.includes("evt_before")`)
	g.Reload()
	g.send("/", caddytest.Secret, event("evt_after", "message.sent", `{}`), "")
	g.until("one after a reload is there", `document.querySelector("#requests tbody tr")?.innerText.includes("evt_after")`)
	if rows := g.rows("#requests"); len(rows) != 2 {
		t.Errorf("after a reload the page shows %q", rows)
	}

	// a configuration without a handler
	if err := os.WriteFile(g.Config, []byte(fmt.Sprintf("{\n\tadmin %s\n}\n", g.Admin)), 0o600); err != nil {
		t.Fatal(err)
	}
	g.Reload()
	g.until("it says that there is no handler", `document.querySelector("#banners").innerText.includes("has no buzzbip_webhook")`)
	g.Kill()
	g.until("it says that Caddy is gone", `document.querySelector("#live").textContent.includes("no connection")`)
}

// The relay answers with errors while Caddy is down, which an EventSource takes
// for the end.
func TestPageConnectsAgainAfterCaddyWasDown(t *testing.T) {
	g := open(t)
	g.send("/", caddytest.Secret, event("evt_before", "message.sent", `{}`), "")
	g.do(click(`#requests button.id`))
	g.until("it can be looked up", `document.querySelector("#forget")`)
	g.Kill()
	g.until("it says that Caddy is gone", `document.querySelector("#live").textContent.includes("no connection")`)
	for range 3 { // that the relay has answered with an error is seen in what was asked for
		asked := g.asksFor("requests")
		caddytest.WaitFor(t, "another attempt", func() bool { return g.asksFor("requests") > asked })
	}
	g.do(click(`#lookup button`))
	g.until("the lookup says that there is no answer", `document.querySelector("#answer").innerText === "Caddy does not respond (502). Is it running?"`)

	g.restart()
	g.until("the page is live again", `document.querySelector("#live").textContent.startsWith("live")`)
	g.send("/", caddytest.Secret, event("evt_after", "message.sent", `{}`), "")
	g.until("a request is there", `document.querySelector("#requests").innerText.includes("evt_after")`)
	g.do(click(`#lookup button`))
	g.until("the lookup is answered", `document.querySelectorAll("#answer .badge").length === 3`)
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, problem := range g.problems {
		if !strings.HasPrefix(problem, "Failed to load resource: ") { // the browser notes each attempt
			t.Errorf("the browser complains: %s", problem)
		}
	}
}

// restart runs the Caddy that was killed once more.
func (g *gateway) restart() {
	g.t.Helper()
	again := exec.Command(g.Cmd.Path, g.Cmd.Args[1:]...)
	again.Env = g.Cmd.Env
	caddytest.Capture(g.t, again)
	if err := again.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		_ = again.Process.Kill()
		_ = again.Wait()
	})
	caddytest.WaitFor(g.t, "Caddy to start", func() bool {
		res, err := http.Get(g.url)
		if err == nil {
			res.Body.Close()
		}
		return err == nil
	})
}

// asksFor returns how often the page has asked for a path.
func (g *gateway) asksFor(path string) (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, url := range g.visited {
		if url == g.address+path {
			n++
		}
	}
	return n
}

func TestPageLookupSaysThatNothingAnswers(t *testing.T) {
	g := open(t)
	get[chromedp.Void](g, `window.fetch = () => Promise.reject(new TypeError("Failed to fetch"))`) // the relay has ended
	g.do(write(`#lookup input`, "evt_1\n"))
	g.until("it says so", `document.querySelector("#answer").innerText.startsWith("No connection to Caddy")`)
	g.isQuiet()
}

func TestPageTellsHowADeliveryFailed(t *testing.T) {
	g := open(t)
	g.send("/", caddytest.Secret, event("evt_failed", "message.sent", `{}`), "fail")
	g.do(click(`#requests button.id`))
	g.until("the answer is there", `document.querySelectorAll("#answer .badge").length === 3`)
	rows := g.rows("#answer table")
	if answer := strings.Join(rows, "\n"); !strings.Contains(answer, "secret:current memory|not delivered last attempt failed at ") || strings.Count(answer, "|unseen") != 2 {
		t.Errorf("the answer is %s", answer)
	}
	g.isQuiet()
}

// On a small screen the answer is thousands of pixels away from the row.
func TestPageBringsTheAnswerIntoView(t *testing.T) {
	g := open(t)
	for i := range 80 {
		g.send("/", caddytest.Secret, event(fmt.Sprint("evt_", i), "message.sent", `{}`), "")
	}
	g.until("the requests are there", `document.querySelectorAll("#requests tbody tr").length === 80`)
	const inView = `(selector => {
		const box = document.querySelector(selector)?.getBoundingClientRect();
		return box && box.height > 0 && box.top >= 0 && box.bottom <= innerHeight;
	})`
	for _, width := range []int64{420, 1440} {
		g.do(chromedp.EmulateViewport(width, 700))
		for _, row := range []int{1, 75} {
			button := fmt.Sprintf("#requests tbody tr:nth-child(%d) button.id", row)
			id := get[string](g, fmt.Sprintf(`document.querySelector(%q).textContent`, button))
			get[chromedp.Void](g, fmt.Sprintf(`document.querySelector("#answer").replaceChildren(), document.querySelector(%q).focus()`, button))
			g.do(chromedp.KeyEvent("\r"))
			g.until("the answer is in view, and has the focus", inView+`("#answer") && document.activeElement.id === "answer" && document.querySelector("#lookup input").value === "`+id+`"`)
			// new requests replace the rows
			g.send("/", caddytest.Secret, event(fmt.Sprintf("evt_new_%d_%d", width, row), "message.sent", `{}`), "")
			g.until("a new request is there", fmt.Sprintf(`document.querySelector("#requests").innerText.includes("evt_new_%d_%d")`, width, row))
			get[chromedp.Void](g, `document.querySelector("#back").focus()`)
			g.do(chromedp.KeyEvent("\r"))
			g.until("the row is back, with the focus", `document.activeElement.textContent === "`+id+`" && document.activeElement.matches("#requests button.id") && (box => box.top >= 0 && box.bottom <= innerHeight)(document.activeElement.getBoundingClientRect())`)
			g.send("/", caddytest.Secret, event(fmt.Sprintf("evt_newer_%d_%d", width, row), "message.sent", `{}`), "")
			g.until("the list waits", `document.querySelector("#shown").textContent === "held while it has the focus, 1 new"`)
			if got := get[string](g, `document.activeElement.textContent`); got != id {
				t.Errorf("a new delivery took the focus from %s to %q", id, got)
			}
		}
	}
	g.isQuiet()
}

// The same protection as the rest of the admin endpoint has.
func TestPageIsNotForOtherSites(t *testing.T) {
	g := start(t)
	for name, change := range map[string]func(*http.Request){
		"another host":   func(r *http.Request) { r.Host = "evil.example" },
		"another origin": func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") },
	} {
		for path, method := range map[string]string{
			"/buzzbip_webhook/": http.MethodGet, "/buzzbip_webhook/requests": http.MethodGet,
			"/buzzbip_webhook/inbox/pause": http.MethodPost, "/buzzbip_webhook/inbox/discard": http.MethodPost,
		} {
			r, err := http.NewRequest(method, "http://"+g.Admin+path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			change(r)
			res, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != http.StatusForbidden {
				t.Errorf("%s, %s: %s", name, path, res.Status)
			}
		}
	}
}
