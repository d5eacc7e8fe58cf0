package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

// variant is a Caddy that is compared with the others.
type variant struct {
	name    string
	caddy   *caddytest.Caddy
	url     string
	before  usage
	latency []time.Duration
}

// usage is what a process has used since its start.
type usage struct{ cpu, allocs float64 } // seconds, count

func (v *variant) usage(b *testing.B) usage {
	metrics := v.caddy.Metrics()
	value := func(name string) float64 {
		match := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(metrics)
		if match == nil {
			b.Fatalf("there is no %s in the metrics", name)
		}
		f, err := strconv.ParseFloat(match[1], 64)
		if err != nil {
			b.Fatal(err)
		}
		return f
	}
	return usage{value("process_cpu_seconds_total"), value("go_memstats_mallocs_total")}
}

// BenchmarkDelivery sends new events to Caddys in front of one backend: without
// the plugin, with it but without remembering, and with each store. They take
// turns, so that what else the machine does is the same for all. Reported for
// each, per delivery: the CPU time of Caddy, its allocations, and the median
// time until the sender has its answer.
func BenchmarkDelivery(b *testing.B) {
	backend := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	b.Cleanup(backend.Close)
	data := b.TempDir()
	var variants []*variant
	for _, v := range []struct{ name, directive string }{
		{"plain", ""},
		{"off", "dedupe off"},
		{"memory", "store memory"},
		{"bolt", "store bolt " + data + "/events.db"},
		{"redis", "store redis " + redistest.Start(b).URL()},
	} {
		address := caddytest.FreeAddress(b)
		if v.directive != "" {
			v.directive = fmt.Sprintf("buzzbip_webhook %s {\n%s\n}", caddytest.Secret, v.directive)
		}
		variants = append(variants, &variant{
			name: v.name,
			url:  "http://" + address,
			caddy: caddytest.Start(b, "", "", fmt.Sprintf("http://%s {\n%s\nreverse_proxy %s {\nrequest_buffers 1MiB\n}\n}",
				address, v.directive, backend.Listener.Addr())),
		})
	}
	sender := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	deliver := func(url, body, signature string) error {
		r, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
		if err != nil {
			return err
		}
		r.Header.Set("X-BuzzBip-Signature", signature)
		res, err := sender.Do(r)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK || res.Header.Get("X-BuzzBip-Result") != "" {
			return fmt.Errorf("answered %s %s", res.Status, res.Header.Get("X-BuzzBip-Result"))
		}
		_, err = io.Copy(io.Discard, res.Body)
		return err
	}
	filler := strings.Repeat("Hello, where is my order? ", 35) // about 1 KiB with the rest
	for _, senders := range []int{1, 16} {
		b.Run(fmt.Sprint(senders, " at a time"), func(b *testing.B) {
			for _, v := range variants {
				v.latency, v.before = nil, v.usage(b)
			}
			var mu sync.Mutex
			events := make(chan string)
			var working sync.WaitGroup
			for range senders {
				working.Go(func() {
					for body := range events {
						signature := caddytest.Sign(body)
						for _, v := range variants {
							began := time.Now()
							if err := deliver(v.url, body, signature); err != nil {
								b.Errorf("%s: %v", v.name, err)
								continue
							}
							took := time.Since(began)
							mu.Lock()
							v.latency = append(v.latency, took)
							mu.Unlock()
						}
					}
				})
			}
			for b.Loop() {
				events <- fmt.Sprintf(`{"id":%q,"type":"message.received","createdAt":"2026-06-01T14:32:00Z","data":{"text":%q}}`, caddytest.NewID(), filler)
			}
			close(events)
			working.Wait()
			b.ReportMetric(0, "ns/op") // of all together: meaningless
			for _, v := range variants {
				used := v.usage(b)
				slices.Sort(v.latency)
				n := float64(len(v.latency))
				b.Logf("%-6s %4.0f µs of CPU, %4.0f allocations, %7.2f ms until the answer (median)", v.name,
					(used.cpu-v.before.cpu)*1e6/n, (used.allocs-v.before.allocs)/n, v.latency[len(v.latency)/2].Seconds()*1e3)
			}
		})
	}
}
