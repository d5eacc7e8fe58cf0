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

// askInbox calls change, which may last as long as a disk does not respond. It waits no
// longer than keepTimeout: then it returns errNoAnswer, and late gets the result.
func askInbox(change func(context.Context) error) (late <-chan error, err error) {
	ended := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), keepTimeout)
		defer cancel()
		ended <- change(ctx)
	}()
	timer := time.NewTimer(keepTimeout)
	defer timer.Stop()
	select {
	case err := <-ended:
		return nil, err
	case <-timer.C:
		return ended, errNoAnswer
	}
}

// keep stores the event and settles the claim: then its ID is a duplicate. It
// reports false if the inbox does not take the event, or does not answer within
// keepTimeout. The caller locks.
func (k *keeper) keep() bool {
	a, event := k.attempt, k.inboxEvent()
	a.turn.Hold()
	late, err := askInbox(func(ctx context.Context) error {
		defer a.turn.Leave()
		return k.store(ctx, event)
	})
	if late == nil {
		return k.stored(err)
	}
	k.reportTrouble(err)
	// The claim remains until it is known whether the event is stored: it is neither
	// delivered twice nor answered as a duplicate.
	a.claimed, k.pending = false, true
	cost := k.request.body.cost()
	underWay.add(cost)
	go func() {
		defer underWay.release(cost)
		err := <-late
		k.mu.Lock()
		defer k.mu.Unlock()
		k.pending = false
		switch {
		case k.stored(err):
		case !k.tried || k.ended:
			a.settleAs(a.claim, k.accepted)
		default:
			a.claimed = true // the attempt settles it
		}
	}()
	return false
}

func (k *keeper) store(ctx context.Context, e inbox.Event) (err error) {
	in, turn := k.attempt.inbox, k.attempt.turn
	if k.tried {
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
