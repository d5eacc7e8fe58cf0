package buzzbip

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// copies is a handler that passes on a copy of the request.
type copies struct{}

func init() {
	caddy.RegisterModule(copies{})
	httpcaddyfile.RegisterHandlerDirective("copies", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		h.Next()
		return copies{}, nil
	})
	httpcaddyfile.RegisterDirectiveOrder("copies", httpcaddyfile.Before, "basic_auth")
}

func (copies) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.copies", New: func() caddy.Module { return new(copies) }}
}

func (copies) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	return next.ServeHTTP(w, r.WithContext(r.Context()))
}

// handlersBefore are handlers that others put before ours, by name.
func handlersBefore(t *testing.T) map[string]string {
	t.Setenv("OTEL_TRACES_EXPORTER", "none")
	auth := newBackend(t, nil)
	return map[string]string{
		"nothing":      "",
		"a copier":     "copies",
		"tracing":      "tracing",
		"forward_auth": "forward_auth " + auth.address() + " {\nuri /\n}",
		"timeouts":     "timeouts {\nread_timeout 30s\n}",
	}
}

// errorPages is a backend for error pages, and the error routes that proxy to
// it. It answers 200, which is not what the sender is to get.
func errorPages(t *testing.T) (*backend, string) {
	pages := newBackend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "error page") })
	return pages, "handle_errors {\nreverse_proxy " + pages.address() + " {\nheader_up X-Body {http.request.body}\n}\n}"
}

func TestErrorRoutesGetNoBodyOfARejectedRequest(t *testing.T) {
	b := newBackend(t, nil)
	pages, routes := errorPages(t)
	rejections := map[webhook.Reason]func(r *http.Request){
		webhook.ReasonMethodNotAllowed:   func(r *http.Request) { r.Method = http.MethodPut },
		webhook.ReasonSignatureMissing:   func(r *http.Request) { r.Header.Del(webhook.SignatureHeader) },
		webhook.ReasonSignatureMalformed: func(r *http.Request) { r.Header.Set(webhook.SignatureHeader, "none") },
		webhook.ReasonSignatureMismatch:  func(r *http.Request) { r.Header.Set(webhook.SignatureHeader, strings.Repeat("0", 64)) },
		webhook.ReasonBodyTooLarge: func(r *http.Request) {
			r.ContentLength = -1
			r.Body = io.NopCloser(strings.NewReader(strings.Repeat("x", 2000)))
		},
		webhook.ReasonEnvelopeInvalid: func(r *http.Request) {
			r.Header.Set(webhook.SignatureHeader, caddytest.Sign("{}"))
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader("{}")), 2
		},
		webhook.ReasonEventStale: func(r *http.Request) {
			body := caddytest.Event{Created: time.Now().Add(-time.Hour)}.Body()
			r.Header.Set(webhook.SignatureHeader, caddytest.Sign(body))
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		},
	}
	verified := proxied(b, "max_body_size 1KiB\nmax_age 10m")
	for name, before := range handlersBefore(t) {
		for place, site := range map[string]func(s *site){
			"site": func(s *site) { s.reload("route {\n" + before + "\n" + verified + "\n}\n" + routes) },
			"named": func(s *site) {
				s.named = "&(hook) {\nroute {\n" + before + "\n" + verified + "\n}\n}"
				s.reload("invoke hook\n" + routes)
			},
		} {
			s := start(t, "respond gone 404")
			site(s)
			for _, protocol := range protocols {
				client := newClient(t, protocol)
				for reason, reject := range rejections {
					t.Run(fmt.Sprintf("%s/%s/%s/%s", name, place, protocol, reason), func(t *testing.T) {
						r := signed(s.url, caddytest.NewEvent())
						reject(r)
						got := send(client, r)
						if got.err != nil || got.status != reason.Status() || got.body != "error page" {
							t.Errorf("answered %d %q (%v), want %d and the page", got.status, got.body, got.err, reason.Status())
						}
						if page := caddytest.Receive(t, pages.arrived, "the error route"); page.body != "" || page.Header.Get("X-Body") != "" {
							t.Errorf("the error route got %q, and %q as a placeholder", page.body, page.Header.Get("X-Body"))
						}
					})
				}
			}
			if strings.Contains(s.logs(), "error handling handler error") {
				t.Errorf("the error routes failed: %s", s.logs())
			}
		}
	}
	b.expectCount(t, 0)
}

func TestErrorRoutesGetNoBodyOfADuplicateThatWaited(t *testing.T) {
	release := make(chan struct{})
	b := newBackend(t, func(w http.ResponseWriter, r *http.Request) { <-release })
	pages, routes := errorPages(t)
	client := newClient(t, "HTTP/1.1")
	s := start(t, proxied(b, "answer_within 10ms")+"\n"+routes)
	body := caddytest.NewEvent()
	first := sendAsync(client, signed(s.url, body))
	caddytest.Receive(t, b.arrived, "the delivery")
	got := send(client, signed(s.url, body))
	expect(t, got, http.StatusServiceUnavailable, webhook.ResultInFlight)
	if page := caddytest.Receive(t, pages.arrived, "the error route"); page.body != "" || got.body != "error page" {
		t.Errorf("the error route got %q, the sender %q", page.body, got.body)
	}
	close(release)
	expect(t, caddytest.Receive(t, first, "the delivery"), http.StatusOK, "")
}

// What a backend did not take, an error route may keep.
func TestErrorRoutesGetTheBodyOfAFailedDelivery(t *testing.T) {
	b := newBackend(t, nil)
	b.Close()
	pages, routes := errorPages(t)
	for name, before := range handlersBefore(t) {
		for failure, handler := range map[string]string{
			"unreachable": "reverse_proxy " + b.address(),
			"unhandled":   "",
			"timeout":     "odd wait_and_fail",
		} {
			t.Run(name+"/"+failure, func(t *testing.T) {
				s := start(t, "route {\n"+before+"\nbuzzbip_webhook "+caddytest.Secret+" {\ndelivery_timeout 50ms\n}\n"+handler+"\n}\n"+routes)
				body := caddytest.NewEvent()
				got := send(newClient(t, "HTTP/1.1"), signed(s.url, body))
				if got.status < 500 || got.body != "error page" {
					t.Errorf("answered %d %q (%v), want the page and a status that is retried", got.status, got.body, got.err)
				}
				if page := caddytest.Receive(t, pages.arrived, "the error route"); page.body != body || page.Header.Get("X-Body") != body {
					t.Errorf("the error route got %q, and %q as a placeholder", page.body, page.Header.Get("X-Body"))
				}
			})
		}
	}
}

func TestErrorRoutesDoNotAcknowledge(t *testing.T) {
	s := start(t, "buzzbip_webhook "+caddytest.Secret+"\nerror teapot 418\nhandle_errors {\nrespond \"all is well\" 200\n}")
	body := caddytest.NewEvent()
	for range 2 {
		if got := send(newClient(t, "HTTP/1.1"), signed(s.url, body)); got.status != http.StatusTeapot || got.body != "all is well" {
			t.Errorf("answered %d %q", got.status, got.body)
		}
	}
}

func TestHandlerInErrorRoutesDeliversToAnotherBackend(t *testing.T) {
	down, backup := newBackend(t, nil), newBackend(t, nil)
	down.Close()
	s := start(t, proxied(down, "")+"\nhandle_errors {\n"+proxied(backup, "")+"\n}")
	client, body := newClient(t, "HTTP/1.1"), caddytest.NewEvent()
	expect(t, send(client, signed(s.url, body)), http.StatusOK, "")
	expect(t, send(client, signed(s.url, body)), http.StatusOK, webhook.ResultDuplicate)
	if got := caddytest.Receive(t, backup.arrived, "the delivery"); got.body != body {
		t.Errorf("the backend got %q", got.body)
	}
	backup.expectCount(t, 1)
	if strings.Contains(s.logs(), "error handling handler error") {
		t.Errorf("the error routes failed: %s", s.logs())
	}
}

// JSON configurations may have error routes in a subroute.
func TestErrorRoutesOfASubrouteAreGuarded(t *testing.T) {
	pages := newBackend(t, nil)
	stopAtEnd(t)
	port := caddytest.FreePort(t)
	config := string(adapt(t, fmt.Sprintf(`%s
		https://localhost:%d {
			tls %s %s
			route {
				copies
				buzzbip_webhook %s
			}
		}`, testOptions, port, certFile, keyFile, caddytest.Secret)))
	const subroute = `{"handler":"subroute",`
	before, after, found := strings.Cut(config, subroute)
	if !found {
		t.Fatalf("no subroute in %s", config)
	}
	config = before + subroute + `"errors":{"routes":[{"handle":[{"handler":"reverse_proxy","upstreams":[{"dial":"` + pages.address() + `"}]}]}]},` + after
	if err := caddy.Load([]byte(config), true); err != nil {
		t.Fatal(err)
	}
	r := signed(fmt.Sprintf("https://localhost:%d/", port), caddytest.NewEvent())
	r.Header.Del(webhook.SignatureHeader)
	expect(t, send(newClient(t, "HTTP/1.1"), r), http.StatusUnauthorized, "")
	if page := caddytest.Receive(t, pages.arrived, "the error route"); page.body != "" {
		t.Errorf("the error route got %q", page.body)
	}
}

// The error routes of one site must not depend on those of another.
func TestHandlerInErrorRoutesOfOneSiteLeavesThoseOfOthersAlone(t *testing.T) {
	b := newBackend(t, nil)
	for _, order := range []string{"first", "last"} {
		t.Run(order, func(t *testing.T) {
			s := start(t, "respond gone 404")
			other := fmt.Sprintf("http://127.0.0.1:%d {\nerror teapot 418\nhandle_errors {\nrespond page\n}\n}", caddytest.FreePort(t))
			s.named = other
			failover := "error teapot 418\nhandle_errors {\n" + proxied(b, "") + "\n}"
			if order == "last" {
				failover = "handle /main {\n" + proxied(b, "") + "\n}\n" + failover
			}
			s.reload(failover)
			client := newClient(t, "HTTP/1.1")
			expect(t, send(client, signed(s.url, caddytest.NewEvent())), http.StatusOK, "")
			caddytest.Receive(t, b.arrived, "the delivery")
			got := send(http.DefaultClient, signed(strings.Fields(other)[0], "{}"))
			http.DefaultClient.CloseIdleConnections()
			if got.status != http.StatusTeapot || got.body != "page" {
				t.Errorf("the other site answered %d %q", got.status, got.body)
			}
		})
	}
}

// errorsInJSON starts a site with a named route and adds error routes to its
// JSON, which a Caddyfile would put into a subroute.
func errorsInJSON(t *testing.T, route, member string) (url string, err error) {
	t.Helper()
	stopAtEnd(t)
	port := caddytest.FreePort(t)
	config := string(adapt(t, fmt.Sprintf(`%s
		&(hook) {
			route {
				%s
			}
		}
		https://localhost:%d {
			tls %s %s
			invoke hook
		}`, testOptions, route, port, certFile, keyFile)))
	before, after, found := strings.Cut(config, member)
	if !found {
		t.Fatalf("no %s in %s", member, config)
	}
	pages := newBackend(t, func(_ http.ResponseWriter, r *http.Request) {
		if body, _ := io.ReadAll(r.Body); len(body) > 0 {
			t.Errorf("the error route got %q", body)
		}
	})
	config = before + member + `"errors":{"routes":[{"handle":[{"handler":"reverse_proxy","upstreams":[{"dial":"` + pages.address() + `"}]}]}]},` + after
	return fmt.Sprintf("https://localhost:%d/", port), caddy.Load([]byte(config), true)
}

func TestErrorRoutesOfASubrouteThatInvokesANamedRouteAreGuarded(t *testing.T) {
	url, err := errorsInJSON(t, "copies\nbuzzbip_webhook "+caddytest.Secret, `{"handler":"subroute",`)
	if err != nil {
		t.Fatal(err)
	}
	r := signed(url, caddytest.NewEvent())
	r.Header.Del(SignatureHeader)
	expect(t, send(newClient(t, "HTTP/1.1"), r), http.StatusUnauthorized, "")
}

func TestErrorRoutesThatCannotBeGuardedFailTheLoad(t *testing.T) {
	_, err := errorsInJSON(t, "buzzbip_webhook "+caddytest.Secret, `"srv0":{`)
	if err == nil || !strings.Contains(err.Error(), "must have their handlers in a subroute") {
		t.Errorf("the error is %v", err)
	}
}

func TestErrorWithASuccessfulStatusDoesNotAcknowledge(t *testing.T) {
	for _, status := range []string{"200", "204", "101"} {
		for _, routes := range []string{"", "\nhandle_errors {\nrespond page\n}"} {
			s := start(t, "route {\nbuzzbip_webhook "+caddytest.Secret+"\nerror fine "+status+"\n}"+routes)
			if got := send(newClient(t, "HTTP/1.1"), signed(s.url, caddytest.NewEvent())); got.status != http.StatusBadGateway {
				t.Errorf("an error with status %s was answered %d (%v)", status, got.status, got.err)
			}
		}
	}
}

// A second handler, for failed deliveries, has nothing to say of what the first
// one rejected.
func TestHandlerInErrorRoutesKeepsTheReasonOfTheFirst(t *testing.T) {
	backup := newBackend(t, nil)
	s := start(t, "log {\noutput test\n}\n"+proxied(backup, "max_age 1h")+"\nhandle_errors {\n"+proxied(backup, "")+"\n}")
	body := caddytest.Event{Created: caddytest.DocumentedTime}.Body()
	if got := send(newClient(t, "HTTP/1.1"), signed(s.url, body)); got.status != http.StatusForbidden {
		t.Errorf("answered %d (%v)", got.status, got.err)
	}
	caddytest.WaitFor(t, "the access log", func() bool { return strings.Contains(s.logs(), `"buzzbip_reason"`) })
	if log := s.logs(); strings.Contains(log, "signature_m") || !strings.Contains(log, `"buzzbip_reason":"event_stale"`) {
		t.Errorf("the log says: %s", log)
	}
	backup.expectCount(t, 0)
}

func TestErrorRoutesKeepTheEventOfASenderThatDisconnected(t *testing.T) {
	pages, routes := errorPages(t)
	eachProtocol(t, func(t *testing.T, client *http.Client) {
		release := make(chan struct{})
		b := newBackend(t, func(w http.ResponseWriter, r *http.Request) {
			<-release
			panic(http.ErrAbortHandler)
		})
		s := start(t, watched(b, "")+"\n"+routes)
		body := caddytest.NewEvent()
		disconnect(t, client, signed(s.url, body), b)
		close(release)
		if page := caddytest.Receive(t, pages.arrived, "the error route"); page.body != body {
			t.Errorf("the error route got %q", page.body)
		}
	})
}
