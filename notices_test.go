package buzzbip

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// subscriber is told of Caddy's events.
type subscriber struct{}

var told = make(chan caddy.Event, 100)

func init() { caddy.RegisterModule(subscriber{}) }

func (subscriber) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.test", New: func() caddy.Module { return new(subscriber) }}
}

func (subscriber) Handle(_ context.Context, e caddy.Event) error {
	told <- e
	return nil
}

// subscribe subscribes to all events of the plugin.
func (s *site) subscribe(directives string) {
	s.apps = fmt.Sprintf(`"events":{"subscriptions":[{"events":[%q,%q,%q,%q,%q,%q],"handlers":[{"handler":"test"}]}]},`,
		noticeDead, noticeConflict, noticeStoreDown, noticeStoreUp, noticeInboxPaused, noticeSecretRotated)
	s.reload(directives)
}

// expectNotice waits for an event of Caddy, with some of its data.
func expectNotice(t *testing.T, name string, data map[string]any) {
	t.Helper()
	e := caddytest.Receive(t, told, name)
	if e.Name() != name {
		t.Fatalf("the event is %s %v, want %s", e.Name(), e.Data, name)
	}
	for key, want := range data {
		if got := e.Data[key]; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %s is %v, want %v", name, key, got, want)
		}
	}
}

func TestConflictIsAnEventOfCaddy(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, ""))
	s.subscribe(proxied(b, ""))
	client, id := newClient(t, "HTTP/1.1"), caddytest.NewID()
	expect(t, send(client, signed(s.url, caddytest.Event{ID: id}.Body())), http.StatusOK, "")
	expect(t, send(client, signed(s.url, caddytest.Event{ID: id, Data: `{"other":1}`}.Body())), http.StatusOK, webhook.ResultConflict)
	expectNotice(t, noticeConflict, map[string]any{"event_id": id, "event_type": "message.received", "secret": "1", "path": "/webhooks/buzzbip", "count": 1})
}

func TestDeadEventAndPauseAreEventsOfCaddy(t *testing.T) {
	b, _ := failing(t, http.StatusUnprocessableEntity)
	directives := proxied(b, kept(t, "dead_on 422"))
	s := start(t, directives)
	s.subscribe(directives)
	id := caddytest.NewID()
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.Event{ID: id}.Body())), http.StatusOK, webhook.ResultStored)
	expectNotice(t, noticeDead, map[string]any{"event_id": id, "event_type": "message.received", "status": 422, "cause": "status_4xx", "count": 1})
	if _, err := ask(t, http.MethodPost, "inbox/pause", ""); err != nil {
		t.Fatal(err)
	}
	expectNotice(t, noticeInboxPaused, map[string]any{"waiting": 0})
}

func TestStoreThatGoesDownAndComesBackIsAnEventOfCaddy(t *testing.T) {
	s := start(t, "respond 404")
	file := filepath.Join(t.TempDir(), "ids.db")
	b := newBackend(t, nil)
	s.subscribe(proxied(b, "store sqlite "+file))
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	expectNotice(t, noticeStoreDown, map[string]any{"store": "sqlite"})
	if err := os.Rename(file+".away", file); err != nil {
		t.Fatal(err)
	}
	expectNotice(t, noticeStoreUp, map[string]any{"store": "sqlite"})
}

func TestRotatedSecretIsAnEventOfCaddy(t *testing.T) {
	s := start(t, "respond 404")
	file := filepath.Join(t.TempDir(), "secret")
	write := func(value string) {
		if err := os.WriteFile(file, []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(caddytest.Secret)
	s.subscribe("buzzbip_webhook {\nsecret_file " + file + " main\n}")
	write("another-secret-of-more-than-16-bytes")
	expectNotice(t, noticeSecretRotated, map[string]any{"secret": "main"})
}

// slowSubscriber counts what it is told, and takes its time.
type slowSubscriber struct {
	notices, events atomic.Int64
	last            time.Time
	closest         time.Duration
}

func (s *slowSubscriber) Handle(_ context.Context, e caddy.Event) error {
	if s.notices.Add(1) > 1 {
		s.closest = min(s.closest, time.Since(s.last))
	}
	s.last = time.Now()
	s.events.Add(int64(e.Data["count"].(int)))
	time.Sleep(time.Second)
	return nil
}

func TestManyNoticesOfOneKindAreFewEventsOfCaddy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		subscriber := &slowSubscriber{closest: time.Hour}
		ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
		defer cancel()
		app := new(caddyevents.App)
		if err := app.Provision(ctx); err != nil {
			t.Fatal(err)
		}
		if err := app.On(noticeDead, subscriber); err != nil {
			t.Fatal(err)
		}
		n := newNotices(ctx, app)
		n.begin()
		go n.run(ctx)
		const total = 1000
		for range total { // 100 s
			began := time.Now()
			n.add(noticeDead, map[string]any{})
			n.add(noticeConflict, map[string]any{}) // nobody has subscribed
			if time.Since(began) != 0 {
				t.Fatal("adding waits for subscribers")
			}
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(time.Minute)
		if events, notices := subscriber.events.Load(), subscriber.notices.Load(); events != total || notices < 9 || notices > 12 {
			t.Errorf("%d notices of %d events, want about 10 of %d", notices, events, total)
		}
		if subscriber.closest < noticeInterval {
			t.Errorf("two notices were %s apart", subscriber.closest)
		}
		cancel()
		synctest.Wait()
		if len(n.pending) != 0 {
			t.Errorf("%d notices are left", len(n.pending))
		}
	})
}
