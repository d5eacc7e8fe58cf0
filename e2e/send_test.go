package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

func TestSend(t *testing.T) {
	url, _ := endpoint(t, "")
	run(t, "", "send", url).says(t, 0, "sent     message.received evt_test_", "answered 200 OK in ", "\nhello\n")
	fixed := []string{"send", url, "--id", "evt_send_1", "--type", "contact.created", "--data", `{"a":1}`, "--created-at", "2026-06-01T14:32:00Z"}
	run(t, "", fixed...).says(t, 0, "contact.created evt_send_1", "200 OK in")
	run(t, "", fixed...).says(t, 0, "200 OK (duplicate)")
	run(t, "", "send", url, "--body-file", write(t, `{"id":"evt_send_1","type":"contact.created","createdAt":"2026-06-01T14:32:00Z","data":{"a":1}}`)).says(t, 0, "200 OK (duplicate)")
	run(t, caddytest.NewEvent(), "send", url, "--body-file", "-").says(t, 0, "hello")
	runWith(t, []string{"BUZZBIP_SECRET=another"}, "", "send", url).says(t, 1, "401 Unauthorized", "BuzzBip would send the event again")
	run(t, "", "send", "http://"+caddytest.FreeAddress(t)).says(t, 1, "no answer", "connection refused")
	run(t, "", "send", "hooks.example.com").says(t, 1, "is not a URL")
	run(t, "", "send", url, "--data", "{").says(t, 1, "--data is not valid JSON")
	run(t, "", "send", url, "--created-at", "now").says(t, 1, "is not a time such as")
	run(t, "", "send", url, "--body-file", "-", "--id", "x").says(t, 1, "--id is for new events")

	redirect := httptest.NewServer(http.RedirectHandler(url, http.StatusPermanentRedirect))
	defer redirect.Close()
	run(t, "", "send", redirect.URL).says(t, 1, "308 Permanent Redirect")
	hangs := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hangs }))
	defer slow.Close()
	defer close(hangs)
	run(t, "", "send", slow.URL, "--timeout", "50ms").says(t, 1, "no answer within 50ms")
}

// storingEndpoint is like endpoint, with an inbox and a backend that is down.
func storingEndpoint(t *testing.T, inbox, options string) (url string, c *caddytest.Caddy) {
	address := caddytest.FreeAddress(t)
	c = caddytest.Start(t, "", "", fmt.Sprintf("http://%s {\n\tbuzzbip_webhook %s {\n\t\tinbox sqlite {\n%s\n}\n%s\n}\n\treverse_proxy %s\n}",
		address, caddytest.Secret, inbox, options, caddytest.FreeAddress(t)))
	return "http://" + address, c
}

const storedNote = "the event is in the inbox, which delivers it later, and BuzzBip will not send it again"

func TestSendSaysWhatStoredMeans(t *testing.T) {
	url, _ := storingEndpoint(t, "", "")
	run(t, "", "send", url, "--id", "evt_1", "--created-at", "2026-06-01T14:32:00Z").says(t, 0, "answered 200 OK (stored) in ", "note: "+storedNote, "caddy buzzbip inbox list")
	got := run(t, "", "send", url, "--id", "evt_1", "--created-at", "2026-06-01T14:32:00Z")
	got.says(t, 0, "answered 200 OK (duplicate) in ")
	if strings.Contains(got.err, storedNote) {
		t.Errorf("the duplicate is said to be stored: %s", got.err)
	}
}

// wrongEndpoint is a Caddy with every usual mistake, and where it has them.
type wrongEndpoint struct {
	backend  *caddytest.Backend
	plain    string // the URL of a site on plain HTTP, with a path for each mistake
	unrouted string // the URL of a site that ends without a route for all paths
	port     string // of a site on HTTPS for localhost only, with an unknown authority
}

func newWrongEndpoint(t *testing.T) wrongEndpoint {
	ends := make(chan struct{})
	b := caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hangs":
			<-ends
		case "/fails":
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	t.Cleanup(func() { close(ends) })
	plain, unrouted, secure := caddytest.FreeAddress(t), caddytest.FreeAddress(t), caddytest.FreeAddress(t)
	_, port, _ := net.SplitHostPort(secure)
	site := func(path, options, handler string) string {
		return fmt.Sprintf("\thandle %[1]s {\n\t\tbuzzbip_webhook %[2]s {\n\t\t\tscope %[1]s\n%[3]s\n\t\t}\n\t\t%[4]s\n\t}\n", path, caddytest.Secret, options, handler)
	}
	proxy := "reverse_proxy " + b.Address()
	caddytest.Start(t, "", "auto_https disable_redirects\nlocal_certs", "http://"+plain+" {\n"+
		"\tredir /moved /ok 308\n\tredir /elsewhere https://hooks.example.com/ok 302\n"+
		site("/ok", "", proxy)+
		site("/fails", "", proxy)+
		site("/hangs", "answer_within 50ms", proxy)+
		site("/late", "delivery_timeout 50ms", "rewrite * /hangs\n"+proxy)+
		site("/down", "", "reverse_proxy "+caddytest.FreeAddress(t))+
		site("/full", "store memory {\ncapacity 1\nwhen_full refuse\n}", proxy)+
		site("/small", "max_body_size 10B", proxy)+
		site("/fresh", "max_age 1h", proxy)+
		"\trespond /readonly 405\n\trespond 404\n}\n"+
		"http://"+unrouted+" {\n"+site("/ok", "", proxy)+site("/nobody", "", "")+"}\n"+
		"https://localhost:"+port+" {\n"+site("/ok", "read_timeout 300ms", proxy)+"\trespond 404\n}\n")
	return wrongEndpoint{b, "http://" + plain, "http://" + unrouted, port}
}

// waitForCertificate waits until the site on HTTPS has one: that it has none could
// be taken for the mistake.
func (w wrongEndpoint) waitForCertificate(t *testing.T) {
	t.Helper()
	caddytest.WaitFor(t, "the certificate", func() bool {
		return run(t, "", "send", "https://localhost:"+w.port+"/ok", "--insecure").code == 0
	})
}

const unroutedNote = "Caddy answers 200 with no content where no route matches"

func TestSendSaysWhatIsLikelyWrong(t *testing.T) {
	wrong := newWrongEndpoint(t)
	run(t, "", "send", wrong.plain+"/full").says(t, 0)
	slow := caddytest.NewEvent()
	go caddytest.Post(t.Context(), wrong.plain+"/hangs", slow)
	caddytest.WaitFor(t, "the backend to get the event", func() bool { return wrong.backend.Count(slow) == 1 })

	for to, want := range map[string]struct {
		args []string
		hint []string
	}{
		"/moved":     {nil, []string{"308 Permanent Redirect", "BuzzBip does not follow redirects", "leads to, " + wrong.plain + "/ok"}},
		"/elsewhere": {nil, []string{"302 Found", "leads to, https://hooks.example.com/ok"}},
		"/fails":     {nil, []string{"500 Internal Server Error", "the backend failed: see its log"}},
		"/hangs":     {[]string{"--body-file", write(t, slow)}, []string{"503 Service Unavailable (in_flight)", "this event is still being delivered; try again after "}},
		"/late":      {nil, []string{"504 Gateway Timeout", "longer than delivery_timeout"}},
		"/down":      {nil, []string{"502 Bad Gateway", "the backend is down"}},
		"/full":      {nil, []string{"503 Service Unavailable in ", "BuzzBip would send the event again", "the store does not answer or is full", "; try again after "}},
		"/small":     {nil, []string{"413 Request Entity Too Large", "larger than max_body_size"}},
		"/fresh":     {[]string{"--created-at", "2026-06-01T14:32:00Z"}, []string{"403 Forbidden", "older than max_age"}},
		"/readonly":  {nil, []string{"405 Method Not Allowed", "takes no POST"}},
		"/other":     {nil, []string{"404 Not Found", "compare its host and path"}},
		"/ok":        {[]string{"--secret-file", write(t, "another secret")}, []string{"401 Unauthorized", `"caddy buzzbip explain"`}},
	} {
		got := run(t, "", append([]string{"send", wrong.plain + to}, want.args...)...)
		got.says(t, 1, append(want.hint, "note: BuzzBip does not deliver to plain HTTP")...)
	}
	run(t, "", "send", wrong.unrouted+"/nobody").says(t, 1, "502 Bad Gateway", "no handler after buzzbip_webhook answers")
	run(t, `{"id":"evt_1"}`, "send", wrong.plain+"/ok", "--body-file", "-").says(t, 1, "400 Bad Request", "the envelope of the event is invalid")
	run(t, "", "send", "http://localhost:"+wrong.port+"/ok").says(t, 1, "400 Bad Request", "this port serves HTTPS: use https://")
	run(t, "", "send", strings.Replace(wrong.plain, "http:", "https:", 1)+"/ok").says(t, 1, "this port serves plain HTTP")
	run(t, "", "send", "http://"+caddytest.FreeAddress(t)).says(t, 1, "connection refused", "is Caddy running")
	run(t, "", "send", "https://127.0.0.1:"+wrong.port+"/ok", "--insecure").says(t, 1, "no certificate for this host")

	run(t, "", "send", wrong.unrouted+"/other").says(t, 0, "200 OK", unroutedNote)
	if got := run(t, "", "send", wrong.unrouted+"/ok"); got.code != 0 || strings.Contains(got.err, unroutedNote) {
		t.Errorf("a backend's 200 without content: %+v", got)
	}
	wrong.waitForCertificate(t)
	got := run(t, "", "send", "https://localhost:"+wrong.port+"/ok", "--insecure")
	if got.says(t, 0, "200 OK"); got.err != "" {
		t.Errorf("over HTTPS it prints %q", got.err)
	}
}

func TestSendSaysSentOnlyIfItWas(t *testing.T) {
	hangs := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hangs }))
	defer slow.Close()
	defer close(hangs)
	run(t, "", "send", slow.URL, "--timeout", "2s").says(t, 1, "sent     message.received evt_test_", "no answer within 2s")

	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	defer secure.Close()
	for url, unsent := range map[string]struct{ timeout, says string }{
		"http://" + caddytest.FreeAddress(t): {"10s", "connection refused"},
		"https://" + mute.Addr().String():    {"300ms", "no answer within 300ms"}, // to the handshake
		secure.URL:                           {"10s", "unknown authority"},
	} {
		got := run(t, "", "send", url, "--timeout", unsent.timeout)
		got.says(t, 1, unsent.says)
		if got.out != "" {
			t.Errorf("%s: it prints %q", url, got.out)
		}
		if hint := strings.Contains(got.err, "--insecure"); hint != (url == secure.URL) {
			t.Errorf("%s: that it names --insecure is %t", url, hint)
		}
	}
}
