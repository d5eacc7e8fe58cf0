package browser

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// shoot takes a screenshot.
func (g *gateway) shoot(name, scheme string, width, height int64) {
	g.t.Helper()
	call(g, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
	g.do(chromedp.EmulateViewport(width, height))
	time.Sleep(3 * time.Second) // until the page has drawn itself anew
	quality := int64(90)
	result, err := chromedp.Call(g.page, page.CaptureScreenshot, page.CaptureScreenshotParams{Format: page.CaptureScreenshotFormatWebp, Quality: &quality})
	if err != nil {
		g.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(*screenshots, "page-"+name+".webp"), result.Data, 0o644); err != nil {
		g.t.Fatal(err)
	}
}

// traffic sends what an endpoint on the internet gets, for a time.
func (g *gateway) traffic(secret string, length time.Duration) {
	ctx, cancel := context.WithTimeout(g.t.Context(), length)
	defer cancel()
	types := []string{"message.received", "message.received", "message.sent", "contact.updated", "conversation.opened", "conversation.resolved"}
	for second := 0; ctx.Err() == nil; second++ {
		end := time.After(time.Second)
		for range 4 + second/9*7%11 + rand.IntN(3) {
			body := event(fmt.Sprintf("evt_%08x", rand.Uint32()), types[rand.IntN(len(types))], `{"conversation":{"id":"cnv_1"}}`)
			g.send("/", secret, body, "")
			if rand.IntN(20) == 0 {
				g.send("/", secret, body, "")
			}
		}
		if second%40 < 3 && secret == caddytest.Secret {
			g.send("/", "forged", "{}", "")
		}
		<-end
	}
}

// restartable is a backend that can be stopped and started.
type restartable struct {
	address string
	server  *http.Server
}

func (b *restartable) start(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("tcp", b.address)
	if err != nil {
		t.Fatal(err)
	}
	b.server = &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		time.Sleep(time.Duration(2+rand.IntN(9)) * time.Millisecond)
	})}
	go b.server.Serve(listener)
	t.Cleanup(b.stop)
}

func (b *restartable) stop() { _ = b.server.Close() }

const screenWidth, screenHeight = 1280, 800

// The screenshots in docs show what has really happened, so this takes minutes.
func TestScreenshots(t *testing.T) {
	if *screenshots == "" {
		t.Skip("it needs the flag -screenshots: make screenshots")
	}
	data, err := os.MkdirTemp("", "caddy")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(data) })
	site := func(file, backend string) string {
		return fmt.Sprintf(`
	buzzbip_webhook {
		secret {env.NEW_SECRET} current
		inbox sqlite %s/%s
	}
	reverse_proxy %s`, data, file, backend)
	}
	backend := &restartable{address: caddytest.FreeAddress(t)}
	backend.start(t)

	g := startSite(t, site("webhook.db", backend.address))
	g.browse()
	g.shoot("empty", "light", screenWidth, screenHeight)
	g.traffic(caddytest.Secret, 150*time.Second)
	g.shoot("healthy", "dark", screenWidth, screenHeight)
	backend.stop()
	g.traffic(caddytest.Secret, 45*time.Second)
	g.shoot("backend-down", "light", screenWidth, screenHeight)
	g.shoot("phone", "light", 390, 844)
	backend.start(t)
	if status, text := g.Ask(http.MethodPost, "/buzzbip_webhook/inbox/pause"); status != http.StatusOK {
		t.Fatal(text)
	}
	g.traffic(caddytest.Secret, 20*time.Second)
	g.shoot("paused", "light", screenWidth, screenHeight)

	for name, directives := range map[string]string{
		"secret-wrong": site("other.db", backend.address),
		"store-down": fmt.Sprintf(`
	buzzbip_webhook {
		secret {env.NEW_SECRET} current
		store redis redis://127.0.0.1:9
	}
	reverse_proxy %s`, backend.address),
	} {
		t.Run(name, func(t *testing.T) {
			g := startSite(t, directives)
			g.browse()
			secret := caddytest.Secret
			if name == "secret-wrong" {
				secret = "the-secret-of-another-webhook-32"
			}
			g.traffic(secret, 30*time.Second)
			g.shoot(name, "dark", screenWidth, screenHeight)
		})
	}
}
