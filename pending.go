package buzzbip

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/buzzbip/caddy-webhook/inbox"
)

// keepTimeout bounds how long a sender waits until its event is in the inbox.
var keepTimeout = 5 * time.Second

var errNoAnswer = errors.New("the inbox does not answer")

// keep stores the event and settles the claim: then its ID is a duplicate. It
// reports false if the inbox does not take the event, or does not answer within
// keepTimeout. The caller locks.
func (k *keeper) keep() bool {
	a, event := k.attempt, k.inboxEvent()
	ctx, cancel := context.WithTimeout(context.Background(), keepTimeout)
	ended := make(chan error, 1)
	a.turn.Hold()
	go func() {
		defer a.turn.Leave()
		defer cancel()
		ended <- k.store(ctx, event)
	}()
	select {
	case err := <-ended:
		return k.stored(err)
	case <-ctx.Done():
	}
	k.reportTrouble(errNoAnswer)
	// The claim remains until it is known whether the event is stored: it is neither
	// delivered twice nor answered as a duplicate.
	a.claimed, k.pending = false, true
	cost := a.state.cost()
	underWay.add(cost)
	go func() {
		defer underWay.release(cost)
		err := <-ended
		k.mu.Lock()
		defer k.mu.Unlock()
		k.pending = false
		switch {
		case k.stored(err):
		case k.first == nil || k.ended:
			a.settleAs(a.claim, k.accepted)
		default:
			a.claimed = true // the attempt settles it
		}
	}()
	return false
}

func (k *keeper) store(ctx context.Context, e inbox.Event) (err error) {
	in, turn := k.attempt.inbox, k.attempt.turn
	if k.first != nil {
		_, err = k.first.Keep(ctx, e, in.Capacity())
	} else {
		_, err = in.dispatcher.Add(ctx, e.Target, turn, e, in.Capacity())
	}
	return err
}

// stored is called with the result of store. It reports whether the event is in the
// inbox. The caller locks.
func (k *keeper) stored(err error) bool {
	a := k.attempt
	a.inbox.room.learn(err, a.inbox.Stats)
	if err != nil && !errors.Is(err, inbox.ErrKept) {
		k.reportTrouble(err)
		return false
	}
	claim := a.claim
	claim.Retention = a.keptRetention
	a.settleAs(claim, true)
	k.kept = true
	return true
}

func (k *keeper) reportTrouble(err error) {
	a := k.attempt
	a.sampled.log(a.logger, zapcore.ErrorLevel, "the inbox does not take events, so senders get the failures of the backend", "", func() []zap.Field {
		return []zap.Field{zap.String("event_id", a.event.ID), zap.Error(err)}
	})
}
