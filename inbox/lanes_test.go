package inbox

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// keyed returns a new event with an order key.
func (b *bed) keyed(key string) Event {
	e := b.event()
	e.OrderKey = key
	return e
}

// addKeyed stores events with a key that were not tried.
func (b *bed) addKeyed(key string, n int) (first int64) {
	b.Helper()
	for range n {
		turn := b.d.Enter("site", "", key)
		number, err := b.d.Add(context.Background(), "site", turn, b.keyed(key), 1<<30)
		turn.Leave()
		if err != nil {
			b.Fatal(err)
		}
		if first == 0 {
			first = number
		}
	}
	return first
}

// arrives does what the handler does with a new event: it tries it or, if that is not
// possible or fails, stores it.
func (b *bed) arrives(key string) (tried bool) {
	b.Helper()
	e, ctx := b.keyed(key), context.Background()
	turn := b.d.Enter("site", "", key)
	defer turn.Leave()
	var f First
	if !f.Try(ctx, b.d, "site", turn) {
		if _, err := b.d.Add(ctx, "site", turn, e, 1<<30); err != nil {
			b.Error(err)
		}
		return false
	}
	o := b.deliver(ctx, e)
	o.Time = time.Now()
	f.End(o)
	if _, err := f.Keep(ctx, e, 1<<30); err != nil {
		b.Error(err)
	}
	return true
}

// fails is a backend that fails the events with the given IDs, and accepts others.
func fails(o Outcome, ids ...string) func(Event) Outcome {
	return func(e Event) Outcome {
		if slices.Contains(ids, e.ID) {
			return o
		}
		return accept
	}
}

func TestAnEventIsStoredBehindTheOneOfItsKeyThatIsUnderWay(t *testing.T) {
	run(t, func(b *bed) {
		b.slowBackend(func(ctx context.Context, e Event) Outcome {
			if e.ID == "e1" && e.Attempts == 0 {
				time.Sleep(time.Second)
				return status(500)
			}
			return takes(10*time.Millisecond)(ctx, e)
		})
		go b.arrives("x")
		synctest.Wait()
		for range 2 {
			if b.arrives("x") {
				b.Error("an event is tried while the one before it is under way")
			}
		}
		b.expectStates(2, 0, 0, 0)
		b.sleep(2 * time.Second)
		b.expectStates(3, 0, 0, 0)
		b.expect("e1 0s")
		b.sleep(time.Minute)
		b.expect("e1 6s", "e2 6.01s", "e3 6.02s")
		b.expectStates(0, 0, 0, 0)
		if !b.arrives("x") {
			b.Error("an event is not tried although nothing is before it")
		}
	})
}

func TestAnEventIsDeliveredAtOnceWhenTheOneBeforeItIsAccepted(t *testing.T) {
	run(t, func(b *bed) {
		b.slowBackend(takes(time.Second))
		go b.arrives("x")
		synctest.Wait()
		b.arrives("x")
		b.arrives("x")
		b.sleep(10 * time.Second)
		b.expect("e1 0s", "e2 1s", "e3 2s")
	})
}

func TestAnEventIsStoredBehindThoseThatWait(t *testing.T) {
	run(t, func(b *bed) {
		b.backend(fails(status(500), "e1"))
		b.arrives("x")
		if b.arrives("x") {
			b.Error("an event is tried while one of its key waits")
		}
		b.expect("e1 0s")
		b.backend(fails(accept))
		b.sleep(time.Minute)
		b.expect("e1 5s", "e2 5s")
	})
}

func TestKeysDoNotHoldEachOtherUp(t *testing.T) {
	run(t, func(b *bed) {
		b.slowBackend(func(ctx context.Context, e Event) Outcome {
			if e.OrderKey == "slow" {
				return takes(time.Minute)(ctx, e)
			}
			return accept
		})
		go b.arrives("slow")
		synctest.Wait()
		b.arrives("slow")
		b.sleep(time.Second)
		b.addKeyed("x", 3)
		b.addKeyed("y", 3)
		b.add(3)
		b.sleep(time.Second)
		b.expectCount(1 + 9)
		if !b.arrives("z") || !b.arrives("") {
			b.Error("an event waits for one with another key")
		}
		for _, other := range []struct{ target, scope string }{{"other", ""}, {"site", "other"}} {
			turn := b.d.Enter(other.target, other.scope, "slow")
			if !turn.Try(b.Context()) {
				b.Errorf("an event of %v waits", other)
			}
			turn.Leave()
		}
		b.sleep(5 * time.Minute)
	})
}

// The event that arrived first fails, and is stored after the second. While it is being
// stored, the second must not be delivered.
func TestAnEventIsNotDeliveredWhileAnEarlierOneIsBeingStored(t *testing.T) {
	run(t, func(b *bed) {
		b.store.commitsIn(time.Second)
		first := b.d.Enter("site", "", "x")
		go func() {
			defer first.Leave()
			if _, err := b.d.Add(context.Background(), "site", first, b.keyed("x"), 1<<30); err != nil {
				b.Error(err)
			}
		}()
		synctest.Wait()
		b.store.commitsIn(0)
		b.addKeyed("x", 1)
		b.sleep(time.Minute)
		b.expect("e1 1s", "e2 1s")
	})
}

func TestAnEventThatDiesLetsTheNextOfItsKeyPass(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.DeadOn = func(status int) bool { return status == 422 }
		b.Activate(b.config())
		b.backend(fails(status(422), "e1", "e2"))
		b.addKeyed("x", 3)
		b.expect("e1 0s", "e2 0s", "e3 0s")
		b.expectStates(0, 2, 0, 0)
	})
}

func TestAnEventThatIsTooOldLetsTheNextOfItsKeyPass(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.DeadAfter = time.Minute
		b.Activate(b.config())
		b.backend(fails(status(500), "e1"))
		b.addKeyed("x", 1)
		b.sleep(50 * time.Second)
		b.seen()
		b.addKeyed("x", 1)
		b.expect()
		b.sleep(15 * time.Second)
		b.expect("e2 1m0.001s")
	})
}

func TestADeathThatCannotBeReadLetsTheNextOfItsKeyPass(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.DeadAfter = time.Minute
		b.Activate(b.config())
		b.backend(fails(status(500), "e1"))
		b.addKeyed("x", 1)
		b.sleep(50 * time.Second)
		b.seen()
		b.addKeyed("x", 1)
		b.store.mu.Lock()
		b.store.listFails = errDisk
		b.store.mu.Unlock()
		b.sleep(15 * time.Second)
		b.expect("e2 1m0.001s")
	})
}

// It was due in 5 seconds when an operator retried the one before it, by a clock that
// was put back while it was blocked.
func TestAClockThatIsPutBackDoesNotDelayABlockedEvent(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.DeadOn = func(status int) bool { return status == 422 }
		b.Activate(b.config())
		b.backend(func(e Event) Outcome { return map[string]Outcome{"e1": status(422), "e2": status(500)}[e.ID] })
		number := b.addKeyed("x", 2)
		b.expect("e1 0s", "e2 0s")
		if err := b.d.SetPaused(b.Context(), true); err != nil {
			b.Fatal(err)
		}
		if _, err := b.d.Retry(b.Context(), Filter{Number: []int64{number}}); err != nil {
			b.Fatal(err)
		}
		b.answers(accept)
		b.sleep(time.Second)
		b.jump(-1000 * time.Hour)
		b.sleep(time.Second)
		if err := b.d.SetPaused(b.Context(), false); err != nil {
			b.Fatal(err)
		}
		b.sleep(time.Hour)
		b.expectCount(2)
	})
}

func TestAnEventThatWaitsForItsLaneAsksTheStoreNothing(t *testing.T) {
	run(t, func(b *bed) {
		b.slowBackend(takes(time.Minute))
		go b.arrives("x")
		synctest.Wait()
		b.arrives("x")
		b.sleep(time.Second)
		before := b.store.count()
		b.sleep(50 * time.Second)
		if n := b.store.count() - before; n > 0 {
			b.Errorf("the store was asked %d times", n)
		}
		b.sleep(2 * time.Minute)
	})
}

func TestEventsThatWaitForTheirLanesDoNotHoldUpOthers(t *testing.T) {
	run(t, func(b *bed) {
		b.slowBackend(func(ctx context.Context, e Event) Outcome {
			if e.OrderKey != "" {
				return takes(time.Minute)(ctx, e)
			}
			return accept
		})
		const keys = 2 * batch
		for key := range keys {
			go b.arrives(fmt.Sprint(key))
			synctest.Wait()
			b.arrives(fmt.Sprint(key))
		}
		b.expectCount(keys)
		b.add(1)
		b.sleep(time.Second)
		b.expectCount(1)
		b.sleep(2 * time.Hour)
		b.expectCount(keys)
	})
}

// The handler delivers an event without a first attempt if the store does not take it.
func TestAnEventThatIsNotTriedKeepsItsTurn(t *testing.T) {
	run(t, func(b *bed) {
		turn := b.d.Enter("site", "", "x")
		var f First
		f.Try(b.Context(), b.d, "site", turn)
		f.End(Outcome{NoAttempt: true})
		if err := turn.Await(b.Context(), time.Second, 1, 100); err != nil || time.Since(b.start) > 0 {
			b.Errorf("%v after %v", err, time.Since(b.start))
		}
		turn.Leave()
		_ = b.d.SetPaused(b.Context(), true)
		turn = b.d.Enter("site", "", "x")
		if new(First).Try(b.Context(), b.d, "site", turn) {
			b.Error("it is tried")
		}
		if err := turn.Await(b.Context(), time.Second, 1, 100); err != nil || time.Since(b.start) > 0 {
			b.Errorf("%v after %v", err, time.Since(b.start))
		}
		turn.Leave()
	})
}

func TestAnEventThatIsDiscardedLetsTheNextOfItsKeyPass(t *testing.T) {
	run(t, func(b *bed) {
		b.backend(fails(status(500), "e1"))
		number := b.addKeyed("x", 2)
		b.expect("e1 0s")
		if _, err := b.d.Discard(b.Context(), Filter{Number: []int64{number}}); err != nil {
			b.Fatal(err)
		}
		b.expect("e2 0s")
	})
}

// What was discarded while it was under way is still with the backend.
func TestTheNextEventWaitsForADiscardedOneThatIsUnderWay(t *testing.T) {
	run(t, func(b *bed) {
		b.slowBackend(takes(time.Minute))
		number := b.addKeyed("x", 2)
		b.sleep(time.Second)
		if _, err := b.d.Discard(b.Context(), Filter{Number: []int64{number}}); err != nil {
			b.Fatal(err)
		}
		b.sleep(2 * time.Minute)
		b.expect("e1 0s", "e2 1m0s")
	})
}

func TestARetryOfADeadEventKeepsItsPlace(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.DeadOn = func(status int) bool { return status == 422 }
		b.Activate(b.config())
		b.backend(fails(status(422), "e1"))
		number := b.addKeyed("x", 1)
		b.expect("e1 0s")
		b.slowBackend(takes(10 * time.Second))
		b.addKeyed("x", 3)
		b.sleep(time.Second)
		if _, err := b.d.Retry(b.Context(), Filter{Number: []int64{number}}); err != nil {
			b.Fatal(err)
		}
		if b.arrives("x") {
			b.Error("a new event is tried")
		}
		b.sleep(2 * time.Minute)
		b.expect("e2 0s", "e1 10s", "e3 20s", "e4 30s", "e5 40s")
	})
}

func TestReplaysOfDeliveredEventsAreInOrder(t *testing.T) {
	run(t, func(b *bed) {
		b.policy.KeepDelivered = time.Hour
		b.Activate(b.config())
		for range 3 {
			turn := b.d.Enter("site", "", "x")
			if err := b.d.AddDelivered(b.Context(), "site", turn, b.keyed("x"), Attempt{Time: b.wall(), Status: 200}); err != nil {
				b.Fatal(err)
			}
			turn.Leave()
		}
		b.answers(status(500))
		if n, err := b.d.Retry(b.Context(), Filter{}); n != 3 || err != nil {
			b.Fatal(n, err)
		}
		b.sleep(time.Second)
		b.expect("e1 0s") // the others wait until it is accepted
	})
}

func TestARetryOfManyIsInOrder(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(down)
		for range 5 {
			b.addKeyed("x", 1)
			b.addKeyed("y", 1)
		}
		b.sleep(time.Hour)
		b.seen()
		b.slowBackend(takes(time.Second))
		if n, err := b.d.Retry(b.Context(), Filter{}); n != 10 || err != nil {
			b.Fatal(n, err)
		}
		b.sleep(time.Minute)
		var x, y []string
		for _, a := range b.seen() {
			var n int
			fmt.Sscanf(a.id, "e%d", &n)
			if n%2 == 1 {
				x = append(x, a.id)
			} else {
				y = append(y, a.id)
			}
		}
		if got := fmt.Sprint(x, y); got != "[e1 e3 e5 e7 e9] [e2 e4 e6 e8 e10]" {
			b.Error(got)
		}
	})
}

func TestOrderSurvivesAPauseAReloadAndARestart(t *testing.T) {
	run(t, func(b *bed) {
		if err := b.d.SetPaused(b.Context(), true); err != nil {
			b.Fatal(err)
		}
		first := b.d.Enter("site", "", "x")
		b.addKeyed("x", 1) // e1
		if _, err := b.d.Add(b.Context(), "site", first, b.keyed("x"), 1<<30); err != nil {
			b.Fatal(err)
		}
		first.Leave()
		b.Activate(b.config())
		b.addKeyed("x", 1)
		b.Stop()
		b.stop = sync.Once{}
		b.d = newDispatcher(b.store, b.wall, b.rand)
		b.Activate(b.config())
		b.addKeyed("x", 1)
		b.expect()
		if err := b.d.SetPaused(b.Context(), false); err != nil {
			b.Fatal(err)
		}
		b.expect("e2 0s", "e1 0s", "e3 0s", "e4 0s")
	})
}

// Its outcome is not in the store, where it still waits.
func TestTheNextEventWaitsUntilTheOutcomeIsRecorded(t *testing.T) {
	run(t, func(b *bed) {
		b.slowBackend(takes(time.Second))
		b.addKeyed("x", 2)
		b.expect("e1 0s")
		b.store.stop(errDisk)
		b.sleep(2 * time.Second)
		if b.d.Enter("site", "", "x").Try(b.Context()) {
			b.Error("a new event is tried")
		}
		b.sleep(10 * time.Second)
		b.expect()
		b.store.stop(nil)
		b.sleep(2 * time.Minute)
		if seen := b.seen(); len(seen) != 1 || seen[0].id != "e2" {
			b.Error(seen)
		}
	})
}

func TestAHotKeyCostsTheOthersNothing(t *testing.T) {
	run(t, func(b *bed) {
		b.backend(func(e Event) Outcome {
			if e.OrderKey == "hot" {
				return status(500)
			}
			return accept
		})
		b.addKeyed("hot", 100_000)
		b.sleep(time.Minute)
		b.store.mu.Lock()
		b.store.asked = 0
		b.store.mu.Unlock()
		for range 100 {
			b.addKeyed("x", 1)
			b.sleep(time.Second)
		}
		b.store.mu.Lock()
		asked := b.store.asked
		b.store.mu.Unlock()
		if asked > 300 {
			b.Errorf("Due looked at %d events to deliver 100", asked)
		}
		if n := b.store.states()[Waiting]; n != 100_000 {
			b.Errorf("%d wait", n)
		}
	})
}

// It looks like a backend that fails, but only one key does.
func TestAPoisonedKeyDoesNotCloseTheGate(t *testing.T) {
	for _, stored := range []bool{true, false} {
		run(t, func(b *bed) {
			b.policy.DeadOn = func(status int) bool { return status == 422 }
			b.Activate(b.config())
			b.answers(status(422))
			if stored {
				b.addKeyed("poison", 1000)
			}
			for range 20 {
				b.arrives("poison")
				b.sleep(time.Minute)
			}
			if b.d.targets["site"].gate.closed {
				b.Errorf("closed; stored: %t", stored)
			}
		})
	}
}

// A backend was away for long, and the first event that it gets again is one that it
// always fails.
func TestAPoisonedEventThatAsksDelaysTheOthersByTheFirstRetryOnly(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(down)
		b.add(2)
		b.sleep(3 * time.Hour)
		b.seen()
		var poison string
		var since time.Duration
		b.backend(func(e Event) Outcome {
			if poison == "" {
				poison, since = e.ID, time.Since(b.start)
			}
			if e.ID == poison {
				return status(500)
			}
			return accept
		})
		b.sleep(20 * time.Minute)
		seen := b.seen()
		if len(seen) < 2 || seen[0].id != poison || seen[1].id == poison || seen[1].at-since != 5*time.Second {
			b.Errorf("after a failure of %s at %v: %v", poison, since, seen)
		}
	})
}

// soak makes tests as large as the contract says.
var soak = flag.Bool("soak", false, "1,000 keys with 1,000 events each")

func sizes() (keys, events int) {
	switch {
	case *soak:
		return 1000, 1000
	case testing.Short():
		return 20, 20
	}
	return 100, 50
}

// A backlog of many keys is delivered, and then new events arrive. With one key that
// always fails, the events of the others are accepted less than 1 % later.
func TestOnePoisonedKeyDelaysTheOthersByLessThanOnePercent(t *testing.T) {
	keys, events := 100, 50
	if *soak {
		keys, events = 1000, 100
	}
	for name, poison := range map[string]Outcome{"status 500": status(500), "dead": status(422), "slow": status(500)} {
		t.Run(name, func(t *testing.T) {
			drained := func(poisoned bool) (backlog, later time.Duration) {
				run(t, func(b *bed) {
					b.policy.DeadOn = func(status int) bool { return status == 422 }
					b.Activate(b.config())
					left := keys * events
					b.slowBackend(func(_ context.Context, e Event) Outcome {
						if e.OrderKey == "poison" {
							if name == "slow" {
								time.Sleep(100 * time.Millisecond)
							}
							return poison
						}
						time.Sleep(10 * time.Millisecond)
						b.mu.Lock()
						defer b.mu.Unlock()
						if left--; left == 0 {
							backlog = time.Since(b.start)
						}
						if left < 0 {
							later += time.Since(e.Arrived)
						}
						return accept
					})
					_ = b.d.SetPaused(b.Context(), true)
					for range events {
						for key := range keys {
							b.addKeyed(fmt.Sprint("k", key), 1)
						}
						if poisoned {
							b.addKeyed("poison", 1)
						}
					}
					_ = b.d.SetPaused(b.Context(), false)
					b.sleep(time.Duration(keys*events) * 10 * time.Millisecond)
					for range events {
						for key := range keys {
							if poisoned && key%10 == 0 {
								go b.arrives("poison")
							}
							go b.arrives(fmt.Sprint("k", key))
							b.sleep(10 * time.Millisecond)
						}
					}
					b.sleep(time.Minute)
					if left != -keys*events {
						b.Errorf("%d are left", left)
					}
				})
				return backlog, later
			}
			backlog, later := drained(false)
			poisonedBacklog, poisonedLater := drained(true)
			t.Logf("the backlog took %v and with the poisoned key %v, new events in sum %v and %v", backlog, poisonedBacklog, later, poisonedLater)
			if poisonedBacklog > backlog*101/100 || poisonedLater > later*101/100 {
				t.Error("the poisoned key delays the others")
			}
		})
	}
}

// order checks that the events of each key are accepted in the order in which they
// have arrived. What was not recorded when the process was killed may come again, but
// not after later ones.
type order struct {
	*bed
	last map[string]int // by key, the number of the last event that was accepted
}

func (o *order) accepted(e Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var n int
	fmt.Sscan(e.Type, &n)
	switch last := o.last[e.OrderKey]; {
	case n == last+1:
		o.last[e.OrderKey] = n
	case n != last:
		o.Errorf("key %s: %d is accepted after %d", e.OrderKey, n, last)
	}
}

// send does what the handler does with an event, and its sender: it asks again until the
// event is accepted or stored. What goes on after that is added to running.
func (o *order) send(e Event, running *sync.WaitGroup) {
	ctx, d := context.Background(), o.d
	for wait := time.Second; ; wait *= 2 {
		turn := d.Enter("site", "", e.OrderKey)
		var f First
		var err error
		if !f.Try(ctx, d, "site", turn) {
			_, err = d.Add(ctx, "site", turn, e, 1<<30)
		} else {
			ended := make(chan struct{})
			turn.Hold()
			running.Go(func() {
				defer turn.Leave()
				outcome := o.deliver(ctx, e)
				outcome.Time = time.Now()
				f.End(outcome)
				close(ended)
			})
			select {
			case <-ended:
			case <-time.After(8 * time.Second):
			}
			_, err = f.Keep(ctx, e, 1<<30)
		}
		turn.Leave()
		if err == nil {
			return
		}
		time.Sleep(wait)
	}
}

// The backend fails at random, and Caddy is reloaded and restarted, while the events of
// many keys arrive: each when its sender has an answer to the one before. The test of
// the same name in e2e kills processes.
func TestEachKeyIsInOrderWhateverHappens(t *testing.T) {
	keys, events := sizes()
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t, newMemory())
		b.store.commitsIn(time.Millisecond)
		o := &order{bed: b, last: map[string]int{}}
		rnd := rand.New(rand.NewPCG(1, 2))
		chance := func(n int) bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return rnd.IntN(n) == 0
		}
		b.slowBackend(func(ctx context.Context, e Event) Outcome {
			wait := 10 * time.Millisecond
			if chance(100) {
				wait = 20 * time.Second
			}
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return Outcome{NoAttempt: true}
			}
			switch {
			case chance(10):
				return status(500)
			case chance(1000):
				return down
			}
			o.accepted(e)
			return accept
		})
		b.policy.FirstRetry, b.policy.LongestRetry, b.policy.Concurrency = time.Second, 30*time.Second, 100
		b.Activate(b.config())
		sent := make([]int, keys)
		lives := 0
		// live reloads three times, and then restarts every other time.
		live := func(stop func()) {
			for range 3 {
				time.Sleep(time.Second)
				b.Activate(b.config())
			}
			stop()
			if lives%2 == 0 {
				killed, cancel := context.WithCancel(context.Background())
				cancel()
				b.d.Stop(killed)
				b.d = newDispatcher(b.store, b.wall, b.rand)
				b.Activate(b.config())
			}
			lives++
		}
		for left := keys; left > 0; {
			stop := make(chan struct{})
			var senders, firsts sync.WaitGroup
			left = 0
			for key := range keys {
				if sent[key] == events {
					continue
				}
				left++
				senders.Go(func() {
					for sent[key] < events {
						select {
						case <-stop:
							return
						default:
						}
						e := b.keyed(fmt.Sprint("k", key))
						e.Type = fmt.Sprint(sent[key] + 1)
						o.send(e, &firsts)
						sent[key]++
					}
				})
			}
			live(func() {
				close(stop)
				senders.Wait()
				firsts.Wait()
			})
		}
		for b.store.states()[Waiting] > 0 && lives < 10_000 {
			live(func() { time.Sleep(time.Minute) })
		}
		b.Stop()
		for key := range keys {
			if last := o.last[fmt.Sprint("k", key)]; last != events {
				b.Errorf("of key %d, %d events were accepted", key, last)
			}
		}
		made := len(b.attempts)
		t.Logf("%d keys with %d events, %d lives, %d attempts, in %v", keys, events, lives, made, time.Since(b.start))
		if made < keys*events*21/20 {
			t.Errorf("only %d attempts: too few failed", made)
		}
	})
}

// entered waits in its lane until it may begin, and tells so.
func entered(l *Lanes, lane Lane, name string, began chan<- string) *Turn {
	turn := l.Enter(lane)
	go func() {
		if err := turn.Await(context.Background(), time.Hour, 1, 100); err == nil {
			began <- name
		}
	}()
	synctest.Wait()
	return turn
}

func TestTurnsOfALaneBeginInOrderOfArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLanes()
		began := make(chan string, 10)
		a, b, c := entered(l, 1, "a", began), entered(l, 1, "b", began), entered(l, 1, "c", began)
		other := entered(l, 2, "other", began)
		if got := <-began + " " + <-began; got != "a other" {
			t.Error(got)
		}
		b.Leave() // before its turn: it is a duplicate, or has no time left
		synctest.Wait()
		if len(began) > 0 {
			t.Errorf("%s began too early", <-began)
		}
		a.Hold()
		a.Leave()
		synctest.Wait()
		if len(began) > 0 {
			t.Errorf("%s began while another one holds the turn before it", <-began)
		}
		a.Leave()
		if got := <-began; got != "c" {
			t.Errorf("%s began", got)
		}
		c.Leave()
		other.Leave()
		time.Sleep(2 * time.Hour) // b still waited
		if len(l.lanes) != 0 {
			t.Errorf("%d lanes are left", len(l.lanes))
		}
	})
}

func TestWaitingForATurnIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLanes()
		l.Enter(1).Try(t.Context())
		wait := func(ctx context.Context, cost int64) <-chan error {
			turn := l.Enter(1)
			ended := make(chan error, 1)
			go func() {
				defer turn.Leave()
				ended <- turn.Await(ctx, time.Minute, cost, 100)
			}()
			synctest.Wait()
			return ended
		}
		large := wait(t.Context(), 1000) // one always may
		if err := <-wait(t.Context(), 1); !errors.Is(err, ErrNotItsTurn) {
			t.Error(err)
		}
		began := time.Now()
		if err := <-large; !errors.Is(err, ErrNotItsTurn) || time.Since(began) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		first, second := wait(ctx, 50), wait(ctx, 50)
		if err := <-wait(t.Context(), 1); !errors.Is(err, ErrNotItsTurn) {
			t.Error(err)
		}
		cancel()
		if err := errors.Join(<-first, <-second); !errors.Is(err, ErrNotItsTurn) {
			t.Error(err)
		}
		synctest.Wait()
		if lane := l.lanes[1]; lane.waiting != 0 || len(lane.turns) != 1 {
			t.Errorf("%d bytes and %d turns are left", lane.waiting, len(lane.turns))
		}
	})
}

// With a store that is full, an event waits for those in the process, but not for those
// in the store: that may take days.
func TestATurnDoesNotBeginWhileAnEventOfItsLaneIsStored(t *testing.T) {
	run(t, func(b *bed) {
		b.answers(status(500))
		b.addKeyed("x", 1)
		b.sleep(time.Second)
		turn := b.d.Enter("site", "", "x")
		if err := turn.Await(b.Context(), time.Hour, 1, 100); !errors.Is(err, ErrNotItsTurn) || time.Since(b.start) > time.Second {
			b.Errorf("%v after %v", err, time.Since(b.start))
		}
		turn.Leave()
		b.store.breakAll(errDisk)
		turn = b.d.Enter("site", "", "x")
		if err := turn.Await(b.Context(), time.Hour, 1, 100); !errors.Is(err, errDisk) {
			b.Error(err)
		}
		turn.Leave()
		b.store.breakAll(nil)
	})
}

func TestLanesHaveHashesOfTheirOwn(t *testing.T) {
	seen := map[Lane]bool{}
	for _, parts := range [][3]string{{"a", "b", "c"}, {"ab", "", "c"}, {"a", "bc", ""}, {"", "ab", "c"}, {"a", "b", "d"}, {"a", "", "bc"}} {
		lane := LaneOf(parts[0], parts[1], parts[2])
		if (lane == 0) != (parts[2] == "") || seen[lane] {
			t.Errorf("%q: %d", parts, lane)
		}
		seen[lane] = true
	}
}
