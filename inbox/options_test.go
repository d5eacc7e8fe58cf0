package inbox

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// parse reads the options of the block of an inbox.
func parse(block string) (o Options, err error) {
	d := caddyfile.NewTestDispenser("test {\n" + block + "\n}")
	d.Next()
	for d.NextBlock(0) {
		if err := o.UnmarshalCaddyfileOption(d, "test"); err != nil {
			return o, err
		}
	}
	return o, nil
}

func TestOptionsInACaddyfile(t *testing.T) {
	o, err := parse(`
		accept         always
		retry          10s 1h
		dead_after     2d
		dead_on        422 4xx
		concurrency    3
		rate           50
		max_size       2MiB
		keep_delivered 1h
		keep_dead      7d`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(o)
	const want = `{"accept":"always","first_retry":10000000000,"longest_retry":3600000000000,"dead_after":172800000000000,` +
		`"dead_on":[422,4],"concurrency":3,"rate":50,"max_size":2097152,"keep_delivered":3600000000000,"keep_dead":604800000000000}`
	if err != nil || string(got) != want {
		t.Errorf("got %s, error %v; want %s", got, err, want)
	}
	if o, err := parse("retry 1s"); err != nil || o.LongestRetry != nil {
		t.Errorf("the longest retry is %v, error %v", o.LongestRetry, err)
	}
}

func TestBadOptionsInACaddyfile(t *testing.T) {
	for block, want := range map[string]string{
		"capacity 5":                           `unknown option "capacity" of inbox test: it has accept, retry`,
		"accept":                               "rong argument count",
		"accept always\naccept always":         "accept is given more than once",
		"retry":                                "rong argument count",
		"retry 1s 2s 3s":                       "rong argument count",
		"retry 1s\nretry 2s":                   "retry is given more than once",
		"retry soon":                           "retry must be a duration such as 30s",
		"retry 1s 0":                           "retry must be greater than zero",
		"dead_after 0":                         "dead_after must be greater than zero",
		"dead_after 1h\ndead_after 1h":         "dead_after is given more than once",
		"dead_on":                              "rong argument count",
		"dead_on 4":                            `dead_on must have statuses such as 422, or classes such as 4xx, not "4"`,
		"dead_on 4*":                           "dead_on must have statuses such as 422",
		"dead_on -22":                          "dead_on must have statuses from 300 to 599",
		"dead_on 600":                          "dead_on must have statuses from 300 to 599",
		"dead_on 6xx":                          "dead_on must have statuses from 300 to 599",
		"dead_on 204":                          "dead_on must not have a 2xx status",
		"dead_on 2xx":                          "dead_on must not have a 2xx status",
		"dead_on 422\ndead_on 4xx":             "dead_on is given more than once",
		"concurrency 0":                        "concurrency must be a whole number greater than zero",
		"concurrency 1.5":                      "concurrency must be a whole number greater than zero",
		"rate off":                             "rate must be a whole number greater than zero",
		"max_size lots":                        "max_size must be a size such as",
		"max_size 0":                           "max_size must be greater than zero",
		"keep_delivered 0":                     "keep_delivered must be greater than zero",
		"keep_dead -1h":                        "keep_dead must be greater than zero",
		"keep_dead 1h\nkeep_dead 1h":           "keep_dead is given more than once",
		"concurrency 1 2":                      "rong argument count",
		"rate 1\nrate 1":                       "rate is given more than once",
		"max_size 1MB\nmax_size 1MB":           "max_size is given more than once",
		"keep_delivered 1h\nkeep_delivered 1h": "keep_delivered is given more than once",
	} {
		if _, err := parse(block); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", block, err, want)
		}
	}
}

func TestDefaultsOfOptions(t *testing.T) {
	var o Options
	if err := o.Resolve(); err != nil {
		t.Fatal(err)
	}
	p := o.Policy()
	p.DeadOn = nil // not comparable
	want := Policy{
		FirstRetry: 5 * time.Second, LongestRetry: 15 * time.Minute, DeadAfter: 72 * time.Hour,
		Concurrency: 8, KeepDead: 720 * time.Hour,
	}
	if p.FirstRetry != want.FirstRetry || p.LongestRetry != want.LongestRetry || p.DeadAfter != want.DeadAfter ||
		p.Concurrency != want.Concurrency || p.Rate != want.Rate || p.KeepDelivered != want.KeepDelivered || p.KeepDead != want.KeepDead {
		t.Errorf("got %+v, want %+v", p, want)
	}
	if o.AcceptsAlways() || o.Capacity() != 1<<30 {
		t.Errorf("it accepts always: %t, and %d bytes", o.AcceptsAlways(), o.Capacity())
	}
}

func TestPolicyIsThatOfTheOptions(t *testing.T) {
	o := unmarshal(t, `{"accept":"always","first_retry":"20m","dead_after":"1h","dead_on":[422,5],"concurrency":3,"rate":7,"max_size":9,"keep_delivered":"1m","keep_dead":"2m"}`)
	if err := o.Resolve(); err != nil {
		t.Fatal(err)
	}
	p := o.Policy()
	if p.FirstRetry != 20*time.Minute || p.LongestRetry != 20*time.Minute || p.DeadAfter != time.Hour || p.Concurrency != 3 ||
		p.Rate != 7 || p.KeepDelivered != time.Minute || p.KeepDead != 2*time.Minute || !o.AcceptsAlways() || o.Capacity() != 9 {
		t.Errorf("got %+v", p)
	}
	for status, want := range map[int]bool{0: false, 404: false, 422: true, 499: false, 500: true, 599: true, 42: false} {
		if got := p.DeadOn(status); got != want {
			t.Errorf("%d is one that no retry will change: %t", status, got)
		}
	}
}

func TestBadOptionsFailTheLoad(t *testing.T) {
	for config, want := range map[string]string{
		`{"accept":"never"}`:                         "accept must be on_failure or always",
		`{"first_retry":0}`:                          "first_retry must be greater than zero",
		`{"longest_retry":-1}`:                       "longest_retry must be greater than zero",
		`{"first_retry":"10s","longest_retry":"9s"}`: "retry: the longest time (9s) must not be shorter than the first (10s)",
		`{"dead_after":0}`:                           "dead_after must be greater than zero",
		`{"dead_after":"5s"}`:                        "dead_after (5s) must be longer than the time until the first retry (5s)",
		`{"dead_on":[200]}`:                          "dead_on must not have a 2xx status",
		`{"dead_on":[42]}`:                           "dead_on must have statuses from 300 to 599",
		`{"concurrency":0}`:                          "concurrency must be greater than zero",
		`{"rate":0}`:                                 "rate must be greater than zero",
		`{"max_size":-1}`:                            "max_size must be greater than zero",
		`{"keep_delivered":0}`:                       "keep_delivered must be greater than zero",
		`{"keep_dead":0}`:                            "keep_dead must be greater than zero",
	} {
		o := unmarshal(t, config)
		if err := o.Resolve(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", config, err, want)
		}
	}
}

func unmarshal(t *testing.T, config string) (o Options) {
	t.Helper()
	if err := json.Unmarshal([]byte(config), &o); err != nil {
		t.Fatal(err)
	}
	return o
}
