package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/redistest"
)

// The environment of a process that is this test binary as Caddy. It kills itself
// before a step of an event: an operation of the store or the inbox, an attempt to
// deliver it, the response of the backend, or that to the sender.
const (
	stepsVariable = "BUZZBIP_TEST_STEPS" // the file that the steps are written to
	eventVariable = "BUZZBIP_TEST_EVENT" // the ID of the event
	killVariable  = "BUZZBIP_TEST_KILL"  // the number of the step, from 1; 0: none
)

func TestMain(m *testing.M) {
	if os.Getenv(stepsVariable) != "" {
		steps.open()
		main()
		return
	}
	caddytest.Binary = os.Args[0]
	os.Exit(m.Run())
}

// steps are those of the event in this process.
var steps stepCounter

type stepCounter struct {
	key  dedupe.Key
	id   string
	kill int

	mu     sync.Mutex
	file   *os.File
	count  int
	number int64 // of the event in the inbox
}

func (s *stepCounter) open() {
	s.id = os.Getenv(eventVariable)
	s.key = dedupe.KeyOf(s.id)
	var err error
	if s.kill, err = strconv.Atoi(os.Getenv(killVariable)); err == nil {
		s.file, err = os.OpenFile(os.Getenv(stepsVariable), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	}
	if err != nil {
		panic(err)
	}
}

// before says that a step follows, or ends the process.
func (s *stepCounter) before(step string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count++; s.count != s.kill {
		fmt.Fprintln(s.file, "before", step)
		return
	}
	fmt.Fprintln(s.file, "killed before", step)
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		panic(err)
	}
	select {} // with the lock, so that no other step follows
}

func (s *stepCounter) after(step string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintln(s.file, "after", step)
}

// stepOf makes a step of an operation.
func stepOf[T any](step string, operation func() (T, error)) (T, error) {
	steps.before(step)
	result, err := operation()
	if err != nil {
		step += ", which failed"
	}
	steps.after(step)
	return result, err
}

func step(step string, operation func() error) error {
	_, err := stepOf(step, func() (struct{}, error) { return struct{}{}, operation() })
	return err
}

const (
	stores  = "http.buzzbip_webhook.stores"
	inboxes = "http.buzzbip_webhook.inboxes"
)

func init() {
	caddy.RegisterModule(new(steppedStore))
	caddy.RegisterModule(new(steppedInbox))
	caddy.RegisterModule(new(stepped))
	httpcaddyfile.RegisterHandlerDirective("stepped", parseStepped)
}

// unmarshalReal reads the module that a stepped one is in front of.
func unmarshalReal(d *caddyfile.Dispenser, namespace string) (json.RawMessage, error) {
	d.Next()
	if !d.NextArg() {
		return nil, d.ArgErr()
	}
	name := d.Val()
	module, err := caddyfile.UnmarshalModule(d, namespace+"."+name)
	if err != nil {
		return nil, err
	}
	return caddyconfig.JSONModuleObject(module, "module", name, nil), nil
}

// steppedStore is a store whose operations on the event are steps.
type steppedStore struct {
	Raw json.RawMessage `json:"real,omitempty" caddy:"namespace=http.buzzbip_webhook.stores inline_key=module"`

	dedupe.Store
}

func (*steppedStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: stores + ".stepped", New: func() caddy.Module { return new(steppedStore) }}
}

func (s *steppedStore) UnmarshalCaddyfile(d *caddyfile.Dispenser) (err error) {
	s.Raw, err = unmarshalReal(d, stores)
	return err
}

func (s *steppedStore) Provision(ctx caddy.Context) error {
	module, err := ctx.LoadModule(s, "Raw")
	if err == nil {
		s.Store = module.(dedupe.Store)
	}
	return err
}

func (s *steppedStore) Start() error {
	if starter, ok := s.Store.(dedupe.Starter); ok {
		return starter.Start()
	}
	return nil
}

func (s *steppedStore) Claim(ctx context.Context, r dedupe.Request) (dedupe.Verdict, error) {
	if r.Key != steps.key {
		return s.Store.Claim(ctx, r)
	}
	return stepOf("claim", func() (dedupe.Verdict, error) { return s.Store.Claim(ctx, r) })
}

func (s *steppedStore) Settle(ctx context.Context, c dedupe.Claim, delivered bool) error {
	settle := func() error { return s.Store.Settle(ctx, c, delivered) }
	switch {
	case c.Key != steps.key:
		return settle()
	case !delivered:
		return step("settle as failed", settle)
	case c.Retention == retention:
		return step(settleDelivered, settle)
	}
	return step(settleStored, settle)
}

// steppedInbox is an inbox whose changes of the event are steps.
type steppedInbox struct {
	Raw json.RawMessage `json:"real,omitempty" caddy:"namespace=http.buzzbip_webhook.inboxes inline_key=module"`

	inbox.Module
}

func (*steppedInbox) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: inboxes + ".stepped", New: func() caddy.Module { return new(steppedInbox) }}
}

func (s *steppedInbox) UnmarshalCaddyfile(d *caddyfile.Dispenser) (err error) {
	s.Raw, err = unmarshalReal(d, inboxes)
	return err
}

func (s *steppedInbox) Provision(ctx caddy.Context) error {
	module, err := ctx.LoadModule(s, "Raw")
	if err == nil {
		s.Module = module.(inbox.Module)
	}
	return err
}

func (s *steppedInbox) Start() error { return s.Module.(inbox.Starter).Start() }

func (s *steppedInbox) Add(ctx context.Context, e inbox.Event, maxSize int64) (int64, error) {
	if e.Key != steps.key {
		return s.Module.Add(ctx, e, maxSize)
	}
	return stepOf("add", func() (int64, error) {
		number, err := s.Module.Add(ctx, e, maxSize)
		steps.mu.Lock()
		defer steps.mu.Unlock()
		steps.number = number
		return number, err
	})
}

// change makes steps of a change of the event.
func (s *steppedInbox) change(name string, number int64, change func() error) error {
	steps.mu.Lock()
	other := number != steps.number
	steps.mu.Unlock()
	if other {
		return change()
	}
	return step(name, change)
}

func (s *steppedInbox) Attempted(ctx context.Context, number int64, a inbox.Attempt, due, dead time.Time) error {
	return s.change("attempted", number, func() error { return s.Module.Attempted(ctx, number, a, due, dead) })
}

func (s *steppedInbox) Accepted(ctx context.Context, number int64, a inbox.Attempt, keepBody bool) error {
	return s.change(accepted, number, func() error { return s.Module.Accepted(ctx, number, a, keepBody) })
}

func (s *steppedInbox) Remembered(ctx context.Context, number int64) error {
	return s.change(remembered, number, func() error { return s.Module.Remembered(ctx, number) })
}

// The steps by which the test judges.
const (
	settleDelivered = "settle as delivered"
	accepted        = "accept"
	remembered      = "remember"
	settleStored    = "settle as stored"
	senderAnswered  = "after response 200 to the sender"
)

// stepped makes steps of the requests that pass it to the backend, and of the
// responses that pass it from the backend or to the sender.
type stepped struct {
	Backend bool `json:"backend,omitempty"`
}

func parseStepped(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	h.Next()
	return &stepped{Backend: h.NextArg()}, nil
}

func (*stepped) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.stepped", New: func() caddy.Module { return new(stepped) }}
}

func (s *stepped) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	response := &steppedResponse{caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, r, " to the sender"}
	if !s.Backend {
		return next.ServeHTTP(response, r)
	}
	response.whose = " of the backend"
	r.Header.Set(processHeader, strconv.Itoa(os.Getpid()))
	if !response.counts() {
		return next.ServeHTTP(response, r)
	}
	return step("attempt", func() error { return next.ServeHTTP(response, r) })
}

// processHeader tells the backend which process asks.
const processHeader = "X-Process"

type steppedResponse struct {
	caddyhttp.ResponseWriterWrapper
	request *http.Request
	whose   string
}

func (s *steppedResponse) counts() bool {
	repl := s.request.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	id, _ := repl.GetString("http.buzzbip_webhook.event.id")
	return id == steps.id
}

func (s *steppedResponse) WriteHeader(status int) {
	if !s.counts() || s.whose == " to the sender" && s.request.Header.Get("Redelivery-Attempt") != "" {
		s.ResponseWriterWrapper.WriteHeader(status)
		return
	}
	_ = step(fmt.Sprint("response ", status, s.whose), func() error {
		s.ResponseWriterWrapper.WriteHeader(status)
		return nil
	})
}

// crashes kills Caddy at every step of an event, one after the other.
type crashes struct {
	*testing.T
	site   func(address string) string
	slow   bool // the backend answers after the sender has been answered
	fails  bool // the backend fails the first attempt
	direct bool // the event is not stored
	// forgets means that the store is new in each process.
	forgets bool
	// endLeases ends the claims of processes that were killed, or is nil if they
	// end with the process.
	endLeases func() int

	backend *caddytest.Backend
	address string
	data    string
	other   string // the address of another instance, if the store is shared

	mu       sync.Mutex
	arrivals map[string][]arrival // by event
	answered map[string]chan struct{}
}

type arrival struct {
	process  string
	accepted bool
}

// killed is an event whose process was killed.
type killed struct {
	id, body string
	answer   caddytest.Answer
	steps    []string
	at       string // the step before which it was killed, or empty
	process  string
}

func (c *crashes) respond(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get("X-Event")
	c.mu.Lock()
	first := len(c.arrivals[id]) == 0
	at := arrival{r.Header.Get(processHeader), !first || !c.fails}
	c.arrivals[id] = append(c.arrivals[id], at)
	answered := c.answered[id]
	c.mu.Unlock()
	if c.slow && first {
		<-answered
	}
	if !at.accepted {
		w.WriteHeader(http.StatusInternalServerError)
	}
}

func (c *crashes) run() {
	c.arrivals, c.answered = map[string][]arrival{}, map[string]chan struct{}{}
	c.backend = caddytest.NewBackend(c.T, c.respond)
	c.address, c.data = caddytest.FreeAddress(c.T), c.TempDir()
	if c.endLeases != nil {
		c.other = caddytest.FreeAddress(c.T)
		c.start(c.TempDir(), c.other, "none", 0)
	}
	var last *killed
	var at []string
	for n := 1; last == nil || last.at != ""; n++ {
		id := caddytest.NewID()
		caddy := c.start(c.data, c.address, id, n)
		if last != nil {
			c.recovers(caddy, last)
		}
		last = c.send(caddy, id)
		at = append(at, last.at)
		caddy.Kill()
		c.askOther(last)
	}
	c.recovers(c.start(c.data, c.address, "none", 0), last)
	c.Logf("killed before each of %d steps: %q", len(at)-1, at[:len(at)-1])
	if len(at) < 5 {
		c.Error("too few to prove anything")
	}
}

func (c *crashes) start(data, address, id string, kill int) *caddytest.Caddy {
	return caddytest.Start(c.T, data, "", c.site(address),
		stepsVariable+"="+c.file(id), eventVariable+"="+id, killVariable+"="+strconv.Itoa(kill))
}

// file is where the steps of an event are.
func (c *crashes) file(id string) string { return filepath.Join(c.data, id+".steps") }

// send sends an event, and returns when Caddy was killed or there are no further
// steps.
func (c *crashes) send(caddy *caddytest.Caddy, id string) *killed {
	k := &killed{id: id, body: caddytest.Event{ID: id}.Body(), process: strconv.Itoa(caddy.Cmd.Process.Pid)}
	answered := make(chan struct{})
	c.mu.Lock()
	c.answered[id] = answered
	c.mu.Unlock()
	http.DefaultClient.CloseIdleConnections()
	k.answer = caddytest.Post(c.Context(), "http://"+c.address, k.body)
	close(answered)
	caddytest.WaitFor(c.T, "Caddy to be killed, or the last step", func() bool {
		select {
		case <-caddy.Ended:
			return true
		default:
			k.read(c.file(id))
			return k.complete(c.direct)
		}
	})
	k.read(c.file(id))
	k.at, _ = strings.CutPrefix(k.steps[len(k.steps)-1], "killed before ")
	if k.complete(c.direct) {
		k.at = ""
	}
	return k
}

func (k *killed) read(file string) {
	text, _ := os.ReadFile(file) // not there before the first step
	k.steps = strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

func (k *killed) has(step string) bool { return slices.Contains(k.steps, step) }

// complete reports whether all steps were made and none is under way.
func (k *killed) complete(direct bool) bool {
	under := 0
	for _, step := range k.steps {
		switch {
		case strings.HasPrefix(step, "before "):
			under++
		case strings.HasPrefix(step, "after "):
			under--
		default:
			return false // killed
		}
	}
	return under == 0 && k.has(senderAnswered) && (direct || k.has("after "+remembered))
}

// askOther sends an event to another instance. That must not deliver it again once
// the store knows that it is in the inbox.
func (c *crashes) askOther(k *killed) {
	if c.other == "" || !k.has("after "+settleStored) && !c.recorded(k) {
		return
	}
	if got := caddytest.Post(c.Context(), "http://"+c.other, k.body); got.Result != "duplicate" {
		c.Errorf("another instance answers %+v; steps %q", got, k.steps)
	}
}

// recorded reports whether what the backend has accepted was recorded before the
// process was killed, so that the next one knows.
func (c *crashes) recorded(k *killed) bool {
	if c.forgets {
		return k.has("after "+accepted) && !k.has("after "+remembered)
	}
	return k.has("after "+accepted) || k.has("after "+settleDelivered)
}

// recovers checks what becomes of an event in the next process.
func (c *crashes) recovers(caddy *caddytest.Caddy, k *killed) {
	url := "http://" + c.address
	for retry := 0; k.answer.Status != http.StatusOK; retry++ {
		if retry == 5 {
			c.Fatalf("BuzzBip gives up: it was answered %+v; steps %q", k.answer, k.steps)
		}
		if k.answer = caddytest.Post(c.Context(), url, k.body); k.answer.Result == "in_flight" && c.endLeases != nil {
			if c.endLeases() == 0 {
				c.Errorf("the event is in flight without a lease; steps %q", k.steps)
			}
		} else if k.answer.Status != http.StatusOK {
			c.Errorf("a retry is answered %+v; steps %q", k.answer, k.steps)
		}
	}
	caddytest.WaitFor(c.T, "the inbox to be empty", func() bool {
		_, text := caddy.Ask(http.MethodGet, "/buzzbip_webhook/inbox")
		return strings.Contains(text, `"events":[]`)
	})
	if !c.forgets {
		if again := caddytest.Post(c.Context(), url, k.body); again.Result != "duplicate" {
			c.Errorf("a replay is answered %+v; steps %q", again, k.steps)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	times, later := 0, 0
	for _, a := range c.arrivals[k.id] {
		if a.accepted {
			times++
		}
		if a.process != k.process {
			later++
		}
	}
	if times == 0 {
		c.Errorf("the event is lost; steps %q", k.steps)
	}
	if times > 2 {
		c.Errorf("the backend accepted the event %d times; steps %q", times, k.steps)
	}
	if later > 0 && c.recorded(k) {
		c.Errorf("the event was delivered again after its acceptance was recorded; steps %q", k.steps)
	}
}

// retention is that of delivered IDs: others are those of stored events.
const retention = time.Hour

// Caddy is killed between any two steps of an event. BuzzBip retries what was not
// acknowledged, and the next process goes on. No event is lost, and none is
// given to the backend again once its acceptance was recorded.
func TestKillsBetweenAnyTwoSteps(t *testing.T) {
	for name, store := range map[string]string{
		"memory":                             "memory",
		"sqlite":                             "sqlite {env.HOME}/ids.db",
		"sqlite, the same file as the inbox": "sqlite {env.HOME}/inbox.db",
		"redis":                              "redis",
	} {
		t.Run(name, func(t *testing.T) {
			var endLeases func() int
			if store == "redis" {
				server := redistest.Start(t)
				store = "redis " + server.URL() + " {\n\t\t\t\ttimeout 5s\n\t\t\t}"
				endLeases = func() (leases int) {
					for _, key := range strings.Fields(server.Do("KEYS", "buzzbip:claim:*")) {
						leases++
						server.Do("PEXPIRE", key, "1")
					}
					return leases
				}
			}
			for name, scenario := range map[string]struct {
				inbox               string
				slow, fails, direct bool
			}{
				"the backend accepts the event":                  {direct: true},
				"the backend fails, and accepts the event later": {fails: true},
				"the backend accepts the event late":             {slow: true},
				"the event is stored before it is delivered":     {inbox: "accept always"},
			} {
				t.Run(name, func(t *testing.T) {
					c := &crashes{
						T: t, slow: scenario.slow, fails: scenario.fails, direct: scenario.direct,
						forgets: store == "memory", endLeases: endLeases,
					}
					c.site = func(address string) string {
						return fmt.Sprintf(`
http://%s {
	route {
		stepped
		buzzbip_webhook %s {
			scope crash
			retention %s
			answer_within 100ms
			store stepped %s
			inbox stepped sqlite {env.HOME}/inbox.db {
				retry 20ms 100ms
				%s
			}
		}
		stepped backend
		reverse_proxy %s {
			header_up X-Event {http.buzzbip_webhook.event.id}
		}
	}
}`, address, caddytest.Secret, retention, store, scenario.inbox, c.backend.Address())
					}
					c.run()
				})
			}
		})
	}
}
