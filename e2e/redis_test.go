package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

// onRedis starts instances of Caddy in front of one backend, with one Redis
// between them, and returns their URLs.
func onRedis(t *testing.T, server *redistest.Server, b *caddytest.Backend, instances int, options, storeOptions string) (urls []string, caddies []*caddytest.Caddy) {
	t.Helper()
	for range instances {
		address := caddytest.FreeAddress(t)
		caddies = append(caddies, caddytest.Start(t, "", "", fmt.Sprintf(`
http://%s {
	buzzbip_webhook %s {
		%s
		store redis %s {
			%s
		}
	}
	reverse_proxy %s
}`, address, caddytest.Secret, options, server.URL(), storeOptions, b.Address())))
		urls = append(urls, "http://"+address)
	}
	return urls, caddies
}

// persist sends an event to any of the instances, again and again until it is
// acknowledged.
func persist(t *testing.T, urls []string, body string) caddytest.Answer {
	for end := time.Now().Add(2 * caddytest.Patience); time.Now().Before(end); {
		if got := caddytest.Post(t.Context(), urls[rand.IntN(len(urls))], body); got.Status == http.StatusOK {
			return got
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("%s was never acknowledged", body)
	return caddytest.Answer{}
}

func TestInstancesOnOneRedisActAsOneUnderAStormOfDuplicates(t *testing.T) {
	for _, instances := range []int{2, 3} {
		t.Run(fmt.Sprint(instances, " instances"), func(t *testing.T) {
			var failing sync.Map // the first call for each of some events
			b := caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
				if strings.HasSuffix(r.Header.Get("X-BuzzBip-Signature"), "0") {
					if _, again := failing.LoadOrStore(r.Header.Get("X-BuzzBip-Signature"), true); !again {
						w.WriteHeader(http.StatusInternalServerError)
					}
				}
			})
			urls, _ := onRedis(t, redistest.Start(t), b, instances, "", "")
			const events, duplicates = 100, 8
			var senders sync.WaitGroup
			bodies := make([]string, events)
			for i := range bodies {
				bodies[i] = caddytest.NewEvent()
				for range duplicates {
					senders.Go(func() { persist(t, urls, bodies[i]) })
				}
			}
			senders.Wait()
			for _, body := range bodies {
				want := 1
				if strings.HasSuffix(caddytest.Sign(body), "0") {
					want = 2 // the first failed
				}
				if got := b.Count(body); got != want {
					t.Errorf("the backend got %s %d times, want %d", body, got, want)
				}
			}
		})
	}
}

// Redis goes away and comes back while events arrive.
func TestRedisGoesAwayUnderLoad(t *testing.T) {
	for name, away := range map[string]func(*redistest.Server){
		"killed": func(s *redistest.Server) { s.Kill(); time.Sleep(300 * time.Millisecond); s.Restart() },
		"paused": func(s *redistest.Server) { s.Pause(); time.Sleep(1500 * time.Millisecond); s.Resume() },
	} {
		for policy, most := range map[string]int{
			"refuse": 1,
			"memory": 2, // one for each instance
		} {
			t.Run(name+" with when_down "+policy, func(t *testing.T) {
				server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
				b := caddytest.NewBackend(t, func(http.ResponseWriter, *http.Request) { time.Sleep(5 * time.Millisecond) })
				urls, _ := onRedis(t, server, b, 2, "", "timeout 1s\nwhen_down "+policy)

				var mu sync.Mutex
				var bodies []string
				underLoad(t, 8, func(context.Context, int) {
					body := caddytest.NewEvent()
					mu.Lock()
					bodies = append(bodies, body)
					mu.Unlock()
					var duplicates sync.WaitGroup
					for range 2 {
						duplicates.Go(func() { persist(t, urls, body) })
					}
					duplicates.Wait()
				}, func() {
					for range 3 {
						time.Sleep(200 * time.Millisecond)
						away(server)
					}
					time.Sleep(200 * time.Millisecond)
				})

				twice := 0
				for _, body := range bodies {
					switch got := b.Count(body); {
					case got == 0:
						t.Errorf("%s was acknowledged and never delivered", body)
					case got > most:
						t.Errorf("%s was delivered %d times, want %d at most", body, got, most)
					case got == 2:
						twice++
					}
				}
				t.Logf("%d events, %d of them delivered twice", len(bodies), twice)

				// and then they act as one again, without a reload, also about
				// what was delivered in the meantime
				caddytest.WaitFor(t, "Redis to know all events", func() bool {
					body := bodies[rand.IntN(len(bodies))]
					return caddytest.Post(t.Context(), urls[0], body).Result == "duplicate" && caddytest.Post(t.Context(), urls[1], body).Result == "duplicate"
				})
				before := 0
				for _, body := range bodies {
					before += b.Count(body)
				}
				for _, body := range bodies {
					for _, url := range urls {
						if got := caddytest.Post(t.Context(), url, body); got.Status != http.StatusOK || got.Result != "duplicate" {
							t.Fatalf("afterwards %s is answered %d %s", body, got.Status, got.Result)
						}
					}
				}
				after := 0
				for _, body := range bodies {
					after += b.Count(body)
				}
				if after != before {
					t.Errorf("%d events were delivered again afterwards", after-before)
				}
			})
		}
	}
}

func TestAnotherInstanceTakesOverFromAKilledOneAfterTheLease(t *testing.T) {
	release := make(chan struct{})
	first := make(chan struct{}, 1)
	b := caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case first <- struct{}{}:
			select { // the one that is killed gets no answer
			case <-release:
			case <-r.Context().Done():
			}
		default:
		}
	})
	defer close(release)
	urls, caddies := onRedis(t, redistest.Start(t), b, 2, "delivery_timeout 1s\nanswer_within 100ms", "")
	body := caddytest.NewEvent()
	abandoned, cancel := context.WithCancel(t.Context())
	defer cancel()
	go caddytest.Post(abandoned, urls[0], body)
	caddytest.WaitFor(t, "the delivery", func() bool { return b.Count(body) == 1 })
	caddies[0].Kill()

	if got := caddytest.Post(t.Context(), urls[1], body); got.Status != http.StatusServiceUnavailable || got.Result != "in_flight" {
		t.Errorf("within the lease the other instance answered %d %s", got.Status, got.Result)
	}
	// the lease is delivery_timeout and 15 seconds
	persist(t, urls[1:], body)
	if got := b.Count(body); got != 2 {
		t.Errorf("the backend got the event %d times, want the one that was cut off and one more", got)
	}
}

func TestCaddyStartsAndReloadsWhileRedisIsDown(t *testing.T) {
	server := redistest.Start(t)
	server.Kill()
	b := caddytest.NewBackend(t, nil)
	urls, caddies := onRedis(t, server, b, 1, "", "timeout 200ms")
	body := caddytest.NewEvent()
	if got := caddytest.Post(t.Context(), urls[0], body); got.Status != http.StatusOK {
		t.Fatalf("answered %d %s", got.Status, got.Result)
	}
	if up := caddies[0].Metric(`store_up{store="redis"}`); up != 0 {
		t.Errorf("while Redis is down, store_up is %v", up)
	}
	caddies[0].Reload()
	if got := caddytest.Post(t.Context(), urls[0], body); got.Result != "duplicate" {
		t.Errorf("after a reload answered %d %s", got.Status, got.Result)
	}
	server.Restart()
	caddytest.WaitFor(t, "Redis to know the event", func() bool { return strings.Contains(server.Do("KEYS", "*"), "done:") })
	caddytest.WaitFor(t, "store_up to say so", func() bool { return caddies[0].Metric(`store_up{store="redis"}`) == 1 })
	if log := caddies[0].Log.String(); !strings.Contains(log, "Redis is down") || !strings.Contains(log, "Redis is back") {
		t.Errorf("the log does not say that Redis was down and is back: %s", log)
	}
	if got := b.Count(body); got != 1 {
		t.Errorf("the backend got the event %d times", got)
	}
}

func TestCaddyThatStopsWhileRedisIsDownSaysWhatIsLost(t *testing.T) {
	for _, name := range []string{"as it is", "after a reload with another Redis"} {
		t.Run(name, func(t *testing.T) {
			server, other := redistest.Start(t), redistest.Start(t)
			b := caddytest.NewBackend(t, nil)
			urls, caddies := onRedis(t, server, b, 1, "", "timeout 200ms")
			c := caddies[0]
			server.Kill()
			if got := caddytest.Post(t.Context(), urls[0], caddytest.NewEvent()); got.Status != http.StatusOK {
				t.Fatalf("answered %d %s", got.Status, got.Result)
			}
			if name != "as it is" {
				config, err := os.ReadFile(c.Config)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(c.Config, bytes.ReplaceAll(config, []byte(server.URL()), []byte(other.URL())), 0o600); err != nil {
					t.Fatal(err)
				}
				c.Reload()
			}
			c.Stop()
			if log := c.Log.String(); !strings.Contains(log, "Caddy is stopping while Redis is down") || !strings.Contains(log, `"deliveries":1`) {
				t.Error("the log does not say what is lost")
			}
		})
	}
}

func TestWhatTheSenderSeesWhileRedisIsDown(t *testing.T) {
	for _, policy := range []string{"memory", "refuse"} {
		t.Run(policy, func(t *testing.T) {
			// in flight when Redis goes away
			succeeds, fails := caddytest.NewEvent(), caddytest.NewEvent()
			release := make(chan struct{})
			var releasing sync.Once
			end := func() { releasing.Do(func() { close(release) }) }
			defer end()
			var failed sync.Once
			b := caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
				switch r.Header.Get("X-BuzzBip-Signature") {
				case caddytest.Sign(succeeds):
					<-release
				case caddytest.Sign(fails):
					failed.Do(func() {
						<-release
						w.WriteHeader(http.StatusInternalServerError)
					})
				}
			})
			server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
			urls, caddies := onRedis(t, server, b, 2, "", "timeout 300ms\nwhen_down "+policy)
			expect := func(url, body string, status int, result string) {
				t.Helper()
				if got := caddytest.Post(t.Context(), url, body); got.Status != status || got.Result != result {
					t.Errorf("answered %d %q, want %d %q", got.Status, got.Result, status, result)
				}
			}
			inFlight := make(chan int, 2)
			for _, body := range []string{succeeds, fails} {
				go func() { inFlight <- caddytest.Post(t.Context(), urls[0], body).Status }()
				caddytest.WaitFor(t, "the delivery", func() bool { return b.Count(body) == 1 })
			}

			server.Kill()
			during := caddytest.NewEvent()
			for i := range 3 {
				switch got := caddytest.Post(t.Context(), urls[0], during); {
				case policy == "refuse":
					if got.Status != http.StatusServiceUnavailable || got.RetryAfter == "" {
						t.Errorf("answered %d, Retry-After %q", got.Status, got.RetryAfter)
					}
				case got.Status != http.StatusOK || got.Result != map[bool]string{true: "duplicate"}[i > 0]:
					t.Errorf("duplicate %d was answered %d %s", i, got.Status, got.Result)
				}
			}
			if got, want := b.Count(during), map[string]int{"memory": 1}[policy]; got != want {
				t.Errorf("the backend got the event %d times, want %d", got, want)
			}
			if up := caddies[0].Metric(`store_up{store="redis"}`); up != 0 {
				t.Errorf("store_up is %v", up)
			}
			if log := caddies[0].Log.String(); !strings.Contains(log, "Redis is down; "+map[string]string{"memory": "deduplicating within this instance only", "refuse": "rejecting events"}[policy]) {
				t.Errorf("the log does not say that Redis is down: %s", log)
			}
			end()
			if one, other := <-inFlight, <-inFlight; one+other != http.StatusOK+http.StatusInternalServerError {
				t.Errorf("what was in flight was answered %d and %d", one, other)
			}
			expect(urls[0], succeeds, http.StatusOK, "duplicate")

			server.Restart()
			for _, c := range caddies {
				caddytest.WaitFor(t, "Redis to be back", func() bool { return c.Metric(`store_up{store="redis"}`) == 1 })
			}
			caddytest.WaitFor(t, "Redis to know what was delivered", func() bool {
				return strings.Count(server.Do("KEYS", "buzzbip:done:*"), "done:") == 1+b.Count(during)
			})
			expect(urls[1], succeeds, http.StatusOK, "duplicate")
			// the failure is not in flight any more
			expect(urls[1], fails, http.StatusOK, "")
			expect(urls[0], fails, http.StatusOK, "duplicate")
			expect(urls[1], during, http.StatusOK, map[string]string{"memory": "duplicate"}[policy])
			expect(urls[0], during, http.StatusOK, "duplicate")
			for body, want := range map[string]int{succeeds: 1, fails: 2, during: 1} {
				if got := b.Count(body); got != want {
					t.Errorf("the backend got %s %d times, want %d", body, got, want)
				}
			}
			if log := caddies[0].Log.String(); !strings.Contains(log, "Redis is back") {
				t.Errorf("the log does not say that Redis is back: %s", log)
			}
		})
	}
}

// Where only what FIPS 140 allows may be computed, Go panics at anything else.
func TestRedisWhereOnlyFIPSIsAllowed(t *testing.T) {
	t.Setenv("GODEBUG", "fips140=only") // of the Caddys, not of this process
	b := caddytest.NewBackend(t, nil)
	urls, _ := onRedis(t, redistest.Start(t), b, 2, "", "")
	body := caddytest.NewEvent()
	if got := caddytest.Post(t.Context(), urls[0], body); got.Status != http.StatusOK {
		t.Errorf("answered %d %s", got.Status, got.Result)
	}
	if got := caddytest.Post(t.Context(), urls[1], body); got.Result != "duplicate" {
		t.Errorf("the other instance answered %d %s", got.Status, got.Result)
	}
}

// Two Caddys, one of which delivers while Redis comes back: a retry that
// reaches the other waits for the delivery, or is asked to retry.
func TestDeliveryUnderWayWhenRedisComesBackIsNotRepeatedByAnotherInstance(t *testing.T) {
	release := make(chan struct{})
	b := caddytest.NewBackend(t, func(http.ResponseWriter, *http.Request) { <-release })
	end := sync.OnceFunc(func() { close(release) })
	defer end()
	server := redistest.Start(t)
	urls, caddies := onRedis(t, server, b, 2, "answer_within 300ms", "timeout 200ms")
	before, during := caddytest.NewEvent(), caddytest.NewEvent()
	answers := make(chan caddytest.Answer, 2)
	deliver := func(body string) {
		go func() { answers <- caddytest.Post(t.Context(), urls[0], body) }()
		caddytest.WaitFor(t, "the delivery", func() bool { return b.Count(body) == 1 })
	}
	deliver(before)
	server.Kill()
	deliver(during)
	server.Restart() // without persistence
	for _, c := range caddies {
		caddytest.WaitFor(t, "Redis to be back", func() bool { return c.Metric(`store_up{store="redis"}`) == 1 })
	}
	caddytest.WaitFor(t, "Redis to know of both", func() bool {
		return strings.Count(server.Do("KEYS", "buzzbip:claim:*"), "claim:") == 2
	})
	for _, body := range []string{before, during} {
		if got := caddytest.Post(t.Context(), urls[1], body); got.Status != http.StatusServiceUnavailable || got.Result != "in_flight" {
			t.Errorf("the other instance answered %d %s", got.Status, got.Result)
		}
	}
	end()
	for range 2 {
		if got := <-answers; got.Status != http.StatusOK {
			t.Errorf("the sender got %d %s", got.Status, got.Result)
		}
	}
	for _, body := range []string{before, during} {
		if got := caddytest.Post(t.Context(), urls[1], body); got.Result != "duplicate" || b.Count(body) != 1 {
			t.Errorf("afterwards the other instance answered %d %s, and the backend got %d", got.Status, got.Result, b.Count(body))
		}
	}
}

func TestEventsThatRedisHasLostAreCountedAndLogged(t *testing.T) {
	server := redistest.Start(t)
	b := caddytest.NewBackend(t, nil)
	urls, caddies := onRedis(t, server, b, 1, "", "")
	c := caddies[0]
	body := caddytest.NewEvent()
	for range 2 {
		if got := caddytest.Post(t.Context(), urls[0], body); got.Status != http.StatusOK {
			t.Fatalf("answered %d %s", got.Status, got.Result)
		}
		if n := c.Metric(`store_forgotten_events_total{store="redis"}`); n != 0 {
			t.Errorf("%v events count as forgotten", n)
		}
	}
	server.Do("FLUSHALL")
	if got := caddytest.Post(t.Context(), urls[0], body); got.Status != http.StatusOK || b.Count(body) != 2 {
		t.Errorf("answered %d %s, and the backend got it %d times", got.Status, got.Result, b.Count(body))
	}
	if n := c.Metric(`store_forgotten_events_total{store="redis"}`); n != 1 {
		t.Errorf("%v events count as forgotten, want 1", n)
	}
	if !strings.Contains(c.Log.String(), "Redis no longer knows an event") {
		t.Error("the log does not say so")
	}
}

// An event whose key in Redis has an unknown value is delivered, and affects no
// other event.
func TestKeyOfAnotherKindInRedisLosesNoEvent(t *testing.T) {
	server := redistest.Start(t)
	b := caddytest.NewBackend(t, nil)
	urls, caddies := onRedis(t, server, b, 1, "", "")
	c := caddies[0]
	bad := caddytest.NewEvent()
	if got := caddytest.Post(t.Context(), urls[0], bad); got.Status != http.StatusOK {
		t.Fatalf("answered %d %s", got.Status, got.Result)
	}
	key := server.Do("KEYS", "buzzbip:done:*")
	server.Do("DEL", key)
	server.Do("RPUSH", key, "x")
	for range 2 {
		if got := caddytest.Post(t.Context(), urls[0], bad); got.Status != http.StatusOK {
			t.Errorf("answered %d %s", got.Status, got.Result)
		}
		good := caddytest.NewEvent()
		if got := caddytest.Post(t.Context(), urls[0], good); got.Status != http.StatusOK || got.Result != "" {
			t.Errorf("another event was answered %d %s", got.Status, got.Result)
		}
	}
	if n := b.Count(bad); n != 1 { // this instance knows by itself
		t.Errorf("the backend got it %d times", n)
	}
	log := c.Log.String()
	if c.Metric(`store_up{store="redis"}`) != 1 || strings.Contains(log, "Redis is down") {
		t.Error("the store was down")
	}
	if !strings.Contains(log, "one of its keys has an unknown value") {
		t.Error("the log does not say so")
	}
	if scope := key[strings.IndexByte(key, '}')+1:]; strings.Contains(log, scope) {
		t.Error("the log shows what is derived from a secret")
	}
}
