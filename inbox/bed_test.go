package inbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// bed is a dispatcher in a bubble of testing/synctest, with a backend.
type bed struct {
	*testing.T
	store  *memory
	d      *Dispatcher
	policy Policy
	start  time.Time
	stop   sync.Once

	mu         sync.Mutex
	skew       time.Duration // of the system's clock
	random     float64
	answer     func(context.Context, Event) Outcome
	attempts   []made
	underway   map[string]bool
	peak       int
	remembered map[string]int
	remember   func(Event) error
	died       []string
	lastDead   Event
	removed    [2]int // dead and delivered events
	troubles   []string
	added      int
}

// made is an attempt that was made.
type made struct {
	id string
	at time.Duration // since the start
}

var (
	accept = Outcome{Attempt: Attempt{Status: 200}, Accepted: true}
	down   = Outcome{Attempt: Attempt{Cause: "unreachable"}, Down: true}
)

func status(code int) Outcome { return Outcome{Attempt: Attempt{Status: code, Cause: "status"}} }

func run(t *testing.T, test func(b *bed)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, newMemory())
		b.Activate(b.config())
		test(b)
		b.Stop()
	})
}

func newBed(t *testing.T, store *memory) *bed {
	b := &bed{T: t, store: store, start: time.Now(), random: 0.5, underway: map[string]bool{}, remembered: map[string]int{}}
	b.policy = Policy{
		FirstRetry: 5 * time.Second, LongestRetry: 15 * time.Minute,
		DeadAfter: 72 * time.Hour, Concurrency: 8, KeepDead: 720 * time.Hour,
	}
	b.backend(func(Event) Outcome { return accept })
	b.d = newDispatcher(store, b.wall, b.rand)
	return b
}

func (b *bed) rand() float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.random
}

func (b *bed) wall() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Now().Add(b.skew)
}

// jump changes the system's clock.
func (b *bed) jump(by time.Duration) {
	b.mu.Lock()
	b.skew += by
	b.mu.Unlock()
	b.d.Wake()
}

func (b *bed) Stop() {
	b.stop.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		b.d.Stop(ctx)
	})
}

func (b *bed) Activate(c Config) func() { return b.d.Activate(c) }

// config returns a configuration with the policy and the backend.
func (b *bed) config() Config {
	return Config{
		Policy:  b.policy,
		Deliver: b.deliver,
		Remember: func(_ context.Context, e Event) error {
			b.mu.Lock()
			remember := b.remember
			b.mu.Unlock()
			if remember != nil {
				if err := remember(e); err != nil {
					return err
				}
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			b.remembered[e.ID]++
			return nil
		},
		Hooks: Hooks{
			Died: func(e Event) {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.died = append(b.died, e.ID)
				b.lastDead = e
			},
			Removed: func(dead, delivered int) {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.removed[0] += dead
				b.removed[1] += delivered
			},
			Trouble: func(doing string, err error) {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.troubles = append(b.troubles, doing)
			},
		},
	}
}

// deliver is called by the dispatcher, and for first attempts.
func (b *bed) deliver(ctx context.Context, e Event) Outcome {
	b.mu.Lock()
	b.attempts = append(b.attempts, made{e.ID, time.Since(b.start)})
	if b.underway[e.ID] {
		b.Errorf("%s is under way twice", e.ID)
	}
	b.underway[e.ID] = true
	b.peak = max(b.peak, len(b.underway))
	answer := b.answer
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.underway, e.ID)
	}()
	return answer(ctx, e)
}

// atOnce returns how many attempts are under way.
func (b *bed) atOnce() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.underway)
}

// backend sets how the backend answers.
func (b *bed) backend(answer func(Event) Outcome) {
	b.slowBackend(func(_ context.Context, e Event) Outcome { return answer(e) })
}

func (b *bed) slowBackend(answer func(context.Context, Event) Outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = answer
}

func (b *bed) answers(o Outcome) { b.backend(func(Event) Outcome { return o }) }

func (b *bed) remembers(remember func(Event) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.remember = remember
}

// takes is a backend that accepts after a time, unless it is cut off.
func takes(d time.Duration) func(context.Context, Event) Outcome {
	return func(ctx context.Context, _ Event) Outcome {
		select {
		case <-time.After(d):
			return accept
		case <-ctx.Done():
			return Outcome{Attempt: Attempt{Cause: "canceled"}, Down: true}
		}
	}
}

// event returns a new event.
func (b *bed) event() Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.added++
	id := fmt.Sprint("e", b.added)
	return Event{ID: id, Key: dedupe.KeyOf(id), Arrived: time.Now().Add(b.skew), Body: []byte("{}")}
}

// add stores events that were not tried.
func (b *bed) add(n int) (first int64) { return b.addTo("site", n) }

func (b *bed) addTo(target string, n int) (first int64) {
	b.Helper()
	for range n {
		number, err := b.d.Add(context.Background(), target, nil, b.event(), 1<<30)
		if err != nil {
			b.Fatal(err)
		}
		if first == 0 {
			first = number
		}
	}
	return first
}

func (b *bed) try() (f *First, try bool) {
	f = new(First)
	return f, f.Try(context.Background(), b.d, "site", nil)
}

// first makes a first attempt of a new event, which is kept if it fails. It returns
// the event's number, and whether it was tried.
func (b *bed) first() (number int64, tried bool) {
	b.Helper()
	f, try := b.try()
	if !try {
		return b.add(1), false
	}
	e := b.event()
	o := b.deliver(context.Background(), e)
	o.Time = time.Now()
	f.End(o)
	number, err := f.Keep(context.Background(), e, 1<<30)
	if err != nil {
		b.Fatal(err)
	}
	return number, true
}

func (b *bed) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// seen returns the attempts made since it was called last.
func (b *bed) seen() []made {
	b.mu.Lock()
	defer b.mu.Unlock()
	seen := b.attempts
	b.attempts = nil
	return seen
}

// expect checks the attempts made since the last check, as text.
func (b *bed) expect(want ...string) {
	b.Helper()
	synctest.Wait()
	seen := b.seen()
	got := make([]string, len(seen))
	for i, a := range seen {
		got[i] = fmt.Sprint(a.id, " ", a.at)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		b.Errorf("attempts: %q, want %q", got, want)
	}
}

// expectCount checks how many attempts were made since the last check.
func (b *bed) expectCount(want int) {
	b.Helper()
	synctest.Wait()
	if seen := b.seen(); len(seen) != want {
		b.Errorf("%d attempts %v, want %d", len(seen), seen, want)
	}
}

// expectStates checks how many events are in each state.
func (b *bed) expectStates(waiting, dead, accepted, delivered int) {
	b.Helper()
	synctest.Wait()
	s := b.store.states()
	if s[Waiting] != waiting || s[Dead] != dead || s[Accepted] != accepted || s[Delivered] != delivered {
		b.Errorf("states: %v, want waiting:%d dead:%d accepted:%d delivered:%d", s, waiting, dead, accepted, delivered)
	}
}

func (b *bed) expectRemembered(want int) {
	b.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.remembered) != want {
		b.Errorf("remembered: %d, want %d", len(b.remembered), want)
	}
}

var errDisk = errors.New("disk full")
