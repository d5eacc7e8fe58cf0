package e2e

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// soakTime is set by "make soak".
var soakTime = flag.Duration("soak", 0, "how long TestSoak repeats its round")

// BuzzBip's times and ours, a tenth of what they are.
const (
	soakPatience   = time.Second
	soakAnswer     = 800 * time.Millisecond // answer_within
	soakRetries    = 5
	soakFirstRetry = 100 * time.Millisecond // BuzzBip's, doubling
	soakRetryTime  = (1<<soakRetries - 1) * soakFirstRetry
	soakSenders    = 8
)

// TestSoak lets senders that behave like BuzzBip send events, while everything
// happens that may happen: see the incidents of a round. Each event that was
// answered 2xx reaches the backend, or is listed as dead. None is given to the
// backend again while Caddy lives. After Caddy was killed, that happens only to
// events of which the database did not know yet that the backend had accepted them.
func TestSoak(t *testing.T) {
	s := &soak{T: t, data: t.TempDir(), address: caddytest.FreeAddress(t), total: soakCounts{}}
	for end := time.Now().Add(*soakTime); ; {
		s.round()
		if t.Failed() || time.Now().After(end) {
			break
		}
	}
	t.Logf("%d rounds: %v", s.rounds, s.total)
}

// soak is a Caddy through several lives, its senders and its backend.
type soak struct {
	*testing.T
	data, address string
	rounds        int
	total         soakCounts

	caddy       *caddytest.Caddy
	backend     *soakBackend
	store       string
	concurrency int
	lives       int            // of Caddy
	snapshots   map[int]string // what was on the disk when a life was ended by a kill
	sending     sync.WaitGroup

	mu     sync.Mutex
	events map[string]*soakEvent
}

type soakEvent struct {
	acknowledged bool
	gaveUp       bool
	arrivals     []*soakArrival
}

// soakArrival is an event at the backend.
type soakArrival struct {
	life         string
	began, ended time.Time
	accepted     bool
}

// soakCounts counts what happened, by its name.
type soakCounts map[string]int

// round has each incident once, in any order, and then lets the inbox become empty.
func (s *soak) round() {
	s.store, s.concurrency = []string{"sqlite", "memory"}[s.rounds%2], 8
	s.rounds++
	s.events, s.snapshots = map[string]*soakEvent{}, map[int]string{}
	s.backend = &soakBackend{soak: s, address: caddytest.FreeAddress(s.T)}
	s.backend.up()
	s.start()
	counts := soakCounts{}
	ctx, stop := context.WithCancel(s.Context())
	defer stop()
	for range soakSenders {
		s.sending.Go(func() { s.send(ctx) })
	}
	incidents := []func(soakCounts){s.kill, s.outage, s.reload, s.move, s.move, s.fullDisk, s.pause}
	rand.Shuffle(len(incidents), func(i, j int) { incidents[i], incidents[j] = incidents[j], incidents[i] })
	for _, incident := range incidents {
		time.Sleep(time.Duration(100+rand.IntN(300)) * time.Millisecond)
		incident(counts)
	}
	stop()
	s.sending.Wait()
	s.backend.setHealthy()
	for left := s.waiting(); left > 0; {
		before := left
		caddytest.WaitFor(s.T, "the backlog to become smaller", func() bool { left = s.waiting(); return left < before })
	}
	s.backend.down() // it may still answer a process that was killed
	s.check(counts)
	for _, snapshot := range s.snapshots {
		_ = os.RemoveAll(snapshot) // a soak takes many
	}
	s.Logf("round %d, store %s: %v", s.rounds, s.store, counts)
	for what, n := range counts {
		s.total[what] += n
	}
	s.caddy.Stop()
}

func (s *soak) site() string {
	return s.siteOf(s.address, s.backend.address)
}

func (s *soak) siteOf(address, backend string) string {
	return fmt.Sprintf(`
http://%s {
	buzzbip_webhook %s {
		scope soak
		answer_within %s
		store %s
		inbox sqlite {
			retry 50ms 400ms
			dead_on 422
			concurrency %d
		}
	}
	reverse_proxy %s {
		header_up X-Event {http.buzzbip_webhook.event.id}
		header_up X-Life %d
	}
}`, address, caddytest.Secret, soakAnswer, s.store, s.concurrency, backend, s.lives)
}

func (s *soak) start() {
	s.lives++
	s.caddy = caddytest.Start(s.T, s.data, "", s.site())
}

// send sends events one after the other, each until it is acknowledged or
// BuzzBip would give up.
func (s *soak) send(ctx context.Context) {
	for ctx.Err() == nil {
		id := caddytest.NewID()
		if rand.IntN(50) == 0 {
			id += poison
		}
		event, body := &soakEvent{}, caddytest.Event{ID: id}.Body()
		s.mu.Lock()
		s.events[id] = event
		s.mu.Unlock()
		for retry, wait := 0, soakFirstRetry; ; retry, wait = retry+1, 2*wait {
			patience, cancel := context.WithTimeout(s.Context(), soakPatience)
			answer := caddytest.Post(patience, "http://"+s.address, body)
			cancel()
			if answer.Status/100 == 2 {
				event.acknowledged = true
				break
			}
			if retry == soakRetries {
				event.gaveUp = true
				break
			}
			time.Sleep(wait)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// kill is kill -9 and a new start.
func (s *soak) kill(counts soakCounts) {
	counts["kills"]++
	s.caddy.Kill()
	snapshot := s.TempDir()
	if err := os.CopyFS(snapshot, os.DirFS(s.data)); err != nil {
		s.Fatal(err)
	}
	s.snapshots[s.lives] = snapshot
	s.start()
}

// outage turns the backend off for longer than BuzzBip retries, with a kill in the
// middle.
func (s *soak) outage(counts soakCounts) {
	s.backend.down()
	time.Sleep(soakRetryTime / 2)
	s.kill(counts)
	time.Sleep(soakRetryTime/2 + 100*time.Millisecond)
	s.backend.up()
}

func (s *soak) reload(counts soakCounts) {
	counts["reloads"]++
	s.concurrency = 4 + rand.IntN(5)
	head, _, _ := strings.Cut(s.readConfig(), "\nhttp://")
	if err := os.WriteFile(s.caddy.Config, []byte(head+s.site()), 0o600); err != nil {
		s.Fatal(err)
	}
	s.caddy.Reload()
}

func (s *soak) readConfig() string {
	text, err := os.ReadFile(s.caddy.Config)
	if err != nil {
		s.Fatal(err)
	}
	return string(text)
}

// move moves the backend to another address.
func (s *soak) move(counts soakCounts) {
	s.backend.down()
	s.backend.address = caddytest.FreeAddress(s.T)
	s.backend.up()
	s.reload(counts)
}

// fullDisk fills the disk while there is a backlog. When the backend accepts that, it
// cannot be recorded. Then the disk has room again, or Caddy is killed.
func (s *soak) fullDisk(counts soakCounts) {
	counts["full disks"]++
	s.backend.down()
	caddytest.WaitFor(s.T, "a backlog", func() bool { return s.waiting() >= 20 })
	info, err := os.Stat(filepath.Join(s.data, "caddy", "buzzbip", "webhook.db-wal"))
	if err != nil {
		s.Fatal(err)
	}
	pid := s.caddy.Cmd.Process.Pid
	size := min(info.Size(), 1<<20) // the log may begin anew: a larger one takes long to fill
	limit, was := unix.Rlimit{Cur: uint64(size), Max: unix.RLIM_INFINITY}, unix.Rlimit{}
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, &limit, &was); err != nil {
		s.Fatal(err)
	}
	up := func() bool { return s.caddy.Metric("inbox_up") == 1 }
	caddytest.WaitFor(s.T, "the disk to be full", func() bool { return !up() })
	s.backend.up()
	time.Sleep(time.Duration(500+rand.IntN(500)) * time.Millisecond)
	if rand.IntN(2) == 0 {
		s.kill(counts)
		return
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, &was, nil); err != nil {
		s.Fatal(err)
	}
	caddytest.WaitFor(s.T, "the disk to work again", up)
}

// pause pauses redelivery, which survives a kill.
func (s *soak) pause(counts soakCounts) {
	s.post("pause")
	time.Sleep(time.Duration(rand.IntN(500)) * time.Millisecond)
	s.kill(counts)
	if s.caddy.Metric("inbox_paused") != 1 {
		s.Error("the pause does not survive a kill")
	}
	time.Sleep(time.Duration(rand.IntN(500)) * time.Millisecond)
	s.post("resume")
}

func (s *soak) post(operation string) {
	s.Helper()
	if status, text := s.caddy.Ask(http.MethodPost, "/buzzbip_webhook/inbox/"+operation); status != http.StatusOK {
		s.Fatalf("%s: %d %s", operation, status, text)
	}
}

// waiting returns how many events wait.
func (s *soak) waiting() float64 { return s.caddy.Metric(`inbox_events{state="waiting"}`) }

// dead returns the IDs of the dead events.
func (s *soak) dead() map[string]bool {
	ids := make(map[string]bool)
	for after := int64(0); ; {
		var page struct {
			Events []struct{ ID string }
			Next   int64
		}
		ask(s.T, s.caddy, fmt.Sprintf("inbox?state=dead&after=%d", after), &page)
		for _, e := range page.Events {
			ids[e.ID] = true
		}
		if after = page.Next; after == 0 {
			return ids
		}
	}
}

func ask(t *testing.T, c *caddytest.Caddy, path string, answer any) {
	t.Helper()
	status, text := c.Ask(http.MethodGet, "/buzzbip_webhook/"+path)
	if status != http.StatusOK {
		t.Fatalf("%s: %d %s", path, status, text)
	}
	if err := json.Unmarshal([]byte(text), answer); err != nil {
		t.Fatal(err)
	}
}

// check judges the events of a round.
func (s *soak) check(counts soakCounts) {
	dead := s.dead()
	again := make(map[string][]string) // events that were accepted before their life was ended, by life
	for id, e := range s.events {
		counts["events"]++
		accepted := slices.ContainsFunc(e.arrivals, func(a *soakArrival) bool { return a.accepted })
		if e.acknowledged {
			counts["acknowledged"]++
			if !accepted && !dead[id] {
				s.Errorf("%s was acknowledged and is lost", id)
			}
		}
		if e.gaveUp {
			counts["given up by the sender"]++
		}
		if dead[id] {
			counts["dead"]++
			if !strings.HasSuffix(id, poison) {
				s.Errorf("%s is dead", id)
			}
		}
		slices.SortFunc(e.arrivals, func(a, b *soakArrival) int { return a.began.Compare(b.began) })
		for i, a := range e.arrivals {
			if a.accepted {
				counts["accepted"]++
			}
			if i == 0 {
				continue
			}
			before := e.arrivals[i-1]
			switch {
			case before.life == a.life && (before.accepted || a.began.Before(before.ended)):
				s.Errorf("%s was given to the backend again while Caddy lived: %+v, then %+v", id, before, a)
			case before.accepted:
				counts["accepted again after a kill"]++
				again[before.life] = append(again[before.life], id)
			}
		}
	}
	for life, ids := range again {
		s.explain(life, ids)
	}
}

// explain looks at the database as it was when a life was ended by a kill. Events
// that were accepted in that life, and given to the backend again later, were under
// way: no record says that they were accepted.
func (s *soak) explain(life string, ids []string) {
	data, killed := s.snapshots[s.lifeOf(life)]
	if !killed {
		s.Errorf("%q were accepted before Caddy was stopped, and delivered again", ids)
		return
	}
	c := caddytest.Start(s.T, data, "", s.siteOf(caddytest.FreeAddress(s.T), caddytest.FreeAddress(s.T)))
	defer c.Kill()
	caddytest.WaitFor(s.T, "accepted events to be remembered", func() bool {
		_, text := c.Ask(http.MethodGet, "/buzzbip_webhook/inbox?state=accepted")
		return strings.Contains(text, `"events":[]`)
	})
	for _, id := range ids {
		var known struct{ Scopes []struct{ State string } }
		ask(s.T, c, "events/"+id, &known)
		switch state := known.Scopes[0].State; state {
		case "stored", "unseen":
		default:
			s.Errorf("%s was %s in the database when Caddy was killed, and delivered again: %+v", id, state, s.events[id].arrivals)
		}
	}
}

func (s *soak) lifeOf(header string) (life int) {
	if _, err := fmt.Sscan(header, &life); err != nil {
		s.Fatal(err)
	}
	return life
}

// poison ends the IDs of events that the backend will never accept.
const poison = "_poison"

// soakBackend is a backend that can be turned off. It accepts most events.
type soakBackend struct {
	*soak
	address string
	healthy bool // guarded by soak.mu
	server  *http.Server
}

func (b *soakBackend) up() {
	b.Helper()
	listener, err := net.Listen("tcp", b.address)
	if err != nil {
		b.Fatal(err)
	}
	b.server = &http.Server{Handler: b, ReadHeaderTimeout: time.Minute}
	go func(s *http.Server) { _ = s.Serve(listener) }(b.server)
}

// down turns the backend off, after what is under way.
func (b *soakBackend) down() {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), caddytest.Patience)
	defer cancel()
	if err := b.server.Shutdown(ctx); err != nil {
		b.Fatal(err)
	}
}

// setHealthy makes the backend accept everything that is not poison.
func (b *soakBackend) setHealthy() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.healthy = true
}

// ServeHTTP implements [http.Handler].
func (b *soakBackend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id, a := r.Header.Get("X-Event"), &soakArrival{life: r.Header.Get("X-Life"), began: time.Now()}
	b.mu.Lock()
	if event := b.events[id]; event != nil {
		event.arrivals = append(event.arrivals, a)
	} else {
		b.Errorf("%s is not an event of this round", id)
	}
	chance := rand.IntN(100)
	if b.healthy {
		chance = 99
	}
	b.mu.Unlock()
	status := http.StatusOK
	switch {
	case strings.HasSuffix(id, poison):
		status = http.StatusUnprocessableEntity
	case chance < 5:
		status = http.StatusInternalServerError
	case chance < 7:
		status = http.StatusServiceUnavailable
	case chance < 9:
		time.Sleep(soakAnswer + time.Duration(rand.IntN(400))*time.Millisecond)
	default:
		time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond)
	}
	b.mu.Lock()
	a.ended, a.accepted = time.Now(), status == http.StatusOK
	b.mu.Unlock()
	w.WriteHeader(status)
}
