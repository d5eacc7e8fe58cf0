package redis

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

func TestTLSAndAUserWithAPassword(t *testing.T) {
	const user, password = "caddy", "pass/word@:?#"
	server := redistest.StartTLS(t, user, password)
	at := func(userinfo string) map[string]any {
		return map[string]any{"urls": []string{"rediss://" + userinfo + server.Addr()}, "timeout": "300ms", "when_down": "refuse"}
	}
	right := at("caddy:pass%2Fword%40%3A%3F%23@")
	right["ca"] = server.CA()
	deliver(t, newInstance(t, right), arrival("a", 1))
	for what, wrong := range map[string]map[string]any{
		"an unknown authority": at("caddy:pass%2Fword%40%3A%3F%23@"),
		"a wrong password":     {"urls": at("caddy:wrong-password@")["urls"], "ca": server.CA(), "timeout": "300ms", "when_down": "refuse"},
		"no password":          {"urls": at("")["urls"], "ca": server.CA(), "timeout": "300ms", "when_down": "refuse"},
	} {
		s := newInstance(t, wrong)
		_, err := s.Claim(t.Context(), arrival("a", 1))
		if err == nil {
			t.Errorf("with %s a claim was answered", what)
			continue
		}
		if said := err.Error() + s.Stats().Err.Error(); strings.Contains(said, "word@") || strings.Contains(said, "word%40") || strings.Contains(said, "wrong-password") {
			t.Errorf("with %s the error shows the password: %s", what, said)
		}
	}
}

// traffic delivers events until it is stopped, each through two instances at the
// same time, and returns how often each event was delivered. named makes the IDs.
func traffic(t *testing.T, named func(string) string, a, b *Store) (stop func() map[string]int) {
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	deliveries := make(map[string]int)
	var senders sync.WaitGroup
	for sender := range 4 {
		senders.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				time.Sleep(time.Millisecond) // leave some CPU to the servers
				id := named(fmt.Sprint(sender, " ", n))
				var duplicates sync.WaitGroup
				for _, s := range []*Store{a, b} {
					duplicates.Go(func() {
						for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) { // as a sender that retries
							v, err := s.Claim(context.Background(), arrival(id, 1))
							if err == nil && v.State == dedupe.Claimed {
								mu.Lock()
								deliveries[id]++
								mu.Unlock()
								_ = s.Settle(context.Background(), v.Claim, true)
							}
							if err == nil {
								break
							}
							if time.Now().After(end) {
								t.Errorf("%s is never answered: %v", id, err)
								break
							}
						}
					})
				}
				duplicates.Wait()
			}
		})
	}
	return func() map[string]int {
		waitFor(t, "enough events", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(deliveries) >= 100
		})
		cancel()
		senders.Wait()
		return deliveries
	}
}

// expectOnce checks that all instances know the events as delivered, and that
// none was delivered more than most times.
func expectOnce(t *testing.T, deliveries map[string]int, most int, instances ...*Store) {
	t.Helper()
	twice := 0
	for id, n := range deliveries {
		if n > most {
			t.Errorf("%s was delivered %d times", id, n)
		}
		if n > 1 {
			twice++
		}
		for _, s := range instances {
			expect(t, s, arrival(id, 1), dedupe.Delivered)
		}
	}
	t.Logf("%d events, %d of them delivered more than once", len(deliveries), twice)
}

func asIs(id string) string { return id }

func TestCluster(t *testing.T) {
	t.Parallel()
	nodes := redistest.StartCluster(t)
	clustered := map[string]any{"urls": []string{nodes[0].URL(), nodes[1].URL()}, "timeout": "1s"}
	a, b := newInstance(t, clustered), newInstance(t, clustered)
	t.Run("acts as one server", func(t *testing.T) {
		patient := map[string]any{"urls": clustered["urls"], "timeout": "10s"} // on a slow machine, too
		a, b := newInstance(t, patient), newInstance(t, patient)
		stop := traffic(t, asIs, a, b)
		time.Sleep(300 * time.Millisecond)
		expectOnce(t, stop(), 1, a, b)
		c := expect(t, a, arrival("awaited", 1), dedupe.Claimed)
		waiter := claimAsync(t, b, waiting(arrival("awaited", 1)))
		waitFor(t, "the waiter", func() bool { return waits(b, "awaited") })
		settle(t, a, c, true)
		if got := await(t, waiter, "the waiter's answer"); got.err != nil || got.State != dedupe.Delivered {
			t.Errorf("the waiter got %+v", got)
		}
		for _, node := range nodes[:3] {
			if node.Do("DBSIZE") == "0" {
				t.Error("a node has no keys")
			}
		}
	})
	t.Run("a node fails over", func(t *testing.T) {
		stop := traffic(t, asIs, a, b)
		time.Sleep(200 * time.Millisecond)
		nodes[1].Kill()
		waitFor(t, "a replica to take over", func() bool {
			return strings.Contains(nodes[4].Do("INFO", "replication"), "role:master") &&
				strings.Contains(nodes[0].Do("CLUSTER", "INFO"), "cluster_state:ok")
		})
		expectRecovery(t, stop, a, b)
	})
}

// Each event is delivered once while slots move, with the events in them, from
// node to node. They do not move straight back: a node of Redis 7.0 loses a slot that
// it takes back, with its keys, if it has not heard meanwhile that the other node
// claimed it (owner_not_claiming_slot in its cluster.c outlives CLUSTER SETSLOT).
func TestSlotsOfAClusterMove(t *testing.T) {
	t.Parallel()
	nodes := redistest.StartCluster(t)
	clustered := map[string]any{"urls": []string{nodes[0].URL(), nodes[1].URL()}, "timeout": "10s", "when_down": "refuse"}
	a, b := newInstance(t, clustered), newInstance(t, clustered)
	const slots = 3 // the first ones, which are on nodes[0]
	stop := traffic(t, func(id string) string {
		for n := 0; ; n++ {
			named := fmt.Sprint(id, " ", n)
			if keySlot(a.claimKey(named)) < slots {
				return named
			}
		}
	}, a, b)
	for i := range 4 {
		const masters = 3
		redistest.MoveSlots(nodes, slots, nodes[i%masters], nodes[(i+1)%masters])
	}
	expectOnce(t, stop(), 1, a, b)
	if calls(nodes[0], "migrate") == 0 {
		t.Error("no event moved")
	}
}

// keySlot returns the slot of a key in a Cluster.
func keySlot(key string) (slot int) {
	_, tag, _ := strings.Cut(key, "{")
	tag, _, _ = strings.Cut(tag, "}")
	for _, c := range []byte(tag) {
		slot ^= int(c) << 8
		for range 8 {
			if slot <<= 1; slot > 0xffff {
				slot ^= 0x11021
			}
		}
	}
	return slot % 16384
}

func TestSentinel(t *testing.T) {
	t.Parallel()
	master, sentinels := redistest.StartSentinels(t)
	var urls []string
	for _, s := range sentinels {
		urls = append(urls, s.URL()+"?master_set="+redistest.MasterSet)
	}
	watched := map[string]any{"urls": urls, "timeout": "1s"}
	a, b := newInstance(t, watched), newInstance(t, watched)
	deliver(t, a, arrival("before", 1))
	expect(t, b, arrival("before", 1), dedupe.Delivered)
	stop := traffic(t, asIs, a, b)
	time.Sleep(100 * time.Millisecond)
	master.Kill()
	// The other may ask nothing meanwhile: the senders wait for the first one.
	waitFor(t, "an instance to notice the outage", func() bool { return !up(a) || !up(b) })
	expectRecovery(t, stop, a, b)
}

// expectRecovery stops the traffic, and checks that two instances act as one
// again, also for the events that were delivered in the outage.
func expectRecovery(t *testing.T, stop func() map[string]int, a, b *Store) {
	t.Helper()
	waitFor(t, "both to be back", func() bool { return up(a) && up(b) })
	time.Sleep(200 * time.Millisecond)
	deliveries := stop()
	waitFor(t, "all outcomes to be recorded", func() bool { return up(a) && up(b) && a.pendingOutcomes()+b.pendingOutcomes() == 0 })
	expectOnce(t, deliveries, 2, a, b) // at most once for each instance
	deliver(t, a, arrival("afterwards", 1))
	expect(t, b, arrival("afterwards", 1), dedupe.Delivered)
	expectMessages(t, a, b)
}

// expectMessages checks that, sooner or later, the instances get messages from
// each other again.
func expectMessages(t *testing.T, a, b *Store) {
	t.Helper()
	stopPolling(b)
	for end := time.Now().Add(patience); ; {
		id := fmt.Sprint("message ", time.Now())
		c := expect(t, a, arrival(id, 1), dedupe.Claimed)
		r := arrival(id, 1)
		r.Wait = 10 * time.Second // then it asks for the last time
		waiter := claimAsync(t, b, r)
		waitFor(t, "the waiter", func() bool { return waits(b, id) })
		start := time.Now()
		settle(t, a, c, true)
		if got := await(t, waiter, "the waiter's answer"); got.err != nil || got.State != dedupe.Delivered {
			t.Fatalf("the waiter got %+v", got)
		}
		if time.Since(start) < r.Wait/2 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("no messages arrive")
		}
	}
}

func TestLeastACLOfTheDocsIsEnough(t *testing.T) {
	docs, err := os.ReadFile("../../docs/STORES.md")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(docs), "\nuser caddy ")
	line, _, _ = strings.Cut(line, "\n")
	rules := append([]string{"ACL", "SETUSER", "caddy"}, strings.Fields(line)...)
	for name, start := range map[string]func(t *testing.T) (urls []string, servers []*redistest.Server){
		"one server": func(t *testing.T) ([]string, []*redistest.Server) {
			server := redistest.Start(t)
			return []string{"redis://caddy:password@" + server.Addr()}, []*redistest.Server{server}
		},
		"Sentinel": func(t *testing.T) ([]string, []*redistest.Server) {
			master, sentinels := redistest.StartSentinels(t)
			return []string{"redis://caddy:password@" + sentinels[0].Addr() + "?master_set=" + redistest.MasterSet}, []*redistest.Server{master}
		},
		"Cluster": func(t *testing.T) ([]string, []*redistest.Server) {
			nodes := redistest.StartCluster(t)
			return []string{"redis://caddy:password@" + nodes[0].Addr(), "redis://caddy:password@" + nodes[1].Addr()}, nodes
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			urls, servers := start(t)
			for _, server := range servers {
				server.Do(rules...)
			}
			connected := map[string]any{"urls": urls, "when_down": "refuse", "timeout": "3s"}
			a, b := newInstance(t, connected), newInstance(t, connected)
			c := expect(t, a, arrival("a", 1), dedupe.Claimed)
			waiter := claimAsync(t, b, waiting(arrival("a", 1)))
			waitFor(t, "the waiter", func() bool { return waits(b, "a") })
			settle(t, a, c, true)
			if got := await(t, waiter, "the waiter's answer"); got.err != nil || got.State != dedupe.Delivered {
				t.Errorf("the waiter got %+v", got)
			}
			if known, err := b.Lookup(t.Context(), "scope", dedupe.KeyOf("a")); err != nil || !known.Delivered {
				t.Errorf("the lookup gave %+v, %v", known, err)
			}
			if forgotten, err := b.Forget(t.Context(), "scope", dedupe.KeyOf("a")); err != nil || !forgotten {
				t.Errorf("forgotten: %v, %v", forgotten, err)
			}
		})
	}
}
