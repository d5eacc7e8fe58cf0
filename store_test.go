package buzzbip

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// broken is a store that fails to claim or to settle, hangs when it is to
// settle, or finds a conflict after a while.
type broken struct {
	dedupe.Store
	What string `json:"what,omitempty"`
}

var errBroken = errors.New("the test broke it")

// waits are those of the claims, of the store that finds a conflict.
var waits []time.Duration

// settles counts the calls of Settle, by their outcome.
var settles struct{ delivered, failed, ended atomic.Int32 }

func init() { caddy.RegisterModule(broken{}) }

func (broken) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: storeNamespace + ".broken", New: func() caddy.Module { return new(broken) }}
}

func (b *broken) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	d.NextArg()
	b.What = d.Val()
	return nil
}

func (*broken) Stats() dedupe.Stats { return dedupe.Stats{} }

func (b *broken) Claim(_ context.Context, r dedupe.Request) (dedupe.Verdict, error) {
	switch {
	case b.What == "claim":
		return dedupe.Verdict{}, errBroken
	case b.What == "conflict":
		waits = append(waits, r.Wait)
		time.Sleep(10 * time.Millisecond)
		if !r.Redeliver {
			return dedupe.Verdict{State: dedupe.Conflicting}, nil
		}
	}
	return dedupe.Verdict{Claim: dedupe.Claim{Request: r}}, nil
}

func (b *broken) Settle(ctx context.Context, _ dedupe.Claim, delivered bool) error {
	if delivered {
		settles.delivered.Add(1)
	} else {
		settles.failed.Add(1)
	}
	if ctx.Err() != nil {
		settles.ended.Add(1)
	}
	if b.What == "hang" {
		<-ctx.Done()
	}
	return errBroken
}

func TestStoreThatDoesNotAnswerMeansComeBackLater(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, "store broken claim")+explained)
	got := send(newClient(t, "HTTP/1.1"), signed(s.url, eventBody(newID())))
	expectRefusal(t, got, webhook.ReasonStoreUnavailable)
	if got.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	if log := s.logs(); !strings.Contains(log, `"level":"error"`) || !strings.Contains(log, errBroken.Error()) {
		t.Errorf("no word of it in the log: %s", log)
	}
	b.expectCount(t, 0)
}

func TestStoreThatCannotRecordNeverTurnsASuccessIntoAFailure(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, "store broken settle"))
	body := eventBody(newID())
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, body)), http.StatusOK, "")
	if log := s.logs(); !strings.Contains(log, `"level":"error"`) || !strings.Contains(log, errBroken.Error()) {
		t.Errorf("no word of it in the log: %s", log)
	}
	b.expectCount(t, 1)
}

func TestStoreThatHangsDoesNotKeepASuccessFromTheSender(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, "store broken hang"))
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, eventBody(newID()))), http.StatusOK, "")
}

func TestDuplicateWaitIsThatOfBothClaimsTogether(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, "store broken conflict\nduplicate_wait 1s\non_conflict deliver"))
	waits = nil
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, eventBody(newID()))), http.StatusOK, "")
	if len(waits) != 2 || waits[0] != time.Second || waits[1] > waits[0]-10*time.Millisecond {
		t.Errorf("the claims waited up to %v", waits)
	}
}

func TestClaimIsSettledOnceAndNotWithTheContextOfTheRequest(t *testing.T) {
	for _, status := range []int{http.StatusOK, http.StatusInternalServerError} {
		release := make(chan struct{})
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			<-release
			w.WriteHeader(status)
		})
		s := start(t, watched(b, "store broken settle"))
		settles.delivered.Store(0)
		settles.failed.Store(0)
		hangUp(t, newClient(t, "HTTP/1.1"), signed(s.url, eventBody(newID())), b)
		s.reload("respond gone 404")
		close(release)
		waitFor(t, "the settlement", func() bool { return settles.delivered.Load()+settles.failed.Load() > 0 })
		if delivered := settles.delivered.Load() == 1; delivered != (status == http.StatusOK) {
			t.Errorf("%d was settled as delivered=%v", status, delivered)
		}
		if settles.ended.Load() > 0 {
			t.Error("the claim was settled with a context that had ended")
		}
		if n := settles.delivered.Load() + settles.failed.Load(); n != 1 {
			t.Errorf("the claim was settled %d times", n)
		}
	}
}
