package buzzbip

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
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

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"go.uber.org/goleak"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// The tests run a real Caddy in this process, in front of real backends, and
// look at what the sender and the backend see.

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
	for end := time.Now().Add(caddytest.Patience); time.Now().Before(end); {
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
	apps   string // members of the apps' JSON
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
		// handlers whose sender has disconnected may end after their server
		caddytest.WaitFor(t, "the memory of all events", func() bool { return underWay.total() == 0 })
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
	port := caddytest.FreePort(s.t)
	config := adapt(s.t, fmt.Sprintf(`
		%s
		%s
		https://localhost:%d {
			tls %s %s
			%s
		}`, testOptions, s.named, port, certFile, keyFile, directives))
	config = bytes.Replace(config, []byte(`"listen"`), []byte(s.server+`"listen"`), 1)
	config = bytes.Replace(config, []byte(`"apps":{`), []byte(`"apps":{`+s.apps), 1)
	err := caddy.Load(config, true)
	if err == nil {
		s.url = fmt.Sprintf("https://localhost:%d/webhooks/buzzbip", port)
	}
	return err
}

// testOptions turns off the parts of Caddy that no test is about.
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
	client := &http.Client{Timeout: caddytest.Patience}
	if protocol == "HTTP/3.0" {
		// the server may not notice that its client left, and waits for the idle
		// timeout that both agree on
		transport := &http3.Transport{TLSClientConfig: config, QUICConfig: &quic.Config{MaxIdleTimeout: 5 * time.Second, KeepAlivePeriod: time.Second}}
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

// signed returns a request as BuzzBip sends it.
func signed(url, body string) *http.Request {
	r, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(webhook.SignatureHeader, caddytest.Sign(body))
	return r
}

// response is what a sender got, or why it got nothing.
type response struct {
	status          int
	header, trailer http.Header
	body            string
	err             error
}

// deleteVarying deletes what may differ in two responses: the time, and a header that
// Caddy adds as soon as HTTP/3 is ready.
func deleteVarying(header http.Header) {
	header.Del("Date")
	header.Del("Alt-Svc")
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
	return response{status: res.StatusCode, header: res.Header, trailer: res.Trailer, body: string(body), err: err}
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

// backend is a server behind Caddy. It records the requests that arrive, and
// answers 200, or as its handler does.
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

// serveRaw runs a TCP server and returns its address.
func serveRaw(t *testing.T, handle func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var open []net.Conn
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, conn := range open {
			conn.Close()
		}
	})
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, conn)
			mu.Unlock()
			go func() {
				defer conn.Close()
				handle(conn)
			}()
		}
	}()
	return l.Addr().String()
}

// proxied is a site that verifies, deduplicates and passes on.
func proxied(b *backend, options string) string {
	return fmt.Sprintf(`
		buzzbip_webhook %s {
			%s
		}
		reverse_proxy %s`, caddytest.Secret, options, b.address())
}

// routed is a site with handlers before buzzbip_webhook and behind it, in this order.
func routed(before, options, behind string) string {
	return fmt.Sprintf("route {\n%s\nbuzzbip_webhook %s {\n%s\n}\n%s\n}", before, caddytest.Secret, options, behind)
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

func TestLenientEnvelopeWithMaxAgeNeedsCreatedAt(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}}, Envelope: webhook.EnvelopeLenient}
	provision(t, h)
	if h.requires != (webhook.Requirements{}) {
		t.Errorf("lenient asks for %+v", h.requires)
	}
	hour := defaultReadTimeout
	h = &Handler{Secrets: []Secret{{Value: caddytest.Secret}}, Envelope: webhook.EnvelopeLenient, MaxAge: &hour}
	provision(t, h)
	if want := (webhook.Requirements{CreatedAt: true}); h.requires != want {
		t.Errorf("lenient with max_age asks for %+v, want %+v", h.requires, want)
	}
}

func ptr[T any](v T) *T { return &v }

// What the Caddyfile parser rejects is rejected in JSON too. What only shows when
// placeholders are expanded is rejected in both.
func TestRejectedAtLoad(t *testing.T) {
	t.Setenv("BUZZBIP_TEST_BLANK", " \t")
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	one := []Secret{{Value: caddytest.Secret}}
	tests := map[string]struct {
		handler Handler
		message string
	}{
		"no secret":                     {Handler{}, "no secret"},
		"empty secret":                  {Handler{Secrets: []Secret{{}}}, "secret 1 is empty"},
		"blank secret":                  {Handler{Secrets: []Secret{{Value: "  "}}}, "secret 1 is empty"},
		"unset variable":                {Handler{Secrets: []Secret{{Value: caddytest.Secret}, {Value: "{env.BUZZBIP_TEST_UNSET}"}}}, "secret 2 {env.BUZZBIP_TEST_UNSET} is empty"},
		"unset variable within":         {Handler{Secrets: []Secret{{Value: "abc{env.BUZZBIP_TEST_UNSET}", Label: "new"}}}, "secret new is empty"},
		"blank variable":                {Handler{Secrets: []Secret{{Value: "{env.BUZZBIP_TEST_BLANK}"}}}, "secret 1 {env.BUZZBIP_TEST_BLANK} is empty"},
		"missing file":                  {Handler{Secrets: []Secret{{Value: "{file./no/such/file}"}}}, "secret 1 cannot be read: "},
		"empty file":                    {Handler{Secrets: []Secret{{Value: "{file." + empty + "}"}}}, "is empty"},
		"unknown placeholder":           {Handler{Secrets: []Secret{{Value: "{http.request.host}"}}}, "a placeholder in it is unknown"},
		"repeated label":                {Handler{Secrets: []Secret{{Value: "a", Label: "x"}, {Value: "b", Label: "x"}}}, `two secrets have the label "x"`},
		"label that is a place":         {Handler{Secrets: []Secret{{Value: "a", Label: "2"}, {Value: "b"}}}, `two secrets have the label "2"`},
		"bad pattern":                   {Handler{Secrets: one, Events: []string{"*"}}, `"*" is no pattern`},
		"bad envelope":                  {Handler{Secrets: one, Envelope: "loose"}, `envelope must be strict or lenient, not "loose"`},
		"bad on_conflict":               {Handler{Secrets: one, OnConflict: "keep"}, `on_conflict must be drop or deliver, not "keep"`},
		"bad enforce":                   {Handler{Secrets: one, Enforce: "on"}, `enforce can only be off, not "on": leave it out`},
		"bad dedupe":                    {Handler{Secrets: one, Dedupe: "on"}, `dedupe can only be off, not "on": leave it out`},
		"zero max_body_size":            {Handler{Secrets: one, MaxBodySize: ptr[int64](0)}, "max_body_size must be greater than zero"},
		"negative max_body_size":        {Handler{Secrets: one, MaxBodySize: ptr[int64](-1)}, "max_body_size must be greater than zero"},
		"zero read_timeout":             {Handler{Secrets: one, ReadTimeout: ptr[caddy.Duration](0)}, "read_timeout must be greater than zero"},
		"negative delivery_timeout":     {Handler{Secrets: one, DeliveryTimeout: ptr[caddy.Duration](-1)}, "delivery_timeout must be greater than zero"},
		"zero answer_within":            {Handler{Secrets: one, AnswerWithin: ptr[caddy.Duration](0)}, "answer_within must be greater than zero"},
		"zero max_in_flight":            {Handler{Secrets: one, MaxInFlight: ptr[int64](0)}, "max_in_flight must be greater than zero"},
		"zero max_age":                  {Handler{Secrets: one, MaxAge: ptr[caddy.Duration](0)}, "max_age must be greater than zero"},
		"zero retention":                {Handler{Secrets: one, Retention: ptr[caddy.Duration](0)}, "retention must be greater than zero"},
		"max_age beyond the retention":  {Handler{Secrets: one, MaxAge: ptr(caddy.Duration(24*time.Hour - webhook.ClockSkew + 1))}, "raise retention or lower max_age"},
		"max_age beyond that retention": {Handler{Secrets: one, MaxAge: ptr(caddy.Duration(time.Hour)), Retention: ptr(caddy.Duration(time.Hour))}, "raise retention or lower max_age"},
		"dedupe off with a store":       {Handler{Secrets: one, Dedupe: "off", StoreRaw: json.RawMessage(`{"module":"memory"}`)}, "remove it, or remove store, retention, inbox and order_by"},
		"dedupe off with order_by":      {Handler{Secrets: one, Dedupe: "off", OrderBy: []string{"conversation.id"}}, "remove it, or remove store, retention, inbox and order_by"},
		"empty order_by":                {Handler{Secrets: one, OrderBy: []string{""}}, "order_by has an empty path"},
		"dedupe off with retention":     {Handler{Secrets: one, Dedupe: "off", Retention: ptr(caddy.Duration(time.Hour))}, "remove it, or remove store, retention, inbox and order_by"},
		"unknown store":                 {Handler{Secrets: one, StoreRaw: json.RawMessage(`{"module":"memcached"}`)}, "unknown module: http.buzzbip_webhook.stores.memcached"},
		"bad capacity":                  {Handler{Secrets: one, StoreRaw: json.RawMessage(`{"module":"memory","capacity":0}`)}, "capacity must be greater than zero"},
		"bad when_full":                 {Handler{Secrets: one, StoreRaw: json.RawMessage(`{"module":"memory","when_full":"panic"}`)}, `when_full must be forget_oldest or refuse, not "panic"`},
		"unknown setting of the store":  {Handler{Secrets: one, StoreRaw: json.RawMessage(`{"module":"memory","size":1}`)}, "size"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := tryProvision(t, &test.handler)
			if err == nil {
				t.Fatal("it was accepted")
			}
			if !strings.Contains(err.Error(), test.message) {
				t.Errorf("the error is %q, want %q in it", err, test.message)
			}
			for _, s := range test.handler.Secrets {
				if s.Value == caddytest.Secret && strings.Contains(err.Error(), caddytest.Secret) || strings.Contains(err.Error(), "abc") {
					t.Errorf("the error shows the secret: %v", err)
				}
			}
		})
	}
}

func TestAcceptedAtLoad(t *testing.T) {
	t.Setenv("BUZZBIP_TEST_SECRET", caddytest.Secret)
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(caddytest.Secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	body := []byte("body")
	expected := newKey("", []byte(caddytest.Secret), "").sign(body)
	for name, h := range map[string]Handler{
		"variable":                    {Secrets: []Secret{{Value: "{env.BUZZBIP_TEST_SECRET}"}}},
		"file with a final newline":   {Secrets: []Secret{{Value: "{file." + file + "}"}}},
		"largest max_age":             {Secrets: []Secret{{Value: caddytest.Secret}}, MaxAge: ptr(caddy.Duration(24*time.Hour - webhook.ClockSkew))},
		"dedupe off with any max_age": {Secrets: []Secret{{Value: caddytest.Secret}}, Dedupe: "off", MaxAge: ptr(caddy.Duration(100 * time.Hour))},
		"short retention, no max_age": {Secrets: []Secret{{Value: caddytest.Secret}}, Retention: ptr(caddy.Duration(time.Second))},
	} {
		t.Run(name, func(t *testing.T) {
			provision(t, &h)
			if h.secrets.verify(body, expected) == nil {
				t.Error("the secret is not active")
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: caddytest.Secret}, {Value: "another-secret-that-is-long", Label: "old"}}}
	provision(t, h)
	if h.maxBodySize != 1<<20 || h.readTimeout != 10*time.Second || h.deliveryTimeout != time.Minute ||
		h.answerWithin != 8*time.Second || h.maxInFlight != 256<<20 || h.maxAge != 0 || h.retention != 24*time.Hour || h.requires != (webhook.Requirements{CreatedAt: true, Data: true}) {
		t.Errorf("the defaults are %+v", h)
	}
	if first, second := h.secrets.list[0].label, h.secrets.list[1].label; first != "1" || second != "old" {
		t.Errorf("the labels are %q, %q", first, second)
	}
}

func TestSecretsAreNotInTheConfiguration(t *testing.T) {
	t.Setenv("BUZZBIP_TEST_SECRET", caddytest.Secret)
	config := adapt(t, ":80 {\n\tbuzzbip_webhook {env.BUZZBIP_TEST_SECRET}\n}\n")
	if bytes.Contains(config, []byte(caddytest.Secret)) {
		t.Errorf("the secret was expanded: %s", config)
	}
	h := &Handler{Secrets: []Secret{{Value: "{env.BUZZBIP_TEST_SECRET}"}}}
	provision(t, h)
	shown, err := json.Marshal(h)
	if err != nil || bytes.Contains(shown, []byte(caddytest.Secret)) {
		t.Errorf("the handler shows the secret: %s %v", shown, err)
	}
}

func TestWarningsAtLoad(t *testing.T) {
	s := start(t, "buzzbip_webhook {\n secret short-secret-15 tiny\n secret sixteen-bytes-ok\n events message.* cart.* \n}")
	log := s.logs()
	var short []string
	for line := range strings.Lines(log) {
		if strings.Contains(line, "short enough to be guessed") {
			short = append(short, line)
		}
	}
	if len(short) != 1 || !strings.Contains(short[0], `"secret":"tiny"`) {
		t.Errorf("no warning of the short secret alone: %s", log)
	}
	if strings.Count(log, "in clear text") != 2 {
		t.Errorf("no warning of each secret in clear text: %s", log)
	}
	if !strings.Contains(log, "cart.*") || strings.Contains(log, "message.*") {
		t.Errorf("no warning of the undocumented pattern alone: %s", log)
	}
	if strings.Contains(log, "short-secret-15") {
		t.Errorf("the log shows the secret: %s", log)
	}
}
