package buzzbip

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/quic-go/quic-go/http3"
	"go.uber.org/goleak"
)

// The tests run a real Caddy in this process, in front of real backends, and
// look at what the sender and the backend see.

const testSecret = "test-secret-of-32-bytes-exactly!"

// patience is how long a test waits for what must happen; it never decides
// whether a test passes on a slow machine.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	data, err := os.MkdirTemp("", "caddy-webhook-test")
	if err != nil {
		log.Fatal(err)
	}
	os.Setenv("XDG_DATA_HOME", data)
	os.Setenv("XDG_CONFIG_HOME", data)
	if err := writeCertificate(data); err != nil {
		log.Fatal(err)
	}
	background := goleak.IgnoreCurrent()
	code := m.Run()
	if code == 0 {
		if err := findLeaks(background); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.RemoveAll(data)
	os.Exit(code)
}

// findLeaks gives the servers that Caddy stops in the background time to end.
func findLeaks(background goleak.Option) (err error) {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		// a connection that was dialed but not needed joins the idle ones late
		for _, transport := range transports {
			transport.CloseIdleConnections()
		}
		// it ends by itself, up to 5 seconds after a lock was released
		err = goleak.Find(background, goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"))
		if err == nil {
			return nil
		}
	}
	return err
}

// certFile and keyFile are a certificate for localhost.
var certFile, keyFile string

func writeCertificate(dir string) error {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotAfter:     time.Now().Add(24 * time.Hour),
		DNSNames:     []string{"localhost"},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	return errors.Join(
		os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600),
	)
}

// site is a running Caddy with one site under test.
type site struct {
	t      testing.TB
	url    string
	server string // members of the server's JSON
	named  string // named routes
}

// start runs Caddy with the directives as those of a site that is served over
// HTTPS.
func start(t testing.TB, directives string) *site {
	t.Helper()
	s := &site{t: t}
	logged.Lock()
	logged.text.Reset()
	logged.Unlock()
	stopAtEnd(t)
	s.reload(directives)
	return s
}

// stopAtEnd stops Caddy when the test has ended.
func stopAtEnd(t testing.TB) {
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Errorf("stopping Caddy: %v", err)
		}
	})
}

// reload replaces the site's directives and fails the test if that fails.
func (s *site) reload(directives string) {
	s.t.Helper()
	if err := s.tryReload(directives); err != nil {
		s.t.Fatalf("loading: %v", err)
	}
}

// tryReload replaces the site's directives. The site moves to another port: at
// the same one, the configuration before it would serve requests for a moment
// longer.
func (s *site) tryReload(directives string) error {
	s.t.Helper()
	port := freePort(s.t)
	config := adapt(s.t, fmt.Sprintf(`
		%s
		%s
		https://localhost:%d {
			tls %s %s
			%s
		}`, testOptions, s.named, port, certFile, keyFile, directives))
	config = bytes.Replace(config, []byte(`"listen"`), []byte(s.server+`"listen"`), 1)
	err := caddy.Load(config, true)
	if err == nil {
		s.url = fmt.Sprintf("https://localhost:%d/webhooks/buzzbip", port)
	}
	return err
}

// testOptions keeps Caddy from what no test is about.
const testOptions = `{
	admin off
	persist_config off
	auto_https off
	log {
		output test
		level WARN
	}
}
`

// adapt turns a Caddyfile into JSON.
func adapt(t testing.TB, config string) []byte {
	t.Helper()
	adapted, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(config), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		t.Fatalf("adapting: %v", err)
	}
	for _, w := range warnings {
		if !strings.Contains(w.Message, "not formatted") {
			t.Errorf("adapting: %s", w.Message)
		}
	}
	return adapted
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// protocols are the versions of HTTP that senders use.
var protocols = []string{"HTTP/1.1", "HTTP/2.0", "HTTP/3.0"}

// eachProtocol runs a test as a sender of each version.
func eachProtocol(t *testing.T, test func(t *testing.T, client *http.Client)) {
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) { test(t, newClient(t, protocol)) })
	}
}

func newClient(t testing.TB, protocol string) *http.Client {
	config := &tls.Config{InsecureSkipVerify: true}
	client := &http.Client{Timeout: patience}
	if protocol == "HTTP/3.0" {
		transport := &http3.Transport{TLSClientConfig: config}
		t.Cleanup(func() { transport.Close() })
		client.Transport = requireProtocol{t, transport, protocol}
		return client
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: protocol == "HTTP/2.0"}
	if protocol == "HTTP/1.1" {
		transport.TLSNextProto = make(map[string]func(string, *tls.Conn) http.RoundTripper)
	}
	transports = append(transports, transport)
	t.Cleanup(transport.CloseIdleConnections)
	client.Transport = requireProtocol{t, transport, protocol}
	return client
}

// transports are those of all clients so far.
var transports []*http.Transport

// requireProtocol fails the test if a response came over another protocol.
type requireProtocol struct {
	t testing.TB
	http.RoundTripper
	protocol string
}

func (rp requireProtocol) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := rp.RoundTripper.RoundTrip(r)
	if err == nil && res.Proto != rp.protocol {
		rp.t.Errorf("answered over %s, want %s", res.Proto, rp.protocol)
	}
	return res, err
}

// newID returns an event id that no other test uses: ids are remembered for as
// long as the process lives.
func newID() string {
	idCount.Lock()
	defer idCount.Unlock()
	idCount.n++
	return fmt.Sprintf("evt_%08d", idCount.n)
}

var idCount struct {
	sync.Mutex
	n int
}

// eventBody returns the body of an event, as BuzzBip documents it.
func eventBody(id string) string {
	return fmt.Sprintf(`{"id":%q,"type":"message.received","createdAt":%q,"data":{"text":"hello","conversation":{"id":"cnv_1"},"tags":["a","b"]}}`,
		id, time.Now().UTC().Format(time.RFC3339))
}

func signature(secret, body string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	return hex.EncodeToString(mac.Sum(nil))
}

// signed returns a request as BuzzBip sends it.
func signed(url, body string) *http.Request {
	r, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(webhook.SignatureHeader, signature(testSecret, body))
	return r
}

// response is what a sender got, or why it got nothing.
type response struct {
	status int
	header http.Header
	body   string
	err    error
}

// result is the result that the response names.
func (r response) result() string { return r.header.Get(webhook.ResultHeader) }

func send(client *http.Client, r *http.Request) response {
	res, err := client.Do(r)
	if err != nil {
		return response{err: err}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return response{status: res.StatusCode, header: res.Header, body: string(body), err: err}
}

// sendAsync sends and returns where the response will be.
func sendAsync(client *http.Client, r *http.Request) <-chan response {
	got := make(chan response, 1)
	go func() { got <- send(client, r) }()
	return got
}

// expect fails the test unless the response has a status and a result.
func expect(t testing.TB, got response, status int, result webhook.Result) {
	t.Helper()
	if got.err != nil {
		t.Fatalf("no answer: %v", got.err)
	}
	if got.status != status || got.result() != string(result) {
		t.Fatalf("answered %d %q %s, want %d %q", got.status, got.result(), got.body, status, result)
	}
}

// await returns the next value of a channel.
func await[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("timed out waiting for %s", what)
		panic("unreachable")
	}
}

// backend is a server behind Caddy. It notes what arrives and answers with
// 200, or as its handler does.
type backend struct {
	*httptest.Server
	mu       sync.Mutex
	requests []received
	arrived  chan received // has room for all that a test sends
}

type received struct {
	*http.Request
	body string
}

func newBackend(t testing.TB, handler http.HandlerFunc) *backend {
	b := &backend{arrived: make(chan received, 1000)}
	b.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("backend: reading the body: %v", err)
		}
		got := received{r, string(body)}
		b.mu.Lock()
		b.requests = append(b.requests, got)
		b.mu.Unlock()
		b.arrived <- got
		if handler != nil {
			r.Body = io.NopCloser(bytes.NewReader(body))
			handler(w, r)
		}
	}))
	b.Config.ErrorLog = log.New(io.Discard, "", 0) // handlers panic on purpose
	b.Start()
	t.Cleanup(b.Close)
	return b
}

func (b *backend) address() string { return b.Listener.Addr().String() }

func (b *backend) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.requests)
}

func (b *backend) expectCount(t testing.TB, want int) {
	t.Helper()
	if got := b.count(); got != want {
		t.Fatalf("the backend got %d requests, want %d", got, want)
	}
}

// proxied is a site that verifies, deduplicates and passes on.
func proxied(b *backend, options string) string {
	return fmt.Sprintf(`
		buzzbip_webhook %s {
			%s
		}
		reverse_proxy %s`, testSecret, options, b.address())
}

// logWriter is where Caddy logs to in tests.
type logWriter struct{}

var logged struct {
	sync.Mutex
	text strings.Builder
}

func init() { caddy.RegisterModule(logWriter{}) }

func (logWriter) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "caddy.logging.writers.test",
		New: func() caddy.Module { return new(logWriter) },
	}
}

func (*logWriter) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	return nil
}

func (logWriter) String() string                        { return "test" }
func (logWriter) WriterKey() string                     { return "test" }
func (w logWriter) OpenWriter() (io.WriteCloser, error) { return w, nil }
func (logWriter) Close() error                          { return nil }
func (logWriter) Write(line []byte) (int, error) {
	logged.Lock()
	defer logged.Unlock()
	return logged.text.Write(line)
}

// logs returns all that was logged, at warn and above, since the site started.
func (s *site) logs() string {
	logged.Lock()
	defer logged.Unlock()
	return logged.text.String()
}

// provision provisions a handler as Caddy does when it loads a configuration.
func provision(t testing.TB, h *Handler) {
	t.Helper()
	if err := tryProvision(t, h); err != nil {
		t.Fatalf("provisioning: %v", err)
	}
}

func tryProvision(t testing.TB, h *Handler) error {
	t.Helper()
	config, err := caddy.ProvisionContext(&caddy.Config{Admin: &caddy.AdminConfig{Disabled: true}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := caddy.NewContext(config)
	t.Cleanup(cancel)
	return h.Provision(ctx)
}

// serve passes a request through a handler that is not part of a server, and
// returns the result that placeholders show.
func serve(h *Handler, r *http.Request, next caddyhttp.HandlerFunc) (result string, err error) {
	w := httptest.NewRecorder()
	repl := caddy.NewReplacer()
	err = h.ServeHTTP(w, caddyhttp.PrepareRequest(r, repl, w, new(caddyhttp.Server)), next)
	return repl.ReplaceAll("{http.buzzbip_webhook.result}", ""), err
}
