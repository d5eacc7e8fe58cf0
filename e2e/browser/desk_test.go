package browser

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// openDesk opens the page of a Caddy whose backend fails until it is healed. Its
// inbox has waiting events, and asks the backend only if it is told to.
func openDesk(t *testing.T, waiting int) (g *gateway, heal func()) {
	t.Helper()
	var healthy atomic.Bool
	backend := caddytest.NewBackend(t, func(w http.ResponseWriter, _ *http.Request) {
		if !healthy.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	g = startSite(t, fmt.Sprintf(`
	buzzbip_webhook {env.NEW_SECRET} {
		inbox sqlite {
			retry 1h
		}
	}
	reverse_proxy %s`, backend.Address()))
	g.backend = backend
	for i := range waiting {
		g.send("/", caddytest.Secret, event(fmt.Sprintf("evt_%d", i), "message.received", `{"text":"top secret"}`), "")
	}
	g.browse()
	g.until("it says what waits", `document.querySelector("#groups tbody").innerText.includes("500 Internal Server Error from 127.0.0.1:")`)
	return g, func() { healthy.Store(true) }
}

// group returns the selector of a button in the row of a group.
func group(label, text string) chromedp.Action[chromedp.Void] {
	return chromedp.PollFunction[chromedp.Void](`(label, text) => {
		const row = [...document.querySelectorAll("#groups tbody tr")].find(r => r.innerText.includes(text));
		const found = [...row?.querySelectorAll("button") ?? []].find(b => b.textContent === label);
		found?.click();
		return !!found;
	}`, chromedp.WithPollingArgs(label, text))
}

func (g *gateway) asks(question string) {
	g.t.Helper()
	g.until("it asks "+question, fmt.Sprintf(`document.querySelector("#confirm").open && document.querySelector("#question").textContent === %q`, question))
}

func TestPageRetriesWhatWaitsAfterItHasSaidHowMany(t *testing.T) {
	g, heal := openDesk(t, 3)
	heal()
	g.do(group("Retry", "500 Internal Server Error from 127.0.0.1:"))
	g.asks("Retry 3 events?")
	g.do(click(`#confirm button[value=""]`))
	if n := g.Metric(`inbox_events{state="waiting"}`); n != 3 {
		t.Fatalf("although the answer was no, %v events wait", n)
	}
	g.do(group("Retry", "500 Internal Server Error from 127.0.0.1:"))
	g.asks("Retry 3 events?")
	g.do(click(`#yes`))
	g.until("it says what it has done", `document.querySelector("#told").textContent === "3 events to be delivered now."`)
	g.says("Yes, |Yes|Partly: 3 of 6 fail|Nothing")
	g.until("nothing waits", `document.querySelector("#groups").innerText.includes("Nothing waits")`)
	g.until("the redeliveries are shown", `[...document.querySelectorAll("#requests tbody tr")].filter(r => r.innerText.includes("redelivery 1")).length === 3`)
	g.isQuiet()
}

func TestPageDiscardsOneEventOfSeveral(t *testing.T) {
	g, _ := openDesk(t, 3)
	g.do(group("Show", "500 Internal Server Error from 127.0.0.1:"))
	g.until("the events are listed", `document.querySelectorAll("#events tbody tr").length === 3 && document.activeElement.id === "listed"`)
	g.do(click(`#events tbody tr:nth-child(2) button.danger`))
	g.asks("Discard 1 event?")
	if text := get[string](g, `document.querySelector("#consequence").textContent`); !strings.Contains(text, "evt_1") || !strings.Contains(text, "cannot be undone") {
		t.Errorf("it says %s", text)
	}
	g.do(click(`#yes`))
	g.until("it is gone", `document.querySelectorAll("#events tbody tr").length === 2 && !document.querySelector("#events").innerText.includes("evt_1")`)
	if n := g.Metric(`inbox_events{state="waiting"}`); n != 2 {
		t.Errorf("%v events wait", n)
	}
	g.isQuiet()
}

// What arrives while the question is open was not counted, so it stays.
func TestPageDiscardsNoMoreThanItHasCounted(t *testing.T) {
	g, _ := openDesk(t, 2)
	g.do(group("Discard", "500 Internal Server Error from 127.0.0.1:"))
	g.asks("Discard 2 events?")
	g.send("/", caddytest.Secret, event("evt_later", "message.received", `{}`), "")
	g.do(click(`#yes`))
	g.until("it says what it has done", `document.querySelector("#told").textContent === "2 events discarded."`)
	if n := g.Metric(`inbox_events{state="waiting"}`); n != 1 {
		t.Errorf("%v events wait", n)
	}
}

func TestPageShowsAnEventWithItsAttemptsAndItsPayloadOnDemand(t *testing.T) {
	g, _ := openDesk(t, 1)
	if text := get[string](g, `document.documentElement.innerHTML`); strings.Contains(text, "top secret") {
		t.Error("the page has the payload before anybody asks for it")
	}
	g.do(write(`#lookup input`, "evt_0\n"), click(`#in-inbox`), click(`#events button.id`))
	g.until("the event is shown", `document.querySelector("#details").open`)
	if text := get[string](g, `document.querySelector("#facts").innerText`); !strings.Contains(text, "500 Internal Server Error from 127.0.0.1:") || !strings.Contains(text, "attempts\n1") || strings.Contains(text, "top secret") {
		t.Errorf("it shows %s", text)
	}
	g.do(click(`#details summary`))
	g.until("the payload is shown", `document.querySelector("#details pre").checkVisibility() && document.querySelector("#details pre").innerText.includes('"text": "top secret"')`)
	g.fits("event")
	g.do(click(`#details button[value=retry]`))
	g.asks("Retry 1 event?")
	g.isQuiet()
}

// Somebody else has paused redelivery: this page has a banner, too.
func TestPagePausesAndResumesForEverybody(t *testing.T) {
	g, _ := openDesk(t, 1)
	if status, text := g.Ask(http.MethodPost, "/buzzbip_webhook/inbox/pause"); status != http.StatusOK {
		t.Fatal(text)
	}
	g.until("it says that redelivery is paused", `document.querySelector(".banner.warn")?.innerText.includes("Redelivery is paused since")`)
	g.until("it says so at the event", `document.querySelector("#groups tbody").innerText.includes("paused")`)
	g.do(click(`.banner.warn button`))
	g.until("that is over", `!document.querySelector(".banner.warn")`)
	if n := g.Metric(`inbox_paused`); n != 0 {
		t.Error("it is still paused")
	}
	g.do(click(`#hold`))
	g.asks("Pause redelivery?")
	g.do(click(`#yes`))
	g.until("it says that redelivery is paused", `document.querySelector(".banner.warn") && document.querySelector("#hold").textContent === "Resume redelivery"`)
	if n := g.Metric(`inbox_paused`); n != 1 {
		t.Error("it is not paused")
	}
	g.isQuiet()
}

func TestPageCanBeOperatedWithTheKeyboard(t *testing.T) {
	g, heal := openDesk(t, 1)
	heal()
	press := func(key, until string) {
		t.Helper()
		for range 40 {
			if get[bool](g, "!!("+until+")") {
				return
			}
			g.do(chromedp.KeyEvent(key))
		}
		t.Fatalf("after 40 times %q there is not %s; the focus is on %s", key, until, get[string](g, `document.activeElement.outerHTML`))
	}
	press("\t", `document.activeElement.matches("#groups button") && document.activeElement.textContent === "Retry"`)
	if outline := get[string](g, `getComputedStyle(document.activeElement).outlineStyle`); outline != "solid" {
		t.Errorf("the focus is not visible: %s", outline)
	}
	g.do(chromedp.KeyEvent("\r"))
	g.asks("Retry 1 event?")
	g.do(chromedp.KeyEvent("\x1b"))
	g.until("the dialog is closed, and the focus is back", `!document.querySelector("#confirm").open && document.activeElement.textContent === "Retry"`)
	g.do(chromedp.KeyEvent("\r"))
	g.asks("Retry 1 event?")
	press("\t", `document.activeElement.id === "yes"`)
	g.do(chromedp.KeyEvent("\r"))
	g.until("the event is delivered", `document.querySelector("#told").textContent === "1 event to be delivered now."`)
	if n := g.asksFor("inbox/retry?inbox=" + url.PathEscape(get[string](g, `document.querySelector("#which").value`))); n != 3 {
		t.Errorf("two questions and one yes are %d requests", n)
	}
	g.isQuiet()
}
