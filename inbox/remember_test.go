package inbox

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

var errAway = errors.New("connection refused")

func TestAtStartAcceptedEventsAreRememberedNotDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		b := newBed(t, store)
		for range 300 {
			e := b.event()
			e.Target = "site"
			number, _ := store.Add(context.Background(), e, 0)
			if err := store.Accepted(t.Context(), number, Attempt{Time: time.Now()}, false); err != nil {
				t.Fatal(err)
			}
		}
		b.sleep(time.Hour)
		b.expectRemembered(0) // by whom?
		b.Activate(b.config())
		b.expectRemembered(300)
		b.expectStates(0, 0, 0, 0)
		b.expect()
		b.Stop()
	})
}

func TestWhileIDsCannotBeRememberedEventsAreDeliveredOnce(t *testing.T) {
	run(t, func(b *bed) {
		b.sleep(time.Second)
		asked := 0
		b.remembers(func(Event) error {
			asked++
			return errAway
		})
		b.add(100)
		b.sleep(time.Hour)
		b.expectCount(100)
		b.expectStates(0, 0, 100, 0)
		if asked > 220 {
			b.Errorf("asked %d times in an hour", asked)
		}
		if n := len(b.troubles); n > 61*2 {
			b.Errorf("%d log entries in an hour", n)
		}
		b.remembers(nil)
		b.sleep(2 * time.Minute)
		b.expectStates(0, 0, 0, 0)
		b.expectRemembered(100)
		b.expect()
		b.add(1)
		b.expectRemembered(101)
	})
}

func TestIDsThatCannotBeRememberedDoNotKeepOthersFromIt(t *testing.T) {
	run(t, func(b *bed) {
		b.remembers(func(e Event) error {
			if e.Number <= 5 || e.Number > 295 {
				return errAway
			}
			return nil
		})
		b.add(300)
		b.sleep(time.Hour)
		b.expectRemembered(290)
		b.expectStates(0, 0, 10, 0)
	})
}

func TestAnIDIsRememberedOnceAlsoWhileOthersFail(t *testing.T) {
	run(t, func(b *bed) {
		calls := map[int64]int{}
		b.remembers(func(e Event) error {
			b.mu.Lock()
			calls[e.Number]++
			failed := e.Number == 1 && calls[e.Number] == 1
			b.mu.Unlock()
			if failed {
				time.Sleep(time.Second)
				return errAway
			}
			if e.Number == 2 {
				time.Sleep(10 * time.Second) // the other one is looked at in the meantime
			}
			return nil
		})
		b.first() // opens the gate
		b.sleep(time.Second)
		b.add(2)
		b.sleep(time.Minute)
		if calls[1] != 2 || calls[2] != 1 {
			b.Error(calls)
		}
		b.expectStates(0, 0, 0, 0)
	})
}

func TestAnEventThatIsRememberedButNotRemovedIsTriedAgain(t *testing.T) {
	run(t, func(b *bed) {
		b.remembers(func(Event) error {
			b.store.stop(errDisk)
			return nil
		})
		b.add(1)
		b.sleep(time.Minute)
		b.remembers(nil)
		b.store.stop(nil)
		b.sleep(2 * time.Minute)
		b.expectStates(0, 0, 0, 0)
		b.expectCount(1)
	})
}

func TestAfterAReloadIDsAreRememberedByTheNewConfiguration(t *testing.T) {
	run(t, func(b *bed) {
		b.remembers(func(Event) error { return errAway })
		b.add(1)
		b.sleep(time.Hour)
		c := b.config()
		remembered := 0
		c.Remember = func(context.Context, Event) error {
			remembered++
			return nil
		}
		b.Activate(c)
		b.sleep(2 * time.Minute)
		b.expectStates(0, 0, 0, 0)
		if remembered != 1 {
			b.Error(remembered)
		}
	})
}
