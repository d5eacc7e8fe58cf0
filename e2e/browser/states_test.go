package browser

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// verdicts returns the answers to the first questions in an incident.
func (g *gateway) verdicts() string {
	g.t.Helper()
	return strings.Join(get[[]string](g, `[...document.querySelectorAll(".answer b")].map(b => b.textContent)`), "|")
}

// alarms returns the banners.
func (g *gateway) alarms() string {
	g.t.Helper()
	return strings.Join(get[[]string](g, `[...document.querySelectorAll(".banner p")].map(p => p.textContent)`), "\n")
}

// says waits until the first screen answers so, and has an alarm with these texts.
func (g *gateway) says(verdicts string, alarms ...string) {
	g.t.Helper()
	deadline := time.Now().Add(caddytest.Patience)
	for {
		gotVerdicts, gotAlarms := g.verdicts(), g.alarms()
		right := matches(gotVerdicts, verdicts) && (len(alarms) > 0 || gotAlarms == "")
		for _, alarm := range alarms {
			right = right && strings.Contains(gotAlarms, alarm)
		}
		if right {
			return
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("the page answers %s, want %s; its alarms are\n%s\nwant %q", gotVerdicts, verdicts, gotAlarms, alarms)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// matches compares texts between |, of which the wanted ones may be beginnings.
func matches(got, want string) bool {
	texts, beginnings := strings.Split(got, "|"), strings.Split(want, "|")
	if len(texts) != len(beginnings) {
		return false
	}
	for i := range texts {
		if !strings.HasPrefix(texts[i], beginnings[i]) {
			return false
		}
	}
	return true
}

const withInbox = `
	buzzbip_webhook {env.NEW_SECRET} {
		inbox sqlite {
			retry 1s 2s
			dead_on 422
		}
	}`

func (g *gateway) deliver(count int) {
	g.t.Helper()
	for range count {
		if got := g.send("/", caddytest.Secret, event(caddytest.NewID(), "message.received", `{}`), ""); got != http.StatusOK {
			g.t.Fatalf("an event was answered %d", got)
		}
	}
}

func TestPageAnswersTheFirstQuestionsInEachState(t *testing.T) {
	for name, state := range map[string]struct {
		site string
		make func(g *gateway)
		see  func(g *gateway)
	}{
		"empty": {
			site: withInbox + `
	reverse_proxy {backend}`,
			see: func(g *gateway) { g.says("Not yet|Nothing to judge yet|Nothing delivered yet|Nothing") },
		},
		"healthy": {
			site: withInbox + `
	reverse_proxy {backend}`,
			make: func(g *gateway) { g.deliver(20) },
			see:  func(g *gateway) { g.says("Yes, |Yes|Yes|Nothing") },
		},
		"backend down": {
			site: withInbox + `
	reverse_proxy 127.0.0.1:9`,
			make: func(g *gateway) { g.deliver(5) },
			see: func(g *gateway) {
				g.says("Yes, |Yes|No|5 events", "The backend does not accept events: unreachable: dial tcp 127.0.0.1:9: connect: connection refused.",
					"Events are stored and acknowledged", "Next: Start the backend, or correct its address.")
				g.until("it says what waits and why", `[...document.querySelectorAll("#groups tr")].some(r => /waiting.*unreachable: dial tcp 127.0.0.1:9: connect: connection refused/s.test(r.innerText))`)
			},
		},
		"backend down, without an inbox": {
			site: `
	buzzbip_webhook {env.NEW_SECRET}
	reverse_proxy 127.0.0.1:9`,
			make: func(g *gateway) { g.send("/", caddytest.Secret, caddytest.NewEvent(), "") },
			see: func(g *gateway) {
				g.says("Yes, |Yes|No|No inbox", "unreachable: dial tcp 127.0.0.1:9: connect: connection refused", "BuzzBip gets the failures, and retries each event up to 5 times; then it is lost.")
			},
		},
		"paused": {
			site: withInbox + `
	reverse_proxy {backend}`,
			make: func(g *gateway) {
				g.deliver(10)
				if status, text := g.Ask(http.MethodPost, "/buzzbip_webhook/inbox/pause"); status != http.StatusOK {
					g.t.Fatal(text)
				}
				g.deliver(3)
			},
			see: func(g *gateway) {
				g.says("Yes, |Yes|Yes|3 events", "Redelivery is paused since ", "nothing reaches the backend. 3 events wait.", "Next: Resume when the backend is ready.")
			},
		},
		"secret wrong": {
			site: withInbox + `
	reverse_proxy {backend}`,
			make: func(g *gateway) {
				for range 4 {
					g.send("/", "another secret", caddytest.NewEvent(), "")
				}
			},
			see: func(g *gateway) {
				g.says("Not proven|No|Nothing delivered yet|Nothing", "No signature is right.", "Compare the secret with the one that BuzzBip shows")
				g.until("it says who sent them", `/rejected signature_mismatch.*127\.0\.0\.1.*4/s.test(document.querySelector("#problems tbody").innerText)`)
			},
		},
		"store down": {
			site: `
	buzzbip_webhook {env.NEW_SECRET} {
		store redis redis://127.0.0.1:9
	}
	reverse_proxy {backend}`,
			make: func(g *gateway) { g.deliver(3) },
			see: func(g *gateway) {
				g.says("Yes, |Yes|Yes|No inbox", "The store redis is down: ", "Caddy remembers IDs in its memory only", "Repair the store")
			},
		},
		"store down, and nothing passes": {
			site: `
	buzzbip_webhook {env.NEW_SECRET} {
		store redis redis://127.0.0.1:9 {
			when_down refuse
		}
	}
	reverse_proxy {backend}`,
			make: func(g *gateway) { g.send("/", caddytest.Secret, caddytest.NewEvent(), "") },
			see: func(g *gateway) {
				g.says("Yes, |Yes|Nothing delivered yet|No inbox", "Requests are rejected with 503; BuzzBip retries them up to 5 times.")
			},
		},
		"inbox down": {
			site: `
	buzzbip_webhook {env.NEW_SECRET} {
		inbox sqlite {env.INBOX}
	}
	reverse_proxy {backend}`,
			make: func(g *gateway) {
				g.deliver(3)
				if err := os.Remove(g.inbox); err != nil {
					g.t.Fatal(err)
				}
			},
			see: func(g *gateway) {
				g.says("Yes, |Yes|Yes|The inbox is down", "The inbox is down: ", "What the backend does not take is not kept")
			},
		},
		"long names": {
			site: withInbox + `
	reverse_proxy 127.0.0.1:9`,
			make: func(g *gateway) {
				long := strings.Repeat("long", 64)
				g.send("/", caddytest.Secret, event(long, "message."+long[:200], `{}`), "")
				g.send("/", caddytest.Secret, event(long, "message."+long[:200], `{"n":1}`), "")
			},
			see: func(g *gateway) {
				g.says("Yes, |Yes|No|1 event", "unreachable")
				g.until("the events are there", `document.querySelectorAll("#requests button.id").length >= 2 && document.querySelector("#groups button")`)
				g.do(click(`#groups button`))
				g.until("the event is listed", `document.querySelector("#events button.id")`)
			},
		},
		"dead": {
			site: withInbox + `
	reverse_proxy {backend} {
		@all status 2xx
		handle_response @all {
			respond 422
		}
	}`,
			make: func(g *gateway) { g.deliver(2) },
			see: func(g *gateway) {
				g.says("Yes, |Yes|No|Nothing, but 2 dead", "2 events are dead.", "retry or discard them")
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := startSite(t, state.site)
			if state.make != nil {
				state.make(g)
			}
			g.browse()
			state.see(g)
			if alarmed := get[bool](g, `!document.querySelector("#live").matches(".good")`); alarmed != (g.alarms() != "") {
				t.Errorf("it is alarmed: %t, the alarms are %s", alarmed, g.alarms())
			}
			g.fits(name)
			g.isQuiet()
		})
	}
}

// unreadable returns the texts that do not have the contrast of WCAG 2.2, level AA,
// with what is behind them.
const unreadable = `(() => {
	const parse = color => color.match(/[\d.]+/g).map(Number);
	const luminance = color => {
		const [r, g, b] = parse(color).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
		return 0.2126 * r + 0.7152 * g + 0.0722 * b;
	};
	const behind = e => {
		for (; e; e = e.parentElement) {
			const color = getComputedStyle(e).backgroundColor;
			if (parse(color)[3] !== 0) return color;
		}
		return "rgb(255, 255, 255)";
	};
	const found = [];
	const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	for (let text; text = walker.nextNode();) {
		const e = text.parentElement;
		if (!text.textContent.trim() || !e.checkVisibility()) continue;
		const style = getComputedStyle(e), [a, b] = [luminance(style.color), luminance(behind(e))].sort((a, b) => b - a);
		const size = parseFloat(style.fontSize), large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
		const contrast = (a + 0.05) / (b + 0.05);
		if (contrast < (large ? 3 : 4.5)) found.push(text.textContent.trim() + " " + contrast.toFixed(2));
	}
	return found;
})()`

// small returns what is smaller than WCAG 2.2 asks of what can be clicked.
const small = `[...document.querySelectorAll("button, input, select, summary")].filter(e => e.checkVisibility() && e.getBoundingClientRect().height < 24).map(e => e.outerHTML)`

// cut returns the cells that run into the next one.
const cut = `[...document.querySelectorAll("td")].filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === "visible").map(e => e.outerHTML)`

// narrow returns the reasons of requests that have too little room to be read.
const narrow = `[...document.querySelectorAll("#requests td:nth-child(5)")].filter(e => e.checkVisibility() && e.getBoundingClientRect().width < 100).map(e => e.outerHTML)`

// fits checks what must hold in every view.
func (g *gateway) fits(name string) {
	g.t.Helper()
	g.until("the groups are there", `document.querySelector("#groups tbody").innerText !== "…"`)
	for _, scheme := range []string{"light", "dark"} {
		call(g, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
		for view, width := range map[string]int64{"wide": 1440, "laptop": 1210, "tablet": 820, "phone": 360} {
			g.do(chromedp.EmulateViewport(width, 844))
			if get[bool](g, `document.documentElement.scrollWidth > document.documentElement.clientWidth`) {
				g.t.Errorf("%s, %s: the page is wider than the window", name, view)
			}
			for what, expression := range map[string]string{"hard to read": unreadable, "too small": small, "running over": cut, "too narrow": narrow} {
				if found := get[[]string](g, expression); len(found) > 0 {
					g.t.Errorf("%s, %s, %s: %s: %q", name, view, scheme, what, found)
				}
			}
		}
	}
}
