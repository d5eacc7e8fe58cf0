package inbox

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// model checks what must hold whatever happens.
type model struct {
	*bed
	rnd *rand.Rand

	mu        sync.Mutex
	mode      string // how the backend answers
	kept      map[string]bool
	arrived   map[string][]int64 // by order key, the sequences of events that have neither ended nor are stored
	atBackend map[string]string  // by order key, the event that is with the backend
	accepted  map[string]bool
	discarded map[string]bool
	// knownDown is since when the dispatcher knows that the backend is down.
	knownDown   time.Time
	lastFailure time.Time
	firsts      sync.WaitGroup
}

func TestRandomSchedules(t *testing.T) {
	schedules := 300
	if testing.Short() {
		schedules = 50
	}
	for seed := range schedules {
		synctest.Test(t, func(t *testing.T) {
			m := &model{
				bed: newBed(t, newMemory()), rnd: rand.New(rand.NewPCG(uint64(seed), 0)), mode: "up",
				kept: map[string]bool{}, accepted: map[string]bool{}, discarded: map[string]bool{},
				arrived: map[string][]int64{}, atBackend: map[string]string{},
			}
			m.store.commit = time.Millisecond
			m.store.lag = 10 * time.Millisecond
			m.slowBackend(m.respond)
			m.Activate(m.config())
			for range 150 {
				m.step()
			}
			m.finish()
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		})
	}
}

func (m *model) chance(n int) bool { return m.rnd.IntN(n) == 0 }

// respond is the backend.
func (m *model) respond(ctx context.Context, e Event) Outcome {
	m.mu.Lock()
	mode := m.mode
	if m.accepted[e.ID] {
		m.Errorf("%s is delivered after it was accepted", e.ID)
	}
	// Others may have started in the same moment, and an operator may want it.
	if since := time.Since(m.knownDown); !m.knownDown.IsZero() && since > 0 && since < 4*time.Second && !m.urgent(e) {
		m.Errorf("%s is tried %v after the backend was seen to be down", e.ID, since)
	}
	if e.OrderKey != "" {
		m.checkTurn(e)
		m.atBackend[e.OrderKey] = e.ID
	}
	began := time.Now()
	m.mu.Unlock()
	o := m.outcome(ctx, mode, e)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.atBackend, e.OrderKey)
	switch {
	case o.Accepted:
		m.accepted[e.ID] = true
		m.knownDown = time.Time{}
	case o.NoAttempt:
	default:
		// If another has failed since it began, it may be old news.
		if o.Down && ctx.Err() == nil && m.lastFailure.Before(began) {
			m.knownDown = time.Now()
		}
		m.lastFailure = time.Now()
	}
	return o
}

// checkTurn checks that no event with the key of e is with the backend, and that those
// that arrived earlier do not wait.
func (m *model) checkTurn(e Event) {
	if other := m.atBackend[e.OrderKey]; other != "" {
		m.Errorf("%s is delivered while %s is", e.ID, other)
	}
	for _, sequence := range m.arrived[e.OrderKey] {
		if sequence < e.Sequence {
			m.Errorf("%s (%d) is delivered while %d is still to be stored", e.ID, e.Sequence, sequence)
		}
	}
	m.store.mu.Lock()
	defer m.store.mu.Unlock()
	for _, other := range m.store.lanes[LaneOf("site", e.Scope, e.OrderKey)] {
		// An operator may have retried it in this moment.
		if retried := m.d.clock.now().Sub(other.Since) <= m.store.commit; other.Sequence < e.Sequence && !retried {
			m.Errorf("%s (%d) is delivered while %s (%d) waits", e.ID, e.Sequence, other.ID, other.Sequence)
		}
	}
}

func (m *model) outcome(ctx context.Context, mode string, e Event) Outcome {
	wait := func(d time.Duration) bool {
		select {
		case <-time.After(d):
			return true
		case <-ctx.Done():
			return false
		}
	}
	slow := time.Duration(len(e.ID)*7+int(e.ID[len(e.ID)-1])) * 100 * time.Millisecond
	switch mode {
	case "slow":
		if !wait(slow) {
			return down
		}
	case "down":
		return down
	case "hangs":
		wait(time.Minute)
		return down
	case "poison":
		if e.ID[len(e.ID)-1]%2 == 0 {
			return status(500)
		}
	case "unserved":
		return Outcome{NoAttempt: true}
	}
	return accept
}

// forget forgets that the backend is known to be down: it may be asked at once.
func (m *model) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.knownDown, m.lastFailure = time.Time{}, time.Now()
}

// urgent reports whether an operator wants an event to be delivered now.
func (m *model) urgent(e Event) bool {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	a := m.d.busy[e.Number]
	return a != nil && a.urgent
}

func (m *model) step() {
	m.bed.mu.Lock()
	m.random = m.rnd.Float64()
	m.bed.mu.Unlock()
	ctx := context.Background()
	switch m.rnd.IntN(16) {
	case 0, 1, 2, 3:
		for range 1 + m.rnd.IntN(10) {
			m.firsts.Go(m.newEvent)
		}
	case 4, 5:
		modes := []string{"up", "slow", "down", "hangs", "poison", "unserved"}
		m.mu.Lock()
		m.mode = modes[m.rnd.IntN(len(modes))]
		m.mu.Unlock()
	case 6:
		_ = m.d.SetPaused(ctx, m.chance(2))
	case 7:
		f := Filter{}
		if m.chance(2) {
			f.Number = []int64{1 + m.rnd.Int64N(m.last()+1)}
		}
		m.forget()
		_, _ = m.d.Retry(ctx, f)
		m.forget()
	case 8:
		f := Filter{Number: []int64{1 + m.rnd.Int64N(m.last()+1)}}
		known, _ := m.store.List(ctx, f, 0, 1)
		n, _ := m.d.Discard(ctx, f)
		m.mu.Lock()
		if n > 0 && len(known) > 0 {
			m.discarded[known[0].ID] = true
		}
		m.mu.Unlock()
	case 9:
		m.reload()
	case 10:
		m.store.stop(map[bool]error{true: errDisk}[m.chance(2)])
	case 11:
		away := m.chance(2)
		m.remembers(func(Event) error {
			if away {
				return errAway
			}
			return nil
		})
	case 12:
		m.jump(time.Duration(m.rnd.IntN(7200)-3600) * time.Second)
	case 13:
		m.restart()
	}
	m.sleep(time.Duration(m.rnd.ExpFloat64() * float64(20*time.Second)))
}

func (m *model) last() int64 {
	m.store.mu.Lock()
	defer m.store.mu.Unlock()
	return m.store.last
}

func (m *model) reload() {
	m.policy.Concurrency = 1 + m.rnd.IntN(8)
	m.policy.Rate = m.rnd.IntN(3) * 10
	m.forget()
	deactivate := m.Activate(m.config())
	if m.chance(3) {
		m.forget()
		deactivate()
	}
	m.forget()
}

// restart is only made when all is recorded: after a crash, events may come twice.
func (m *model) restart() {
	m.store.stop(nil)
	m.firsts.Wait()
	m.sleep(2 * time.Minute)
	m.Stop()
	m.bed.stop = sync.Once{}
	m.forget()
	m.d = newDispatcher(m.store, m.wall, m.rand)
	m.Activate(m.config())
}

// newEvent does what the handler does with an event.
func (m *model) newEvent() {
	e, ctx, d := m.event(), context.Background(), m.d
	m.mu.Lock()
	e.OrderKey = []string{"", "", "x", "y", "z"}[e.ID[len(e.ID)-1]%5]
	turn := d.Enter("site", e.Scope, e.OrderKey)
	e.Sequence = turn.Sequence()
	m.arrived[e.OrderKey] = append(m.arrived[e.OrderKey], e.Sequence)
	m.mu.Unlock()
	defer turn.Leave()
	end := sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.arrived[e.OrderKey] = slices.DeleteFunc(m.arrived[e.OrderKey], func(s int64) bool { return s == e.Sequence })
	})
	defer end()
	keep := func(number int64, err error) (kept bool) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.kept[e.ID] = err == nil && number != 0
		return err == nil
	}
	var f First
	if !f.Try(ctx, d, "site", turn) {
		if !keep(d.Add(ctx, "site", turn, e, 1<<30)) && turn.Await(ctx, 8*time.Second, 1, 10) == nil {
			m.forget() // it does not ask the dispatcher
			m.deliver(ctx, e)
		}
		return
	}
	ended := make(chan Outcome, 1)
	turn.Hold()
	m.firsts.Go(func() {
		defer turn.Leave()
		o := m.deliver(ctx, e)
		o.Time = time.Now()
		f.End(o)
		ended <- o
	})
	select {
	case o := <-ended:
		if !o.Accepted {
			keep(f.Keep(ctx, e, 1<<30))
		}
	case <-time.After(8 * time.Second):
		keep(f.Keep(ctx, e, 1<<30))
	}
}

func (m *model) finish() {
	m.mu.Lock()
	m.mode = "up"
	m.mu.Unlock()
	m.store.stop(nil)
	m.remembers(nil)
	_ = m.d.SetPaused(context.Background(), false)
	m.sleep(2 * time.Hour) // the longest backoff, and a clock that jumped before a restart
	m.firsts.Wait()
	m.Stop()
	dead := map[string]bool{}
	for _, e := range m.store.events {
		if e.State != Dead {
			m.Errorf("%s is %s, due %v, at %v", e.ID, e.State, e.Due, time.Now().Add(m.skew))
		}
		dead[e.ID] = true
	}
	for id, kept := range m.kept {
		if kept && !m.accepted[id] && !dead[id] && !m.discarded[id] {
			m.Errorf("%s is lost", id)
		}
		if kept && m.accepted[id] && m.remembered[id] == 0 && !m.discarded[id] {
			m.Errorf("%s is not remembered", id)
		}
	}
	if len(m.d.busy) > 0 || len(m.d.adding) > 0 || len(m.d.unrecorded) > 0 || len(m.d.lanes.lanes) > 0 || len(m.d.blocked) > 0 {
		m.Error(fmt.Sprint("busy: ", m.d.busy, m.d.adding, m.d.unrecorded, m.d.lanes.lanes, m.d.blocked))
	}
}
