package buzzbip

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// benchmarkSizes are those of a usual event and of a large one.
var benchmarkSizes = []int{1 << 10, 64 << 10}

// orders are like what chat platforms send. %[1]d is a number.
const orders = `{"contact":{"id":"c_%[1]d","name":"Zo\u00eb Müller","tags":["a","b"]},"text":"Hello, where is my order %[1]d? Thanks a lot in advance.","price":%[1]d.5,"read":true,"reply":null}`

// benchmarkBody returns an event of about a size, with a list of items.
func benchmarkBody(item, id string, size int) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `{"id":%q,"type":"message.received","createdAt":"2026-06-01T14:32:00Z","data":{"items":[`, id)
	for i := 0; b.Len() < size-len(item)-20; i++ {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, item, i)
	}
	b.WriteString(`]}}`)
	return []byte(b.String())
}

// benchmark runs f on a body of each size.
func benchmark(b *testing.B, item string, f func(b *testing.B, body []byte)) {
	for _, size := range benchmarkSizes {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			body := benchmarkBody(item, "evt_7f3a9b2c", size)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			f(b, body)
		})
	}
}

// What no receiver can do without; the others are to be read next to it.
func BenchmarkBareHMAC(b *testing.B) {
	benchmark(b, orders, func(b *testing.B, body []byte) {
		mac := hmac.New(sha256.New, []byte(caddytest.Secret))
		var sum [sha256.Size]byte
		for b.Loop() {
			mac.Reset()
			mac.Write(body)
			mac.Sum(sum[:0])
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	benchmark(b, orders, func(b *testing.B, body []byte) {
		keys := newSecrets(b, Secret{Value: caddytest.Secret})
		sum := newKey("", []byte(caddytest.Secret), "").sign(body)
		for b.Loop() {
			if keys.verify(body, sum) == nil {
				b.Fatal("rejected")
			}
		}
	})
}

// envelopeKinds are what events consist of. Each is checked at another speed.
var envelopeKinds = []struct{ name, item string }{
	{"orders", orders},
	{"prose", `{"from":"c_%[1]d","text":"Where is order %[1]d? I have been waiting since last Tuesday, and nobody answers the phone. The tracking page says that it was delivered, but there is nothing here. Could you please have a look?"}`},
	{"escapes", `{"from":"c_%[1]d","text":"Caf\u00e9 \"Zum L\u00f6wen\",\nthe order %[1]d is late.\n\nThanks,\nZo\u00eb"}`},
	{"surrogates", `{"from":"c_%[1]d","text":"Thanks \ud83c\udf89\ud83c\udf89 for order %[1]d \ud83d\udc4b\ud83c\udffd"}`},
	{"emoji", `{"from":"c_%[1]d","text":"Danke schön 🎉🎉 für Bestellung %[1]d, bis später 👋🏽"}`},
	{"cyrillic", `{"from":"c_%[1]d","text":"Здравствуйте, где мой заказ %[1]d? Жду его уже неделю, никто не отвечает на звонки."}`},
	{"numbers", `{"order":%[1]d,"quantity":2,"price":12.75,"position":{"lat":48.2081743,"lon":-16.3738189},"paid":1780324320,"rates":[0,1.5e-7,20]}`},
	{"nested", `{"conversation":{"channel":{"type":"chat","labels":[{"name":"vip","rules":[{"if":{"tag":["a%[1]d"]}}]}],"closed":null}}}`},
	{"brackets", `[[[%[1]d],[{}],{"a":{"b":[]}},[[[]]]]]`},
	{"indented", "{\n        \"contact\": {\n          \"id\": \"c_%[1]d\"\n        },\n        \"text\": \"Where is order %[1]d?\",\n        \"read\": true\n      }"},
}

func BenchmarkEnvelope(b *testing.B) {
	for _, kind := range envelopeKinds {
		b.Run(kind.name, func(b *testing.B) {
			benchmark(b, kind.item, func(b *testing.B, body []byte) {
				for b.Loop() {
					if _, err := webhook.ParseEvent(body, webhook.Requirements{CreatedAt: true, Data: true}); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// discard is a response that nobody reads.
type discard struct{ header http.Header }

func (d discard) Header() http.Header           { return d.header }
func (discard) Write(p []byte) (int, error)     { return len(p), nil }
func (discard) WriteHeader(int)                 {}
func (discard) SetReadDeadline(time.Time) error { return nil }

// passage is a handler before one that answers at once, and its events: each is a
// new one.
type passage struct {
	handler *Handler // nil: without
	body    []byte
	mac     *key
	place   int // of the event ID in body
	events  int
}

// passages are the handlers that are measured.
var passages = []string{"without", "with", "with an inbox", "with order_by"}

func newPassage(t testing.TB, kind string, body []byte) *passage {
	p := passageTo(t, kind, body)
	if p.handler != nil {
		if err := p.handler.app.startInboxes(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.handler.app.stopInboxes)
	}
	return p
}

// passageTo returns a passage whose inbox is not open yet.
func passageTo(t testing.TB, kind string, body []byte) *passage {
	p := &passage{body: body, mac: newKey("1", []byte(caddytest.Secret), "")}
	if kind != "without" {
		p.handler = &Handler{Secrets: []Secret{{Value: caddytest.Secret}}, Scope: t.Name() + rand.Text()}
	}
	if kind == "with an inbox" {
		p.handler.InboxRaw = json.RawMessage(fmt.Sprintf(`{"module":"sqlite","path":%q}`, filepath.Join(t.TempDir(), "inbox.db")))
	}
	if kind == "with order_by" {
		p.handler.OrderBy = []string{"items.0.contact.id"}
	}
	if p.handler != nil {
		provision(t, p.handler)
	}
	p.place = bytes.Index(p.body, []byte("evt_7f3a9b2c"))
	return p
}

// pass signs an event and sends it through.
func (p *passage) pass(t testing.TB) {
	p.events++
	copy(p.body[p.place:], fmt.Sprintf("evt_%08d", p.events))
	r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(p.body))
	r.Header.Set(webhook.SignatureHeader, fmt.Sprintf("%x", p.mac.sign(p.body)))
	r.Header.Set("Content-Length", strconv.Itoa(len(p.body))) // as net/http leaves it there
	w := discard{make(http.Header)}
	r = r.WithContext(withConnection(r.Context(), new(net.TCPConn)))
	r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, new(caddyhttp.Server))
	answered := false
	answer := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		answered = true
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return err
		}
		w.WriteHeader(http.StatusOK)
		return nil
	})
	var err error
	if p.handler != nil {
		err = p.handler.ServeHTTP(w, r, answer)
	} else {
		err = answer(w, r)
	}
	if err != nil || !answered {
		t.Fatal("the event was not delivered: ", err)
	}
}

// BenchmarkServeHTTP is the whole handler. What it costs is the difference to
// "without", the same requests without the handler.
func BenchmarkServeHTTP(b *testing.B) {
	for _, kind := range passages {
		b.Run(kind, func(b *testing.B) {
			benchmark(b, orders, func(b *testing.B, body []byte) {
				p := newPassage(b, kind, body)
				for b.Loop() {
					p.pass(b)
				}
			})
		})
	}
}

// Allocations are what the garbage collector charges for a second time. There are
// 14, 2 more with an inbox, and 4 more with order_by; with the race detector, pools lose some of what they keep.
func TestDeliveryMakesFewAllocations(t *testing.T) {
	allocations := func(kind string) float64 {
		p := newPassage(t, kind, benchmarkBody(orders, "evt_7f3a9b2c", 1<<10))
		return testing.AllocsPerRun(1000, func() { p.pass(t) })
	}
	without := allocations("without")
	for kind, most := range map[string]float64{"with": 20, "with an inbox": 24, "with order_by": 25} {
		if n := allocations(kind) - without; n > most {
			t.Errorf("the handler %s makes %v allocations for an event, want at most %v", kind, n, most)
		}
	}
}
