package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// overview is what GET /buzzbip_webhook/scopes answers.
type overview struct {
	Scopes []struct {
		Scope, Store        string
		Delivered, Capacity int
		InFlight            int `json:"in_flight"`
	}
	Stores []struct {
		Store, Error string
		Up           bool
		Evicted      int
	}
	Secrets []struct {
		Secret, Scope string
		LastMatch     *time.Time `json:"last_match"`
	}
}

func (tr *tour) overview() (o overview) {
	tr.t.Helper()
	status, text := tr.Ask(http.MethodGet, "/buzzbip_webhook/scopes")
	if err := json.Unmarshal([]byte(text), &o); err != nil || status != http.StatusOK {
		tr.t.Fatalf("%d %v: %s", status, err, text)
	}
	return o
}

// secret returns when a secret matched last.
func (o overview) secret(label string) *time.Time {
	for _, s := range o.Secrets {
		if s.Secret == label {
			return s.LastMatch
		}
	}
	return nil
}

func TestAdminAPIShowsScopesStoresAndSecrets(t *testing.T) {
	tr := takeTour(t, "")
	o := tr.overview()
	var scopes []string
	for _, s := range o.Scopes {
		scopes = append(scopes, fmt.Sprintf("%s in %s: %d delivered, %d in flight, of %d", s.Scope, s.Store, s.Delivered, s.InFlight, s.Capacity))
	}
	slices.Sort(scopes)
	if want := []string{
		"secret:main in memory: 2 delivered, 0 in flight, of 1000000",
		"secret:old in memory: 1 delivered, 0 in flight, of 1000000",
		"secret:other in memory: 1 delivered, 0 in flight, of 1",
		"secret:other in redis: 0 delivered, 0 in flight, of 0",
	}; !slices.Equal(scopes, want) {
		t.Errorf("the scopes are %q, want %q", scopes, want)
	}
	for _, s := range o.Stores {
		if s.Up != (s.Store == "memory") || (s.Error == "") != s.Up {
			t.Errorf("a store is %+v", s)
		}
	}
	if len(o.Stores) != 2 || o.secret("main") == nil || o.secret("old") == nil || o.secret("old").After(*o.secret("main")) {
		t.Errorf("the stores and secrets are %+v", o)
	}

	// when it matched last is known also after a reload
	was := *o.secret("old")
	tr.Reload()
	if now := tr.overview().secret("old"); now == nil || !now.Equal(was) {
		t.Errorf("before a reload it matched at %v, after it at %v", was, now)
	}
}

// states returns the states of an event by scope and store, as the admin API
// shows them.
func (tr *tour) states(method, id string, wantStatus int) map[string]string {
	tr.t.Helper()
	var answer struct {
		ID, Error string
		Scopes    []struct {
			Scope, Store, State string
			Expires             *time.Time
			Forgotten           *bool
		}
	}
	status, text := tr.Ask(method, "/buzzbip_webhook/events/"+id)
	if err := json.Unmarshal([]byte(text), &answer); err != nil || status != wantStatus || (answer.Error == "") != (status == http.StatusOK) {
		tr.t.Fatalf("%s %s: %d %v: %s", method, id, status, err, text)
	}
	found := make(map[string]string)
	for _, s := range answer.Scopes {
		state := s.State
		if s.Forgotten != nil {
			state += fmt.Sprintf("forgotten: %t", *s.Forgotten)
		}
		if remembered := s.State == "delivered" || s.State == "redelivering"; (s.Expires != nil) != remembered {
			tr.t.Errorf("%s %s expires at %v", s.State, id, s.Expires)
		}
		found[s.Scope+" in "+s.Store] = state
	}
	return found
}

func TestAdminAPIShowsAnEventAndForgetsIt(t *testing.T) {
	arrived, release := make(chan struct{}, 10), make(chan struct{})
	b := caddytest.NewBackend(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Mode") == "slow" {
			arrived <- struct{}{}
			<-release
		}
	})
	tr := &tour{t: t, address: caddytest.FreeAddress(t)}
	file := filepath.Join(t.TempDir(), "webhook.db")
	tr.Caddy = caddytest.Start(t, "", "", fmt.Sprintf(`
http://%[1]s {
	handle /main {
		buzzbip_webhook {
			secret %[2]s main
			secret %[3]s old
			on_conflict deliver
		}
		reverse_proxy %[4]s
	}
	handle /durable {
		buzzbip_webhook {
			secret %[5]s main
			store sqlite %[6]s
		}
		reverse_proxy %[4]s
	}
	handle /named {
		buzzbip_webhook {
			secret %[2]s main
			scope shop
			store sqlite %[6]s
		}
		reverse_proxy %[4]s
	}
}`, tr.address, caddytest.Secret, oldSecret, b.Address(), otherSecret, file))
	const id = "evt/ü 1?"
	const escaped = "evt%2F%C3%BC%201%3F"
	event := func(data string) string {
		return caddytest.Event{ID: id, Type: "message.sent", Created: caddytest.DocumentedTime, Data: data}.Body()
	}
	expect := func(when string, got, want map[string]string) {
		t.Helper()
		if !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	everywhere := func(main, named string) map[string]string {
		return map[string]string{"secret:main (2) in memory": main, "secret:old in memory": "unseen", "secret:main in sqlite": "unseen", "shop in sqlite": named}
	}
	expect("at first", tr.states(http.MethodGet, escaped, http.StatusOK), everywhere("unseen", "unseen"))
	send := func(body string) {
		r := tr.request(http.MethodPost, "/main", caddytest.Sign(body), body)
		r.Header.Set("X-Mode", "slow")
		go func() {
			if res, err := http.DefaultClient.Do(r); err != nil {
				t.Error(err)
			} else {
				res.Body.Close()
			}
		}()
		<-arrived
	}
	send(event(`{}`))
	expect("in flight", tr.states(http.MethodGet, escaped, http.StatusOK), everywhere("in_flight", "unseen"))
	release <- struct{}{}
	caddytest.WaitFor(t, "the delivery", func() bool { return tr.Metric("in_flight") == 0 })
	tr.sends("/named", caddytest.Secret, event(`{}`), http.StatusOK)
	expect("delivered", tr.states(http.MethodGet, escaped, http.StatusOK), everywhere("delivered", "delivered"))
	send(event(`{"other":1}`))
	expect("delivered again with another body", tr.states(http.MethodGet, escaped, http.StatusOK), everywhere("redelivering", "delivered"))
	release <- struct{}{}
	caddytest.WaitFor(t, "the delivery", func() bool { return tr.Metric("in_flight") == 0 })

	before := b.Count(event(`{}`))
	tr.sends("/named", caddytest.Secret, event(`{}`), http.StatusOK)
	if b.Count(event(`{}`)) != before {
		t.Error("a duplicate was delivered")
	}
	forgotten := everywhere("forgotten: true", "forgotten: true")
	forgotten["secret:old in memory"], forgotten["secret:main in sqlite"] = "forgotten: false", "forgotten: false"
	expect("forgotten", tr.states(http.MethodDelete, escaped, http.StatusOK), forgotten)
	expect("afterwards", tr.states(http.MethodGet, escaped, http.StatusOK), everywhere("unseen", "unseen"))
	tr.sends("/named", caddytest.Secret, event(`{}`), http.StatusOK)
	if b.Count(event(`{}`)) != before+1 {
		t.Error("a redelivery did not pass after the event was forgotten")
	}

	for _, wrong := range []struct {
		method, path string
		status       int
		says         string
	}{
		{http.MethodGet, "/buzzbip_webhook/nothing", http.StatusNotFound, "/buzzbip_webhook/scopes"},
		{http.MethodGet, "/buzzbip_webhook/events/", http.StatusBadRequest, "give the ID"},
		{http.MethodGet, "/buzzbip_webhook/events/" + strings.Repeat("x", 257), http.StatusBadRequest, "1 to 256 bytes"},
		{http.MethodPost, "/buzzbip_webhook/events/evt_1", http.StatusMethodNotAllowed, "POST"},
		{http.MethodDelete, "/buzzbip_webhook/scopes", http.StatusMethodNotAllowed, "DELETE"},
		{http.MethodPost, "/buzzbip_webhook/", http.StatusMethodNotAllowed, "POST"},
	} {
		status, text := tr.Ask(wrong.method, wrong.path)
		var answer struct{ Error string }
		if err := json.Unmarshal([]byte(text), &answer); err != nil || status != wrong.status || !strings.Contains(answer.Error, wrong.says) {
			t.Errorf("%s %s: %d %s", wrong.method, wrong.path, status, text)
		}
	}
	// it is on the admin endpoint only
	tr.expect(tr.request(http.MethodGet, "/buzzbip_webhook/scopes", "", ""), http.StatusOK) // Caddy's empty answer
	if strings.Contains(tr.answers.String(), "secret:") {
		t.Error("the site serves the admin API")
	}
	// and protected as the rest of that is
	r, err := http.NewRequest(http.MethodDelete, "http://"+tr.Admin+"/buzzbip_webhook/events/evt_1", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Origin", "https://evil.example")
	tr.expect(r, http.StatusForbidden)
	r.Header.Del("Origin")
	r.Host = "evil.example"
	tr.expect(r, http.StatusForbidden)
}

// An event that was not delivered is not one that never arrived.
func TestLookupShowsTheLastFailedAttempt(t *testing.T) {
	b := caddytest.NewBackend(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("X-Mode") {
		case "fail":
			w.WriteHeader(http.StatusInternalServerError)
		case "break":
			panic(http.ErrAbortHandler)
		}
	})
	tr := &tour{t: t, address: caddytest.FreeAddress(t)}
	tr.Caddy = caddytest.Start(t, "", "", fmt.Sprintf(`
http://%[1]s {
	handle /main {
		buzzbip_webhook {
			secret %[2]s main
			secret %[3]s old
		}
		reverse_proxy %[4]s
	}
	handle /durable {
		buzzbip_webhook {
			secret %[2]s main
			store sqlite %[5]s
		}
		reverse_proxy %[4]s
	}
}`, tr.address, caddytest.Secret, oldSecret, b.Address(), filepath.Join(t.TempDir(), "webhook.db")))
	body := caddytest.NewEvent()
	id := regexp.MustCompile(`evt_\w+`).FindString(body)
	send := func(mode string, status int) {
		t.Helper()
		r := tr.request(http.MethodPost, "/main", caddytest.Sign(body), body)
		r.Header.Set("X-Mode", mode)
		tr.expect(r, status)
	}
	command := func() string {
		t.Helper()
		ran := run(t, "", "lookup", id, "--address", tr.Admin)
		ran.says(t, 0)
		return regexp.MustCompile(` +`).ReplaceAllString(ran.out, " ")
	}
	states := func(main string) map[string]string {
		return map[string]string{"secret:main in memory": main, "secret:old in memory": "unseen", "secret:main in sqlite": "unseen"}
	}
	expect := func(when, state, said string) {
		t.Helper()
		if got, want := tr.states(http.MethodGet, id, http.StatusOK), states(state); !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
		if got := command(); !regexp.MustCompile(`(?m)^secret:main memory `+said).MatchString(got) || strings.Count(got, "unseen -") != strings.Count(fmt.Sprint(states(state)), "unseen") {
			t.Errorf("%s the command says\n%s", when, got)
		}
	}
	const at = ` at 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ: `
	expect("at first", "unseen", "unseen - *$")
	send("fail", http.StatusInternalServerError)
	expect("after a failure", "not_delivered", "not delivered - last attempt failed with 500"+at+`500 Internal Server Error from 127.0.0.1:\d+$`)
	send("break", http.StatusBadGateway)
	expect("after another", "not_delivered", `not delivered - last attempt failed \(connection_broken\)`+at+"EOF$")
	_, text := tr.Ask(http.MethodGet, "/buzzbip_webhook/events/"+id)
	type scopeAnswer struct {
		LastFailure *struct {
			Time     time.Time
			Cause    string
			Status   int
			Duration float64
		} `json:"last_failure"`
	}
	var answer struct{ Scopes []scopeAnswer }
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		t.Fatal(err)
	}
	answer.Scopes = slices.DeleteFunc(answer.Scopes, func(s scopeAnswer) bool { return s.LastFailure == nil })
	if len(answer.Scopes) != 1 {
		t.Fatalf("the last failure is not that of one scope: %s", text)
	}
	if f := answer.Scopes[0].LastFailure; f.Cause != "connection_broken" || f.Status != 0 || f.Duration <= 0 || time.Since(f.Time) > caddytest.Patience {
		t.Errorf("the last failure is %+v: %s", f, text)
	}
	tr.Reload()
	expect("after a reload", "not_delivered", `not delivered - last attempt failed \(connection_broken\)`+at+"EOF$")
	send("", http.StatusOK)
	expect("delivered", "delivered", `delivered 20`)
	tr.states(http.MethodDelete, id, http.StatusOK)
	expect("forgotten", "unseen", "unseen - *$")
}

func TestAdminAPISaysWhenAStoreDoesNotAnswerOrNoHandlerRuns(t *testing.T) {
	tr := takeTour(t, "")
	states := tr.states(http.MethodGet, "evt_1", http.StatusServiceUnavailable)
	if states["secret:other in redis"] != "unknown" || states["secret:main in memory"] != "unseen" {
		t.Errorf("the states are %v", states)
	}
	if states := tr.states(http.MethodDelete, "evt_1", http.StatusServiceUnavailable); len(states) != 4 {
		t.Errorf("the answer to DELETE is about %v", states)
	}
	if err := os.WriteFile(tr.Config, []byte(fmt.Sprintf("{\n\tadmin %s\n}\n", tr.Admin)), 0o600); err != nil {
		t.Fatal(err)
	}
	tr.Reload()
	status, text := tr.Ask(http.MethodGet, "/buzzbip_webhook/scopes")
	if status != http.StatusNotFound || !strings.Contains(text, "has no buzzbip_webhook") {
		t.Errorf("without a handler: %d %s", status, text)
	}
}
