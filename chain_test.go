package buzzbip

import (
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// A handler that verifies and deduplicates, and gives up soon.
const impatient = "buzzbip_webhook {\nsecret " + caddytest.Secret + "\nanswer_within 50ms\n}\n"

func TestTwoHandlersInOneRouteDeliver(t *testing.T) {
	b := newBackend(t, nil)
	client := newClient(t, "HTTP/1.1")
	for name, site := range map[string]string{
		"in a row":           "route {\n" + impatient + impatient + "reverse_proxy " + b.address() + "\n}",
		"three":              "route {\n" + impatient + impatient + impatient + "reverse_proxy " + b.address() + "\n}",
		"site and handle":    impatient + "handle {\n" + impatient + "reverse_proxy " + b.address() + "\n}",
		"with a copy":        "route {\n" + impatient + "copies\n" + impatient + "reverse_proxy " + b.address() + "\n}",
		"dedupe off outside": "route {\nbuzzbip_webhook " + caddytest.Secret + " {\ndedupe off\n}\n" + impatient + "reverse_proxy " + b.address() + "\n}",
	} {
		t.Run(name, func(t *testing.T) {
			before := b.count()
			s := start(t, site)
			body := caddytest.NewEvent()
			expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
			expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
			b.expectCount(t, before+1)
		})
	}
}

func TestClaimEndsWhenAHandlerThatFollowsRejects(t *testing.T) {
	b := newBackend(t, nil)
	client, body := newClient(t, "HTTP/1.1"), caddytest.NewEvent()
	s := start(t, "route {\n"+impatient+"buzzbip_webhook the-secret-of-another-webhook-entirely\nreverse_proxy "+b.address()+"\n}")
	expect(t, send(client, signed(s.url, body)), http.StatusUnauthorized, "")
	s.reload("route {\n" + impatient + "reverse_proxy " + b.address() + "\n}")
	expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
	b.expectCount(t, 1)
}

// chained is a site that proxies to another one, with a handler in each.
func chained(t *testing.T, to string, b *backend, globals string) (s *site) {
	t.Helper()
	s = start(t, "respond gone 404")
	inner := "http://" + caddytest.FreeAddress(t)
	s.named = fmt.Sprintf("%s {\n%s\nbuzzbip_webhook %s {\nanswer_within 50ms\n}\nreverse_proxy %s\n}", inner, globals, caddytest.Secret, b.address())
	s.reload(impatient + "reverse_proxy " + strings.Replace(inner, "http://", to, 1) + " {\nheader_up Host {upstream_hostport}\n}")
	return s
}

func TestSiteThatProxiesToAnotherOfTheSameCaddyDelivers(t *testing.T) {
	for _, transport := range []string{"http://", "h2c://"} {
		t.Run(transport, func(t *testing.T) {
			b := newBackend(t, nil)
			s := chained(t, transport, b, "")
			client := newClient(t, "HTTP/2.0")
			for range 3 { // also over a connection that is used again
				body := caddytest.NewEvent()
				expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
				expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
			}
			b.expectCount(t, 3)
		})
	}
}

// What connects to the inner site is no part of the chain because a delivery of
// its event is under way.
func TestDuplicateAtTheInnerSiteOfAChainWaits(t *testing.T) {
	release := make(chan struct{})
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) { <-release })
	s := chained(t, "http://", b, "")
	client := newClient(t, "HTTP/1.1")
	body := caddytest.NewEvent()
	first := sendAsync(client, signed(s.url, body))
	caddytest.Receive(t, b.arrived, "the delivery")
	inner := strings.Fields(s.named)[0]
	expect(t, send(http.DefaultClient, signed(inner, body)), http.StatusServiceUnavailable, webhook.ResultInFlight)
	close(release)
	expect(t, caddytest.Receive(t, first, "the delivery"), http.StatusOK, "")
	b.expectCount(t, 1)
	http.DefaultClient.CloseIdleConnections()
}

// An outer and an inner Caddy cannot be known as a chain, nor two sites of one
// between which the mark is lost.
func TestChainThatIsNotKnownIsNamedInTheLog(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, "respond gone 404")
	inner, between := caddytest.FreeAddress(t), caddytest.FreeAddress(t)
	s.named = fmt.Sprintf("http://%s {\n%s\nreverse_proxy %s\n}\nhttp://%s {\nreverse_proxy %s {\nheader_up Host {upstream_hostport}\nheader_up -X-Buzzbip-Delivery\n}\n}", inner, impatient, b.address(), between, inner)
	s.reload(impatient + "reverse_proxy " + between + " {\nheader_up Host {upstream_hostport}\n}")
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusServiceUnavailable, webhook.ResultInFlight)
	if !strings.Contains(s.logs(), "another buzzbip_webhook with the same scope and store") {
		t.Errorf("no word of it in the log: %s", s.logs())
	}
	b.expectCount(t, 0)
}

// Whatever a sender puts into the header that marks a chain, a duplicate waits.
func TestForgedMarkOfAChainIsIgnored(t *testing.T) {
	release := make(chan struct{})
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) { <-release })
	s := start(t, impatient+"reverse_proxy "+b.address())
	client, body, other := newClient(t, "HTTP/1.1"), caddytest.NewEvent(), caddytest.NewEvent()
	first := sendAsync(client, signed(s.url, body))
	got := caddytest.Receive(t, b.arrived, "the delivery")
	mark := got.Header.Get(deliveryHeader)
	second := sendAsync(client, signed(s.url, other))
	caddytest.Receive(t, b.arrived, "the delivery of another event")
	for _, value := range []string{"", "x", mark} { // the last one is that of another event
		r := signed(s.url, other)
		r.Header.Set(deliveryHeader, value)
		expect(t, send(client, r), http.StatusServiceUnavailable, webhook.ResultInFlight)
	}
	close(release)
	expect(t, caddytest.Receive(t, first, "the first"), http.StatusOK, "")
	expect(t, caddytest.Receive(t, second, "the second"), http.StatusOK, "")
	b.expectCount(t, 2)
}

func TestSiteThatProxiesToAnotherOverASocketDelivers(t *testing.T) {
	b := newBackend(t, nil)
	socket := filepath.Join(t.TempDir(), "inner")
	s := start(t, "respond gone 404")
	s.named = fmt.Sprintf("http:// {\nbind unix/%s\n%sreverse_proxy %s\n}", socket, impatient, b.address())
	s.reload(impatient + "reverse_proxy unix/" + socket)
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusOK, "")
	b.expectCount(t, 1)
}

// A handler that is passed through skips its claim only if it is the same one.
func TestHandlersWithDifferentScopesEachRemember(t *testing.T) {
	b := newBackend(t, nil)
	scoped := func(scope string) string {
		return "buzzbip_webhook " + caddytest.Secret + " {\nscope " + scope + "\n}\n"
	}
	outer, inner := caddytest.NewID(), caddytest.NewID()
	s := start(t, "handle /both {\nroute {\n"+scoped(outer)+scoped(inner)+scoped(outer)+"reverse_proxy "+b.address()+"\n}\n}\nhandle {\n"+scoped(inner)+"reverse_proxy "+b.address()+"\n}")
	client, body := newClient(t, "HTTP/1.1"), caddytest.NewEvent()
	expect(t, send(client, signed(strings.Replace(s.url, "/webhooks/buzzbip", "/both", 1), body)), http.StatusOK, "")
	expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
	b.expectCount(t, 1)
}

func TestEventThatAHandlerBehindRejectsIsStoredAsItArrived(t *testing.T) {
	for name, inner := range map[string]string{
		"signature": "buzzbip_webhook the-secret-of-another-webhook-entirely",
		"envelope":  "buzzbip_webhook " + caddytest.Secret + " {\nscope inner\n}",
	} {
		t.Run(name, func(t *testing.T) {
			eachProtocol(t, func(t *testing.T, client *http.Client) {
				b := newBackend(t, nil)
				outer := "buzzbip_webhook " + caddytest.Secret + " {\nenvelope lenient\norder_by conversation.id\n" + kept(t, "") + "\n}\n"
				s := start(t, "route {\n"+outer+inner+"\nreverse_proxy "+b.address()+"\n}")
				body := `{"id":"` + caddytest.NewID() + `","type":"message.received"}`
				expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultStored)
				s.reload("route {\n" + outer + "reverse_proxy " + b.address() + "\n}")
				if got := caddytest.Receive(t, b.arrived, "the event"); got.body != body {
					t.Errorf("got %q", got.body)
				}
				waitForEmptyInbox(t)
			})
		})
	}
}

// waitForEmptyInboxes is waitForEmptyInbox for several.
func waitForEmptyInboxes(t testing.TB) {
	t.Helper()
	caddytest.WaitFor(t, "the inboxes to be empty", func() bool {
		return !slices.ContainsFunc(running().inboxes(), func(h *Handler) bool { return h.inbox.Stats().Waiting > 0 })
	})
}

func TestEventInAnInboxBehindAnotherHandlerIsDelivered(t *testing.T) {
	for name, outer := range map[string]string{
		"store":       "",
		"inbox":       kept(t, ""),
		"dedupe off":  "dedupe off",
		"enforce off": "enforce off",
	} {
		t.Run(name, func(t *testing.T) {
			eachProtocol(t, func(t *testing.T, client *http.Client) {
				b, working := failing(t, http.StatusInternalServerError)
				s := start(t, "route {\nbuzzbip_webhook "+caddytest.Secret+" {\n"+outer+"\n}\n"+proxied(b, "scope inner\n"+kept(t, ""))+"\n}")
				body := caddytest.NewEvent()
				expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultStored)
				caddytest.WaitFor(t, "a redelivery", func() bool { return b.count() > 1 })
				working.Store(true)
				waitForEmptyInboxes(t)
				expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
			})
		})
	}
}

// The inner handler stores it while the outer one delivers it again.
func TestSlowBackendBehindTwoInboxesGetsTheEventOnce(t *testing.T) {
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		release := make(chan struct{})
		b := newBackend(t, func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		})
		s := start(t, "route {\nbuzzbip_webhook "+caddytest.Secret+" {\n"+kept(t, "accept always")+"\n}\n"+
			proxied(b, "scope inner\nanswer_within 50ms\n"+kept(t, ""))+"\n}")
		expect(t, send(client, signed(s.url, caddytest.NewEvent())), http.StatusOK, webhook.ResultStored)
		caddytest.Receive(t, b.arrived, "the event")
		caddytest.WaitFor(t, "the event to be in the inner inbox alone", func() bool {
			for _, h := range running().inboxes() {
				if waits := h.inbox.Stats().Waiting == 1; waits != (h.Scope == "inner") {
					return false
				}
			}
			return true
		})
		close(release)
		waitForEmptyInboxes(t)
		b.expectCount(t, 1)
	})
}
