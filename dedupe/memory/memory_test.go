package memory

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/dedupe/storetest"
)

// load makes a store from its JSON configuration, as Caddy does.
func load(t *testing.T, config string) (*Store, error) {
	t.Helper()
	return storetest.Load[*Store](t, "http.buzzbip_webhook.stores.memory", config)
}

func mustLoad(t *testing.T, config string) *Store {
	t.Helper()
	s, err := load(t, config)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func parse(input string) (*Store, error) {
	s := new(Store)
	return s, s.UnmarshalCaddyfile(caddyfile.NewTestDispenser(input))
}

// arrival is a request for event n, in the scope of the test: all stores of the
// process share their IDs.
func arrival(t *testing.T, n uint64) dedupe.Request {
	var key dedupe.Key
	binary.LittleEndian.PutUint64(key[:], n)
	return dedupe.Request{Scope: t.Name(), Key: key, Digest: 1, Retention: 24 * time.Hour}
}

var (
	expect  = storetest.Expect
	settle  = storetest.Settle
	deliver = storetest.Deliver
)

func TestStore(t *testing.T) {
	storetest.Test(t, storetest.Config{Open: func(testing.TB) dedupe.Store { return mustLoad(t, `{}`) }})
}

func TestDefaultsAreAMillionIDsAndForgettingTheOldest(t *testing.T) {
	const million = 1_000_000
	s := mustLoad(t, `{}`)
	for n := range uint64(million) {
		deliver(t, s, arrival(t, n))
	}
	expect(t, s, arrival(t, 0), dedupe.Delivered)
	deliver(t, s, arrival(t, million))
	expect(t, s, arrival(t, 0), dedupe.Claimed)
	expect(t, s, arrival(t, 1), dedupe.Delivered)
	expect(t, s, arrival(t, million), dedupe.Delivered)
}

func TestFailedDeliveryIsNotRemembered(t *testing.T) {
	s := mustLoad(t, `{}`)
	settle(t, s, expect(t, s, arrival(t, 0), dedupe.Claimed), false)
	expect(t, s, arrival(t, 0), dedupe.Claimed)
}

func TestWhenFull(t *testing.T) {
	for config, want := range map[string]struct{ oldest, new any }{
		`{"capacity":2}`: {dedupe.Claimed, dedupe.Claimed},
		`{"capacity":2,"when_full":"forget_oldest"}`: {dedupe.Claimed, dedupe.Claimed},
		`{"capacity":2,"when_full":"refuse"}`:        {dedupe.Delivered, dedupe.ErrFull},
		`{"capacity":3,"when_full":"refuse"}`:        {dedupe.Delivered, dedupe.Claimed},
	} {
		t.Run(config, func(t *testing.T) {
			s := mustLoad(t, config)
			deliver(t, s, arrival(t, 0))
			deliver(t, s, arrival(t, 1))
			c := expect(t, s, arrival(t, 2), want.new)
			settle(t, s, c, true)
			expect(t, s, arrival(t, 1), dedupe.Delivered)
			expect(t, s, arrival(t, 0), want.oldest)
		})
	}
}

// After a reload another store, which may have other settings, takes the place
// of the one that made the claims.
func TestStateIsSharedAcrossReloads(t *testing.T) {
	old := mustLoad(t, `{"capacity":10}`)
	reloaded := mustLoad(t, `{"capacity":2,"when_full":"refuse"}`)
	synctest.Test(t, func(t *testing.T) {
		deliver(t, old, arrival(t, 0))
		expect(t, reloaded, arrival(t, 0), dedupe.Delivered)

		// a delivery in flight across the reload is joined
		c := expect(t, old, arrival(t, 1), dedupe.Claimed)
		expect(t, reloaded, arrival(t, 1), dedupe.ErrInFlight)
		waits := arrival(t, 1)
		waits.Wait = time.Minute
		answer := make(chan dedupe.Verdict, 1)
		go func() {
			v, err := reloaded.Claim(t.Context(), waits)
			if err != nil {
				t.Error(err)
			}
			answer <- v
		}()
		synctest.Wait()
		settle(t, old, c, true)
		if v := <-answer; v.State != dedupe.Delivered {
			t.Errorf("the waiter got state %d", v.State)
		}

		// each store uses its own settings
		expect(t, reloaded, arrival(t, 2), dedupe.ErrFull)
		deliver(t, old, arrival(t, 2))
		expect(t, reloaded, arrival(t, 2), dedupe.Delivered)

		// the new store can settle a claim of the old one, once
		c = expect(t, old, arrival(t, 3), dedupe.Claimed)
		settle(t, reloaded, c, true)
		settle(t, old, c, false)
		for n := range uint64(4) {
			expect(t, reloaded, arrival(t, n), dedupe.Delivered)
		}
		// a lower capacity applies from the first operation
		expect(t, mustLoad(t, `{"capacity":1}`), arrival(t, 3), dedupe.Delivered)
		expect(t, old, arrival(t, 2), dedupe.Claimed)
	})
}

func TestWaitEndsWithTheContext(t *testing.T) {
	s := mustLoad(t, `{}`)
	synctest.Test(t, func(t *testing.T) {
		r := arrival(t, 0)
		r.Wait = time.Hour
		expect(t, s, r, dedupe.Claimed)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := s.Claim(ctx, r)
		if took := time.Since(start); !errors.Is(err, dedupe.ErrInFlight) || took != time.Second {
			t.Errorf("error %v after %v", err, took)
		}
	})
}

func TestSettlingNeedsNoContext(t *testing.T) {
	s := mustLoad(t, `{}`)
	c := expect(t, s, arrival(t, 0), dedupe.Claimed)
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // like that of a request whose sender has disconnected
	if err := s.Settle(ctx, c, true); err != nil {
		t.Fatal(err)
	}
	expect(t, s, arrival(t, 0), dedupe.Delivered)
}

func TestProvisionRejects(t *testing.T) {
	const (
		capacity = "capacity must be greater than zero"
		whenFull = "when_full must be forget_oldest or refuse, not "
	)
	for config, want := range map[string]string{
		`{"capacity":0}`:                        capacity,
		`{"capacity":-1}`:                       capacity,
		`{"capacity":0,"when_full":"refuse"}`:   capacity,
		`{"when_full":"drop"}`:                  whenFull + `"drop"`,
		`{"when_full":"Refuse"}`:                whenFull + `"Refuse"`,
		`{"capacity":5,"when_full":" refuse"}`:  whenFull + `" refuse"`,
		`{"capacity":"5"}`:                      "cannot unmarshal string",
		`{"capacity":1.5}`:                      "cannot unmarshal number 1.5",
		`{"capacity":99999999999999999999}`:     "cannot unmarshal number 99999999999999999999",
		`{"size":5}`:                            `unknown field "size"`,
		`{"capacity":5,"when_full":["refuse"]}`: "cannot unmarshal array",
	} {
		t.Run(config, func(t *testing.T) {
			_, err := load(t, config)
			expectError(t, err, want)
		})
	}
}

func expectError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got error %v, want one with %q", err, want)
	}
}

func TestCaddyfileRejects(t *testing.T) {
	const (
		number   = "capacity must be a whole number greater than zero, not "
		argument = "wrong argument count or unexpected line ending after "
	)
	for options, want := range map[string]string{
		"capacity 0":                         number + `"0", at Testfile:2`,
		"capacity -1":                        number + `"-1"`,
		"capacity many":                      number + `"many"`,
		"capacity 1.5":                       number + `"1.5"`,
		"capacity 1e6":                       number + `"1e6"`,
		"capacity 1_000":                     number + `"1_000"`,
		`capacity ""`:                        "capacity is empty",
		`when_full ""`:                       "when_full is empty",
		"refuse":                             `unknown option "refuse" of store memory`,
		"capacity 99999999999999999999":      number + `"99999999999999999999"`,
		"capacity":                           argument + "'capacity'",
		"capacity 1 2":                       argument + "'1'",
		"capacity 5\ncapacity 5":             "capacity is given more than once, at Testfile:3",
		"when_full":                          argument + "'when_full'",
		"when_full refuse refuse":            argument + "'refuse'",
		"when_full refuse\nwhen_full refuse": "when_full is given more than once, at Testfile:3",
		"when_full refuse\ncapacity 5\ncapacity 6": "capacity is given more than once, at Testfile:4",
		"size 5":                             `unknown option "size" of store memory: it has capacity and when_full, at Testfile:2`,
		"Capacity 5":                         `unknown option "Capacity"`,
		"capacity 5 {\n when_full refuse\n}": `unknown option "{" of store memory`,
	} {
		t.Run(options, func(t *testing.T) {
			_, err := parse("memory {\n" + options + "\n}")
			expectError(t, err, want)
		})
	}
	t.Run("argument after the name", func(t *testing.T) {
		for _, input := range []string{"memory 5", "memory 5 {\n capacity 5\n}"} {
			_, err := parse(input)
			expectError(t, err, argument+"'5'")
		}
	})
}

// An unknown value of when_full is rejected when the configuration is loaded,
// because it may also come from JSON.
func TestCaddyfileLeavesTheValueOfWhenFullToProvision(t *testing.T) {
	s, err := parse("memory {\n when_full drop\n}")
	if err != nil {
		t.Fatal(err)
	}
	expectError(t, s.Provision(caddy.Context{}), `when_full must be forget_oldest or refuse, not "drop"`)
}

func TestConfigurationRoundTrip(t *testing.T) {
	for input, want := range map[string]string{
		"memory":                                `{}`,
		"memory {\n}":                           `{}`,
		"memory {\n capacity 7\n}":              `{"capacity":7}`,
		"memory {\n when_full forget_oldest\n}": `{"when_full":"forget_oldest"}`,
		"memory {\n when_full refuse\n capacity 2000000\n}": `{"capacity":2000000,"when_full":"refuse"}`,
	} {
		t.Run(input, func(t *testing.T) {
			parsed, err := parse(input)
			if err != nil {
				t.Fatal(err)
			}
			// provisioning must not write defaults into the configuration
			for _, s := range []*Store{parsed, mustLoad(t, want)} {
				got, err := json.Marshal(s)
				if err != nil || string(got) != want {
					t.Errorf("got %s and error %v, want %s", got, err, want)
				}
			}
		})
	}
}
