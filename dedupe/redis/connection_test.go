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
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

// counted is one of the numbers of INFO.
func counted(server *redistest.Server, section, name string) (n int) {
	for line := range strings.Lines(server.Do("INFO", section)) {
		if value, ok := strings.CutPrefix(line, name); ok {
			n, _ = strconv.Atoi(strings.TrimFunc(value, func(r rune) bool { return r < '0' || r > '9' }))
		}
	}
	return n
}

// What probes must be what is needed: else a store that cannot work is up
// again and again, and an event waits for the timeout each time.
func TestStaysDownWhileScriptsFail(t *testing.T) {
	for name, how := range map[string]struct{ begin, end []string }{
		"scripts are not allowed": {[]string{"ACL", "SETUSER", "default", "-evalsha", "-eval", "-script"}, []string{"ACL", "SETUSER", "default", "+@all"}},
		"nothing can be deleted":  {[]string{"ACL", "SETUSER", "default", "-del"}, []string{"ACL", "SETUSER", "default", "+@all"}},
		"full":                    {[]string{"CONFIG", "SET", "maxmemory", "1"}, []string{"CONFIG", "SET", "maxmemory", "0"}},
		"a replica":               {[]string{"REPLICAOF", "127.0.0.1", "1"}, []string{"REPLICAOF", "NO", "ONE"}},
		"an isolated master":      {[]string{"CONFIG", "SET", "min-replicas-to-write", "1"}, []string{"CONFIG", "SET", "min-replicas-to-write", "0"}},
	} {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t, "--maxmemory-policy", "noeviction")
			server.Do(how.begin...)
			s := newInstance(t, config(server, "timeout", "100ms"))
			_ = s.Settle(context.Background(), expect(t, s, arrival("a", 1), dedupe.Claimed), true)
			down := s.Stats().Err
			failures := counted(server, "stats", "total_error_replies:")
			waitFor(t, "some probes", func() bool { return counted(server, "stats", "total_error_replies:") >= failures+4 })
			if now := s.Stats().Err; down == nil || now != down {
				t.Errorf("it was up meanwhile: first %v, then %v", down, now)
			}
			server.Do(how.end...)
			waitFor(t, "the server to work again", func() bool { return up(s) && s.pendingOutcomes() == 0 })
			expect(t, newInstance(t, config(server)), arrival("a", 1), dedupe.Delivered)
		})
	}
}

func TestEventsDoNotHurryTheProbes(t *testing.T) {
	server := redistest.Start(t, "--maxmemory-policy", "noeviction", "--maxmemory", "1")
	s := newInstance(t, config(server, "timeout", "100ms"))
	_ = s.Settle(context.Background(), expect(t, s, arrival("a", 1), dedupe.Claimed), true)
	if up(s) {
		t.Fatal("it seems to work")
	}
	before := counted(server, "stats", "total_error_replies:")
	start := time.Now()
	for n := range 1000 {
		_ = s.Settle(context.Background(), expect(t, s, arrival(fmt.Sprint(n), 1), dedupe.Claimed), true)
		time.Sleep(100 * time.Microsecond) // as long as a probe takes
	}
	most := 5 + int(time.Since(start)/minRetry)
	if probes := counted(server, "stats", "total_error_replies:") - before; probes > most {
		t.Errorf("%d probes in %s, want %d at most", probes, time.Since(start), most)
	}
}

// Connections that the server ends take nothing with them.
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

// cutter passes bytes on between clients and a server. For a true value in
// cut it throws away an answer of the server and ends the connection.
type cutter struct {
	url string
	cut chan bool
}

func newCutter(t *testing.T, server *redistest.Server) *cutter {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c := &cutter{url: "redis://" + l.Addr().String(), cut: make(chan bool, 1)}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go c.pass(client, server.Addr())
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

// What was asked for may have been done though no answer came: asked again, it
// is answered as it would have been.
func TestAnswersThatAreLost(t *testing.T) {
	server := redistest.Start(t)
	through := newCutter(t, server)
	patient := map[string]any{"urls": []string{through.url}, "timeout": "10s", "when_down": "refuse"}
	s, other := newInstance(t, patient), newInstance(t, config(server))
	deliver(t, s, arrival("before", 1)) // and the server knows the scripts
	for what, operation := range map[string]func(id string, losing func(func())){
		"a claim": func(id string, losing func(func())) {
			var c dedupe.Claim
			losing(func() { c = expect(t, s, arrival(id, 1), dedupe.Claimed) })
			expectInFlight(t, other, arrival(id, 1))
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
		// what is lost may be another answer, to a subscription
		waitFor(t, "the answer to "+what+" to be lost", func() (lost bool) {
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

func TestAnswersThatAreLostUnderLoad(t *testing.T) {
	server := redistest.Start(t)
	through := newCutter(t, server)
	patient := map[string]any{"urls": []string{through.url}, "timeout": "10s", "when_down": "refuse"}
	a, b := newInstance(t, patient), newInstance(t, patient)
	stop := traffic(t, asIs, a, b)
	for range 10 {
		through.cut <- true // waits until the one before has been used
	}
	expectOnce(t, stop(), 1, a, b)
}

// silent accepts connections, and says nothing.
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

// working are the goroutines of connections.
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

func TestConnectionThatNeverWorkedEndsWhenItIsLetGo(t *testing.T) {
	server := redistest.Start(t, "--requirepass", "right")
	paused := redistest.Start(t)
	paused.Pause()
	defer paused.Resume()
	nobody := fmt.Sprint("127.0.0.1:", redistest.FreePort(t))
	for name, url := range map[string]string{
		"nobody listens":    "redis://" + nobody,
		"nobody answers":    "redis://" + silent(t),
		"a Cluster of them": "redis://" + silent(t) + "?addr=" + silent(t) + "&addr=" + nobody,
		"such Sentinels":    "redis://" + silent(t) + "?addr=" + silent(t) + "&addr=" + nobody + "&master_set=m",
		"a paused server":   paused.URL(),
		"no password":       "redis://" + server.Addr(),
		"a wrong password":  "redis://:wrong@" + server.Addr(),
	} {
		t.Run(name, func(t *testing.T) {
			waitFor(t, "earlier ones to end", func() bool { return working() == "" })
			s := mustLoad(t, map[string]any{"urls": []string{url}, "timeout": "100ms"})
			r := arrival("a", 1)
			r.Lease, r.Retention = time.Millisecond, time.Millisecond
			_ = s.Settle(context.Background(), expect(t, s, r, dedupe.Claimed), true)
			if up(s) || s.pendingOutcomes() == 0 {
				t.Error("it seems to work")
			}
			expectEnd(t, s)
		})
	}
}

// expectEnd lets a store go, and waits for the end of its connection.
func expectEnd(t *testing.T, s *Store) {
	t.Helper()
	cleanUp(t, s)
	start := time.Now()
	waitFor(t, "the connection to end", func() bool { return working() == "" })
	t.Logf("it ended after %s", time.Since(start))
}

// What a connection waits for does not keep it when it is let go.
func TestConnectionToAServerThatHangsEnds(t *testing.T) {
	waitFor(t, "earlier ones to end", func() bool { return working() == "" })
	server := redistest.Start(t)
	s := mustLoad(t, config(server, "timeout", "100ms"))
	deliver(t, s, arrival("a", 1))
	waitFor(t, "the subscription", func() bool { return strings.Contains(server.Do("PUBSUB", "NUMSUB", "buzzbip:ended"), "1") })
	server.Pause()
	defer server.Resume()
	expectEnd(t, s)
}

// A reload with the right password makes the connection superfluous that has
// the wrong one, and for which something was pending.
func TestConnectionEndsWhenAnotherHasToldWhatWasPending(t *testing.T) {
	server := redistest.Start(t, "--requirepass", "right")
	at := func(password string) map[string]any {
		return map[string]any{"urls": []string{"redis://:" + password + "@" + server.Addr()}, "timeout": "100ms"}
	}
	wrong := mustLoad(t, at("wrong"))
	_ = wrong.Settle(context.Background(), expect(t, wrong, arrival("a", 1), dedupe.Claimed), true)
	right := mustLoad(t, at("right"))
	cleanUp(t, wrong)
	waitFor(t, "what was pending to be told", func() bool { return right.pendingOutcomes() == 0 })
	waitFor(t, "the connection with the wrong password to end", func() bool {
		_, held := connections.References(wrong.settings.id)
		return !held
	})
	if !up(right) {
		t.Error("the other has ended too")
	}
}
