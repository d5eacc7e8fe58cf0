package redis

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

func TestStartsWhileRedisIsDown(t *testing.T) {
	for name, how := range outages {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t)
			how.begin(server)
			s := mustLoad(t, config(server, "timeout", "200ms"))
			c := expect(t, s, arrival("a", 1), dedupe.Claimed)
			if err := s.Settle(context.Background(), c, true); err == nil {
				t.Error("a success that only this process knows of was reported as recorded")
			}
			how.end(server)
			waitFor(t, "Redis to be up", func() bool { return up(s) && s.pendingOutcomes() == 0 })
			expect(t, newInstance(t, config(server)), arrival("a", 1), dedupe.Delivered)
		})
	}
}

// A full server or a replica answers, but rejects writes.
func TestServerThatCannotWriteIsDown(t *testing.T) {
	for name, how := range map[string]struct{ begin, end []string }{
		"full":      {[]string{"CONFIG", "SET", "maxmemory", "1"}, []string{"CONFIG", "SET", "maxmemory", "0"}},
		"read-only": {[]string{"REPLICAOF", "127.0.0.1", "1"}, []string{"REPLICAOF", "NO", "ONE"}},
	} {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t, "--maxmemory-policy", "noeviction")
			s := newInstance(t, config(server, "timeout", "200ms"))
			deliver(t, s, arrival("before", 1))
			server.Do(how.begin...)
			c := expect(t, s, arrival("a", 1), dedupe.Claimed)
			if err := s.Settle(context.Background(), c, true); err == nil || up(s) {
				t.Errorf("settled with error %v", err)
			}
			server.Do(how.end...)
			waitFor(t, "the server to write again", func() bool { return up(s) && s.pendingOutcomes() == 0 })
			expect(t, newInstance(t, config(server)), arrival("a", 1), dedupe.Delivered)
		})
	}
}

// Operations survive connections that the server closes.
func TestKilledConnectionsUnderLoad(t *testing.T) {
	server := redistest.Start(t)
	patient := config(server, "timeout", "10s", "when_down", "refuse")
	a, b := newInstance(t, patient), newInstance(t, patient)
	stop := traffic(t, asIs, a, b)
	killed := 0
	waitFor(t, "many connections to be killed", func() bool {
		n, _ := strconv.Atoi(server.Do("CLIENT", "KILL", "TYPE", "normal"))
		killed += n
		return killed >= 20
	})
	expectOnce(t, stop(), 1, a, b)
}

// cutter is a proxy in front of a server. For each value in cut it drops a reply
// of the server and closes the connection.
type cutter struct {
	url     string
	address atomic.Pointer[string] // of the server, for new connections
	cut     chan bool
}

func newCutter(t *testing.T, server *redistest.Server) *cutter {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c := &cutter{url: "redis://" + l.Addr().String(), cut: make(chan bool, 1)}
	address := server.Addr()
	c.address.Store(&address)
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go c.pass(client, *c.address.Load())
		}
	}()
	return c
}

func (c *cutter) pass(client net.Conn, address string) {
	defer client.Close()
	server, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(server, client)
		server.Close()
	}()
	answer := make([]byte, 64<<10)
	for {
		n, err := server.Read(answer)
		if err != nil {
			return
		}
		select {
		case <-c.cut:
			return
		default:
		}
		if _, err := client.Write(answer[:n]); err != nil {
			return
		}
	}
}

// An operation whose reply is lost may have been done. Repeated, it gives the
// same result.
func TestLostReplies(t *testing.T) {
	server := redistest.Start(t)
	through := newCutter(t, server)
	patient := map[string]any{"urls": []string{through.url}, "timeout": "10s", "when_down": "refuse"}
	s, other := newInstance(t, patient), newInstance(t, config(server))
	deliver(t, s, arrival("before", 1)) // so that the server knows the scripts
	for what, operation := range map[string]func(id string, losing func(func())){
		"a claim": func(id string, losing func(func())) {
			var c dedupe.Claim
			losing(func() { c = expect(t, s, arrival(id, 1), dedupe.Claimed) })
			expect(t, other, arrival(id, 1), dedupe.ErrInFlight)
			settle(t, s, c, false)
		},
		"a failure": func(id string, losing func(func())) {
			c := expect(t, s, arrival(id, 1), dedupe.Claimed)
			losing(func() { settle(t, s, c, false) })
			settle(t, other, expect(t, other, arrival(id, 1), dedupe.Claimed), false)
		},
		"a success": func(id string, losing func(func())) {
			c := expect(t, s, arrival(id, 1), dedupe.Claimed)
			losing(func() { settle(t, s, c, true) })
			expect(t, other, arrival(id, 1), dedupe.Delivered)
		},
		"a duplicate": func(id string, losing func(func())) {
			deliver(t, other, arrival(id, 1))
			losing(func() { expect(t, s, arrival(id, 1), dedupe.Delivered) })
		},
	} {
		// the lost reply may be another one, to a subscription
		waitFor(t, "the reply to "+what+" to be lost", func() (lost bool) {
			operation(rand.Text(), func(asked func()) {
				before := calls(server, "evalsha")
				through.cut <- true
				asked()
				lost = calls(server, "evalsha")-before == 2
				select {
				case <-through.cut:
				default:
				}
			})
			return lost
		})
	}
}

func TestLostRepliesUnderLoad(t *testing.T) {
	server := redistest.Start(t)
	through := newCutter(t, server)
	patient := map[string]any{"urls": []string{through.url}, "timeout": "10s", "when_down": "refuse"}
	a, b := newInstance(t, patient), newInstance(t, patient)
	stop := traffic(t, asIs, a, b)
	for range 10 {
		through.cut <- true // waits until the previous one was used
	}
	expectOnce(t, stop(), 1, a, b)
}

// silent accepts connections and never answers.
func silent(t *testing.T) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
		}
	}()
	return l.Addr().String()
}

// working returns the goroutines of connections.
func working() string {
	var all strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&all, 2)
	var found []string
	for _, g := range strings.Split(all.String(), "\n\n") {
		if strings.Contains(g, "rueidis.") || strings.Contains(g, "redis.(*connection).run") {
			found = append(found, g)
		}
	}
	return strings.Join(found, "\n\n")
}

func TestConnectionThatNeverWorkedEndsWhenItIsReleased(t *testing.T) {
	server := redistest.Start(t, "--requirepass", "right")
	paused := redistest.Start(t)
	paused.Pause()
	defer paused.Resume()
	nobody := caddytest.FreeAddress(t)
	expectEnd(t) // of earlier tests
	for name, url := range map[string]string{
		"nobody listens":    "redis://" + nobody,
		"nobody answers":    "redis://" + silent(t),
		"a Cluster of them": "redis://" + silent(t) + "?addr=" + silent(t) + "&addr=" + nobody,
		"such Sentinels":    "redis://" + silent(t) + "?addr=" + silent(t) + "&addr=" + nobody + "&master_set=m",
		"a paused server":   paused.URL(),
		"no password":       "redis://" + server.Addr(),
		"a wrong password":  "redis://:wrong@" + server.Addr(),
	} {
		s := mustLoad(t, map[string]any{"urls": []string{url}, "timeout": "100ms"})
		r := arrival(name, 1)
		r.Lease, r.Retention = time.Millisecond, time.Millisecond
		_ = s.Settle(context.Background(), expect(t, s, r, dedupe.Claimed), true)
		if up(s) || s.pendingOutcomes() == 0 {
			t.Errorf("%s: Redis counts as up", name)
		}
		cleanUp(t, s)
	}
	expectEnd(t)
}

// expectEnd waits for the end of all connections.
func expectEnd(t *testing.T) {
	t.Helper()
	start := time.Now()
	waitFor(t, "the connections to end", func() bool { return working() == "" })
	t.Logf("they ended after %s", time.Since(start))
}

// Waiting for a server does not keep a connection that is released.
func TestConnectionToAServerThatHangsEnds(t *testing.T) {
	expectEnd(t) // of earlier tests
	server := redistest.Start(t)
	s := mustLoad(t, config(server, "timeout", "100ms"))
	deliver(t, s, arrival("a", 1))
	waitFor(t, "the subscription", func() bool { return strings.Contains(server.Do("PUBSUB", "NUMSUB", "buzzbip:ended"), "1") })
	server.Pause()
	defer server.Resume()
	cleanUp(t, s)
	expectEnd(t)
}

// The address of a server may be that of a proxy, or a name in the DNS. The old
// master goes on, and does not close its connections.
func TestFailoverBehindTheAddressIsFollowed(t *testing.T) {
	for name, demote := range map[string]func(old, now *redistest.Server){
		"to a replica": func(old, now *redistest.Server) {
			host, port, _ := net.SplitHostPort(now.Addr())
			old.Do("REPLICAOF", host, port)
		},
		"an isolated master": func(old, _ *redistest.Server) { old.Do("CONFIG", "SET", "min-replicas-to-write", "1") },
	} {
		t.Run(name, func(t *testing.T) {
			old, now := redistest.Start(t), redistest.Start(t)
			through := newCutter(t, old)
			s := newInstance(t, map[string]any{"urls": []string{through.url}, "timeout": "100ms"})
			for n := range 50 { // over all connections
				deliver(t, s, arrival(fmt.Sprint(n), 1))
			}
			address := now.Addr()
			through.address.Store(&address)
			demote(old, now)
			deliverDown(t, s, arrival("a", 1))
			waitFor(t, "the new master to be used", func() bool { return up(s) && s.pendingOutcomes() == 0 })
			expect(t, newInstance(t, config(now)), arrival("a", 1), dedupe.Delivered)
		})
	}
}

// First nobody listens, then there is a server that rejects scripts.
func TestCauseOfAnOutageIsThePresentOne(t *testing.T) {
	log := logged(t)
	first, second := redistest.Start(t), redistest.Start(t)
	second.Do("ACL", "SETUSER", "default", "-evalsha", "-eval")
	through := newCutter(t, first)
	s := newInstance(t, map[string]any{"urls": []string{through.url}, "timeout": "100ms"})
	deliver(t, s, arrival("a", 1))
	first.Kill()
	deliverDown(t, s, arrival("b", 1))
	if strings.Contains(s.Stats().Err.Error(), "NOPERM") {
		t.Fatalf("got %v", s.Stats().Err)
	}
	address := second.Addr()
	through.address.Store(&address)
	const logged = "Redis is still down, for another reason"
	waitFor(t, "the cause to be known", func() bool {
		return strings.Contains(s.Stats().Err.Error(), "NOPERM") && strings.Count(log(), logged) == 1
	})
	failures := counted(second, "stats", "total_error_replies:")
	waitFor(t, "more probes", func() bool { return counted(second, "stats", "total_error_replies:") >= failures+4 })
	if n := strings.Count(log(), logged); n != 1 {
		t.Errorf("the log says so %d times", n)
	}
}
