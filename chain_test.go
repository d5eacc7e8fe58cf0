package buzzbip

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// A handler that verifies and deduplicates, and gives up soon.
const impatient = "buzzbip_webhook {\nsecret " + caddytest.Secret + "\nduplicate_wait 50ms\n}\n"

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
	s.named = fmt.Sprintf("%s {\n%s\nbuzzbip_webhook %s {\nduplicate_wait 50ms\n}\nreverse_proxy %s\n}", inner, globals, caddytest.Secret, b.address())
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

// An outer and an inner Caddy, or something between two sites of one, cannot be
// known as a chain.
func TestChainThatIsNotKnownIsNamedInTheLog(t *testing.T) {
	b := newBackend(t, nil)
	s := start(t, "respond gone 404")
	inner, between := caddytest.FreeAddress(t), caddytest.FreeAddress(t)
	s.named = fmt.Sprintf("http://%s {\n%s\nreverse_proxy %s\n}\nhttp://%s {\nreverse_proxy %s {\nheader_up Host {upstream_hostport}\n}\n}", inner, impatient, b.address(), between, inner)
	s.reload(impatient + "reverse_proxy " + between + " {\nheader_up Host {upstream_hostport}\n}")
	expect(t, send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())), http.StatusServiceUnavailable, webhook.ResultInFlight)
	if !strings.Contains(s.logs(), "another buzzbip_webhook with the same scope and store") {
		t.Errorf("no word of it in the log: %s", s.logs())
	}
	b.expectCount(t, 0)
}

// addressed is a connection between two addresses.
type addressed struct {
	net.Conn
	local, remote *net.TCPAddr
}

func (a addressed) LocalAddr() net.Addr  { return a.local }
func (a addressed) RemoteAddr() net.Addr { return a.remote }

// The kernel gives a local port to several connections with different
// destinations: one to the backend, and one that a duplicate arrives over.
func TestDuplicateFromThePortOfTheDeliveryIsNoPartOfTheChain(t *testing.T) {
	port, site, backend := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 40000}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 443}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9000}
	event := &dedupe.Request{Scope: caddytest.NewID()}
	r := signed("https://localhost/", "{}")
	r.RemoteAddr = port.String()
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, site))
	for _, test := range []struct {
		to   *net.TCPAddr
		want bool
	}{{backend, false}, {site, true}} {
		var conn net.Conn = addressed{local: port, remote: test.to}
		s := new(sending)
		s.conn.Store(&conn)
		chains.add(event, s)
		if got := chains.lead(r, event); got != test.want {
			t.Errorf("a delivery over a connection to %s leads here: %v", test.to, got)
		}
		chains.remove(event, s)
	}
}
