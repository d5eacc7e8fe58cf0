package buzzbip

import (
	"net/http"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

func TestReloadKeepsWhatIsRemembered(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		b := newBackend(t, nil)
		s := start(t, proxied(b, ""))
		body := caddytest.NewEvent()
		expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
		for _, options := range []string{
			"",
			"retention 1h",
			"store memory {\n capacity 10\n when_full refuse\n}",
			"delivery_timeout 5s\nmax_age 1h",
		} {
			s.reload(proxied(b, options))
			expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
		}
		b.expectCount(t, 1)
	})
}

func TestRemovingTheHandlerForAWhileForgetsNothing(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, ""))
	client := newClient(t, "HTTP/1.1")
	body := caddytest.NewEvent()
	expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
	s.reload("respond gone 404")
	s.reload(proxied(b, ""))
	expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
}

func TestDeliveryInFlightAcrossAReloadIsJoinedByDuplicates(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		statuses := make(chan int)
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(<-statuses) })
		s := start(t, proxied(b, ""))
		body := caddytest.NewEvent()
		first := sendAsync(client, signed(s.url, body))
		caddytest.Receive(t, b.arrived, "the first delivery")

		s.reload(proxied(b, "retention 1h"))
		second := sendAsync(client, signed(s.url, body))
		statuses <- http.StatusServiceUnavailable
		expect(t, caddytest.Receive(t, first, "the first answer"), http.StatusServiceUnavailable, "")
		caddytest.Receive(t, b.arrived, "the second delivery")
		b.expectCount(t, 2)

		s.reload(proxied(b, ""))
		third := sendAsync(client, signed(s.url, body))
		statuses <- http.StatusOK
		expect(t, caddytest.Receive(t, second, "the second answer"), http.StatusOK, "")
		expect(t, caddytest.Receive(t, third, "the third answer"), http.StatusOK, webhook.ResultDuplicate)
		b.expectCount(t, 2)
	})
}

func TestFailedReloadChangesNothing(t *testing.T) {
	statuses := make(chan int, 10)
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(<-statuses) })
	s := start(t, proxied(b, ""))
	client := newClient(t, "HTTP/1.1")
	delivered, inFlight := caddytest.NewEvent(), caddytest.NewEvent()
	statuses <- http.StatusOK
	expect(t, send(client, signed(s.url, delivered)), http.StatusOK, "")
	caddytest.Receive(t, b.arrived, "the first delivery")
	first := sendAsync(client, signed(s.url, inFlight))
	caddytest.Receive(t, b.arrived, "the delivery")

	for _, broken := range []string{
		proxied(b, "secret {env.BUZZBIP_TEST_UNSET}"),
		proxied(b, "") + "\nreverse_proxy {\n to 127.0.0.1:1\n lb_policy header \"\"\n}\nroute {\n buzzbip_webhook {env.BUZZBIP_TEST_UNSET}\n}",
	} {
		if err := s.tryReload(broken); err == nil {
			t.Fatal("the broken configuration was loaded")
		}
	}
	expect(t, send(client, signed(s.url, delivered)), http.StatusOK, webhook.ResultDuplicate)
	second := sendAsync(client, signed(s.url, inFlight))
	statuses <- http.StatusOK
	expect(t, caddytest.Receive(t, first, "the first answer"), http.StatusOK, "")
	expect(t, caddytest.Receive(t, second, "the second answer"), http.StatusOK, webhook.ResultDuplicate)
	b.expectCount(t, 2)
}

// Caddy has more to do when all apps have started, and does not stop them if
// that fails.
func TestReloadThatFailsAtItsEndLeavesTheOldConfigurationActive(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, proxied(b, ""))
	before := running()
	err := caddy.Load([]byte(`{"admin":{"disabled":true,"config":{"persist":false,"load":{"module":"none"}}},"apps":{"buzzbip_webhook":{}}}`), true)
	if err == nil || !strings.Contains(err.Error(), "loading config loader module") {
		t.Fatalf("got %v", err)
	}
	if before == nil || running() != before {
		t.Error("the configuration that failed is taken for the active one")
	}
	s.reload(proxied(b, ""))
	if after := running(); after == nil || after == before {
		t.Error("the new configuration is not active")
	}
	s.reload("respond gone 404")
	if running() != nil {
		t.Error("a configuration that has ended is taken for the active one")
	}
}
