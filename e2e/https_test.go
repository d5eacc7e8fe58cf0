package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// webhookName and webhookURL are those of the examples, and what BuzzBip would
// be given. Nobody looks the name up: each client knows where to connect to.
const (
	webhookName = "hooks.example.com"
	webhookURL  = "https://" + webhookName + "/webhooks/buzzbip"
)

// example returns a file of the examples, with pairs of old and new replaced.
func example(t *testing.T, name string, replacements ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "examples", name))
	if err != nil {
		t.Fatal(err)
	}
	return caddytest.Replace(t, string(text), replacements...)
}

// authority is a Caddy that issues certificates over ACME.
type authority struct {
	*caddytest.Caddy
	directory  string
	rootFile   string
	root       *x509.CertPool
	validated  atomic.Int64 // challenges that were answered
	subscriber string       // where the subscriber serves plain HTTP, on loopback
}

// startAuthority starts an authority that validates names at an address.
//
// An authority connects to port 80 of the address that DNS has for the name. A
// test may have neither, so the authority goes by a proxy that has: it stands for
// DNS and for that port, and for nothing else. What is asked and answered is what
// would be.
func startAuthority(t *testing.T, subscriber string) *authority {
	t.Helper()
	a := &authority{subscriber: subscriber}
	forward := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.Host = r.In.Host },
		Transport: &http.Transport{DialContext: dialTo(subscriber), DisableKeepAlives: true},
		ModifyResponse: func(res *http.Response) error {
			if res.StatusCode == http.StatusOK {
				a.validated.Add(1)
			}
			return nil
		},
	}
	port80 := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Host != webhookName || !strings.HasPrefix(r.URL.Path, "/.well-known/acme-challenge/") {
			t.Errorf("the authority asked for %s", r.URL)
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(port80.Close)

	data, address := t.TempDir(), caddytest.FreeAddress(t)
	a.directory = "https://" + address + "/acme/local/directory"
	a.Caddy = caddytest.Start(t, data, "\tdefault_bind 127.0.0.1\n\tauto_https disable_redirects", fmt.Sprintf(`
https://%s {
	tls internal
	log
	acme_server {
		challenges http-01
	}
}`, address), "HTTP_PROXY="+port80.URL, "NO_PROXY=", "no_proxy=")

	a.rootFile = filepath.Join(data, "caddy", "pki", "authorities", "local", "root.crt")
	pemText, err := os.ReadFile(a.rootFile)
	if err != nil {
		t.Fatal(err)
	}
	a.root = x509.NewCertPool()
	if !a.root.AppendCertsFromPEM(pemText) {
		t.Fatal("the root of the authority is no certificate")
	}
	// a subscriber that is turned away tries again only after a minute
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.root}}}
	t.Cleanup(client.CloseIdleConnections)
	caddytest.WaitFor(t, "the authority to serve", func() bool {
		res, err := client.Get(a.directory)
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return a
}

// answered returns how often a request was answered with a status. The path is
// that of the request, or a pattern.
func (a *authority) answered(path string, status int) (n int) {
	for _, entry := range a.Entries() {
		request, ok := entry["request"].(map[string]any)
		if !ok || entry["status"] != float64(status) {
			continue
		}
		if matched, _ := filepath.Match(path, fmt.Sprint(request["uri"])); matched {
			n++
		}
	}
	return n
}

// dialTo returns a dialer that connects to an address, whatever it is asked for.
func dialTo(address string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
}

// newSender returns a client that trusts the roots only, speaks one version of
// HTTP only, and follows no redirects.
func newSender(t *testing.T, version, address string, roots *x509.CertPool) *http.Client {
	t.Helper()
	trust := &tls.Config{RootCAs: roots}
	client := &http.Client{
		Timeout:       caddytest.Patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if version == "HTTP/3.0" {
		transport := &http3.Transport{
			TLSClientConfig: trust,
			Dial: func(ctx context.Context, _ string, tlsConfig *tls.Config, config *quic.Config) (*quic.Conn, error) {
				return quic.DialAddr(ctx, address, tlsConfig, config)
			},
		}
		t.Cleanup(func() { transport.Close() })
		client.Transport = transport
		return client
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(version == "HTTP/1.1")
	protocols.SetHTTP2(version == "HTTP/2.0")
	client.Transport = &http.Transport{DialContext: dialTo(address), TLSClientConfig: trust, Protocols: protocols}
	t.Cleanup(client.CloseIdleConnections)
	return client
}

// post sends a signed event.
func post(client *http.Client, url, body string) (*http.Response, error) {
	r, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("X-BuzzBip-Signature", caddytest.Sign(body))
	res, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return res, err
}

// The certificate comes from an authority that has never heard of the site,
// over ACME, as it does from a public one.
func TestAutomaticHTTPS(t *testing.T) {
	b := caddytest.NewBackend(t, nil)
	httpPort, httpsPort := caddytest.FreePort(t), caddytest.FreePort(t)
	plain, secure := fmt.Sprint("127.0.0.1:", httpPort), fmt.Sprint("127.0.0.1:", httpsPort)
	a := startAuthority(t, plain)
	data := t.TempDir()
	_, config, _ := strings.Cut(example(t, "existing-backend/Caddyfile", "127.0.0.1:9000", b.Address()), "\n{\n")
	globals, sites, found := strings.Cut(config, "\n}\n")
	if !found {
		t.Fatal("the example has no global options")
	}
	caddytest.Start(t, data, fmt.Sprintf(`
	default_bind 127.0.0.1
	http_port %d
	https_port %d
	acme_ca %s
	acme_ca_root %s
%s`, httpPort, httpsPort, a.directory, a.rootFile, globals), sites, "BUZZBIP_SECRET="+caddytest.Secret)
	// it is logged before it is served
	caddytest.WaitFor(t, "the certificate", func() bool {
		conn, err := tls.Dial("tcp", secure, &tls.Config{RootCAs: a.root, ServerName: webhookName})
		if err != nil {
			return false
		}
		conn.Close()
		return true
	})
	versions := []string{"HTTP/1.1", "HTTP/2.0", "HTTP/3.0"}

	// What is served is what was stored, and what was stored is what the authority
	// handed out at the end of an order.
	t.Run("the certificate was ordered from the authority", func(t *testing.T) {
		conn, err := tls.Dial("tcp", secure, &tls.Config{RootCAs: a.root, ServerName: webhookName})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		served := conn.ConnectionState().VerifiedChains[0][0]

		found, err := filepath.Glob(filepath.Join(data, "caddy", "certificates", "*", webhookName, webhookName+".json"))
		if err != nil || len(found) != 1 {
			t.Fatalf("stored are %q, %v", found, err)
		}
		var stored struct {
			Issuer struct {
				URL string
				CA  string
			} `json:"issuer_data"`
		}
		about, err := os.ReadFile(found[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(about, &stored); err != nil {
			t.Fatal(err)
		}
		chain, err := os.ReadFile(strings.TrimSuffix(found[0], ".json") + ".crt")
		if err != nil {
			t.Fatal(err)
		}
		leaf, _ := pem.Decode(chain)
		if leaf == nil || !bytes.Equal(leaf.Bytes, served.Raw) {
			t.Error("the certificate that is served is not the stored one")
		}
		if stored.Issuer.CA != a.directory {
			t.Errorf("it is from %q, want %q", stored.Issuer.CA, a.directory)
		}
		from, err := url.Parse(stored.Issuer.URL)
		if err != nil {
			t.Fatal(err)
		}
		// the last entry of the access log is written after its answer
		caddytest.WaitFor(t, "the log of the authority", func() bool { return a.answered(from.Path, http.StatusOK) > 0 })
		for _, step := range []struct {
			path   string
			status int
		}{
			{"/acme/local/new-account", http.StatusCreated},
			{"/acme/local/new-order", http.StatusCreated},
			{"/acme/local/order/*/finalize", http.StatusOK},
			{from.Path, http.StatusOK},
		} {
			if n := a.answered(step.path, step.status); n != 1 {
				t.Errorf("the authority answered %s with %d %d times, want once", step.path, step.status, n)
			}
		}
		if n := a.validated.Load(); n != 1 {
			t.Errorf("the authority validated the name %d times, want once", n)
		}
	})

	for i, version := range versions {
		t.Run(version+" delivers", func(t *testing.T) {
			body := caddytest.NewEvent()
			// the first sends the event, and all send it again
			for j := range len(versions) + 1 {
				via := versions[(i+j)%len(versions)]
				res, err := post(newSender(t, via, secure, a.root), webhookURL, body)
				if err != nil {
					t.Fatal(err)
				}
				result := ""
				if j > 0 {
					result = "duplicate"
				}
				if res.Proto != via || res.StatusCode != http.StatusOK || res.Header.Get("X-BuzzBip-Result") != result {
					t.Errorf("over %s: answered over %s with %s %q, want 200 %q", via, res.Proto, res.Status, res.Header.Get("X-BuzzBip-Result"), result)
				}
				if n := b.Count(body); n != 1 {
					t.Errorf("after %s the backend has the event %d times, want once", via, n)
				}
			}
		})
	}

	t.Run("a sender that does not trust the authority sends nothing", func(t *testing.T) {
		for _, version := range versions {
			body := caddytest.NewEvent()
			res, err := post(newSender(t, version, secure, x509.NewCertPool()), webhookURL, body)
			if unknown := new(x509.UnknownAuthorityError); !errors.As(err, unknown) {
				t.Errorf("%s: answered %v, %v", version, res, err)
			}
			if n := b.Count(body); n != 0 {
				t.Errorf("%s: the backend got it %d times", version, n)
			}
		}
	})

	t.Run("plain HTTP is redirected", func(t *testing.T) {
		body := caddytest.NewEvent()
		client := newSender(t, "HTTP/1.1", plain, a.root)
		res, err := post(client, strings.Replace(webhookURL, "https", "http", 1), body)
		if err != nil {
			t.Fatal(err)
		}
		// Caddy takes its own https_port for the port that the world sees as 443.
		if res.StatusCode != http.StatusPermanentRedirect || res.Header.Get("Location") != webhookURL {
			t.Errorf("answered %s to %q", res.Status, res.Header.Get("Location"))
		}
		if n := b.Count(body); n != 0 {
			t.Errorf("the backend got it %d times", n)
		}
		// nor is it remembered
		res, err = post(newSender(t, "HTTP/2.0", secure, a.root), webhookURL, body)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != http.StatusOK || res.Header.Get("X-BuzzBip-Result") != "" || b.Count(body) != 1 {
			t.Errorf("over HTTPS: answered %s %q, delivered %d times", res.Status, res.Header.Get("X-BuzzBip-Result"), b.Count(body))
		}
	})
}
