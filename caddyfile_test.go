package buzzbip

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

var update = flag.Bool("update", false, "write what is adapted to testdata/adapt, to be reviewed")

// Each file in testdata/adapt is a Caddyfile, a line of dashes, and the JSON
// that it is adapted to or the error that it gives.
func TestAdapt(t *testing.T) {
	files, err := filepath.Glob("testdata/adapt/*.caddyfiletest")
	if err != nil || len(files) == 0 {
		t.Fatal("no files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddyfiletest"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			const separator = "----------\n"
			input, want, found := strings.Cut(string(text), separator)
			if !found {
				t.Fatal("no separator")
			}
			got := adapted(input)
			if isError := strings.HasPrefix(filepath.Base(file), "error_"); isError == json.Valid([]byte(got)) {
				t.Errorf("got %s", got)
			}
			if *update {
				if err := os.WriteFile(file, []byte(input+separator+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestUnknownOptionListsTheOptions(t *testing.T) {
	_, listed, _ := strings.Cut(adapted(":80 {\n\tbuzzbip_webhook {env.A} {\n\t\tnothing\n\t}\n}\n"), "it has ")
	listed, _, _ = strings.Cut(listed, ", at ")
	every, err := os.ReadFile("testdata/adapt/every_option.caddyfiletest")
	if err != nil {
		t.Fatal(err)
	}
	for option := range strings.SplitSeq(listed, ", ") {
		if got := adapted(":80 {\n\tbuzzbip_webhook {env.A} {\n\t\t" + option + "\n\t}\n}\n"); strings.Contains(got, "option") {
			t.Errorf("it lists %q: %s", option, got)
		}
	}
	input, _, _ := strings.Cut(string(every), "----------\n")
	for line := range strings.Lines(input) {
		option, isOption := strings.CutPrefix(line, "\t\t")
		if option, _, _ = strings.Cut(strings.TrimSpace(option), " "); isOption && !strings.HasPrefix(line, "\t\t\t") && option != "}" && !slices.Contains(strings.Split(listed, ", "), option) {
			t.Errorf("it does not list %s: %s", option, listed)
		}
	}
}

// A directive among the options is there because a brace is missing.
func TestDirectiveAmongTheOptionsAsksForABrace(t *testing.T) {
	for _, directive := range strings.Fields(`
		abort acme_server basic_auth bind encode error file_server forward_auth fs handle handle_errors handle_path header
		intercept invoke log log_append map method metrics php_fastcgi push redir request_body request_header
		respond reverse_proxy rewrite root route templates tls tracing try_files uri vars @name buzzbip_webhook`) {
		got := adapted(":80 {\n\tbuzzbip_webhook {env.A} {\n\t\tevents message.*\n\t" + directive + " x\n}\n")
		if !strings.Contains(got, directive+" is not an option of buzzbip_webhook: close its block with a }") || !strings.Contains(got, "Caddyfile:4") {
			t.Errorf("%s: %s", directive, got)
		}
	}
}

func adapted(input string) string {
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(input), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return err.Error() + "\n"
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, config, "", "\t"); err != nil {
		return err.Error() + "\n"
	}
	return indented.String() + "\n"
}

func ptr[T any](v T) *T { return &v }

// What the Caddyfile parser refuses is refused in JSON too, and what only shows
// when placeholders are expanded is refused in both.
func TestRefusedAtLoad(t *testing.T) {
	t.Setenv("BUZZBIP_TEST_BLANK", " \t")
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	one := []Secret{{Value: testSecret}}
	tests := map[string]struct {
		handler Handler
		message string
	}{
		"no secret":                     {Handler{}, "no secret"},
		"empty secret":                  {Handler{Secrets: []Secret{{}}}, "secret 1 is empty"},
		"blank secret":                  {Handler{Secrets: []Secret{{Value: "  "}}}, "secret 1 is empty"},
		"unset variable":                {Handler{Secrets: []Secret{{Value: testSecret}, {Value: "{env.BUZZBIP_TEST_UNSET}"}}}, "secret 2 {env.BUZZBIP_TEST_UNSET} is empty"},
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
		"bad dedupe":                    {Handler{Secrets: one, Dedupe: "on"}, `dedupe can only be off, not "on"`},
		"zero max_body_size":            {Handler{Secrets: one, MaxBodySize: ptr[int64](0)}, "max_body_size must be greater than zero"},
		"negative max_body_size":        {Handler{Secrets: one, MaxBodySize: ptr[int64](-1)}, "max_body_size must be greater than zero"},
		"zero read_timeout":             {Handler{Secrets: one, ReadTimeout: ptr[caddy.Duration](0)}, "read_timeout must be greater than zero"},
		"negative delivery_timeout":     {Handler{Secrets: one, DeliveryTimeout: ptr[caddy.Duration](-1)}, "delivery_timeout must be greater than zero"},
		"zero duplicate_wait":           {Handler{Secrets: one, DuplicateWait: ptr[caddy.Duration](0)}, "duplicate_wait must be greater than zero"},
		"zero max_age":                  {Handler{Secrets: one, MaxAge: ptr[caddy.Duration](0)}, "max_age must be greater than zero"},
		"zero retention":                {Handler{Secrets: one, Retention: ptr[caddy.Duration](0)}, "retention must be greater than zero"},
		"max_age beyond the retention":  {Handler{Secrets: one, MaxAge: ptr(caddy.Duration(24*time.Hour - webhook.ClockSkew + 1))}, "raise retention or lower max_age"},
		"max_age beyond that retention": {Handler{Secrets: one, MaxAge: ptr(caddy.Duration(time.Hour)), Retention: ptr(caddy.Duration(time.Hour))}, "raise retention or lower max_age"},
		"dedupe off with a store":       {Handler{Secrets: one, Dedupe: "off", StoreRaw: json.RawMessage(`{"module":"memory"}`)}, "remove it, or remove store and retention"},
		"dedupe off with retention":     {Handler{Secrets: one, Dedupe: "off", Retention: ptr(caddy.Duration(time.Hour))}, "remove it, or remove store and retention"},
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
				if s.Value == testSecret && strings.Contains(err.Error(), testSecret) || strings.Contains(err.Error(), "abc") {
					t.Errorf("the error tells the secret: %v", err)
				}
			}
		})
	}
}

func TestAcceptedAtLoad(t *testing.T) {
	t.Setenv("BUZZBIP_TEST_SECRET", testSecret)
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(testSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	body := []byte("body")
	expected := newKey("", []byte(testSecret), "").sign(body)
	for name, h := range map[string]Handler{
		"variable":                    {Secrets: []Secret{{Value: "{env.BUZZBIP_TEST_SECRET}"}}},
		"file with a final newline":   {Secrets: []Secret{{Value: "{file." + file + "}"}}},
		"largest max_age":             {Secrets: []Secret{{Value: testSecret}}, MaxAge: ptr(caddy.Duration(24*time.Hour - webhook.ClockSkew))},
		"dedupe off with any max_age": {Secrets: []Secret{{Value: testSecret}}, Dedupe: "off", MaxAge: ptr(caddy.Duration(100 * time.Hour))},
		"short retention, no max_age": {Secrets: []Secret{{Value: testSecret}}, Retention: ptr(caddy.Duration(time.Second))},
	} {
		t.Run(name, func(t *testing.T) {
			provision(t, &h)
			if h.secrets.verify(body, expected) == nil {
				t.Error("the secret is not in force")
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	h := &Handler{Secrets: []Secret{{Value: testSecret}, {Value: "another-secret-that-is-long", Label: "old"}}}
	provision(t, h)
	if h.maxBodySize != 1<<20 || h.readTimeout != 10*time.Second || h.deliveryTimeout != time.Minute ||
		h.duplicateWait != 8*time.Second || h.maxAge != 0 || h.retention != 24*time.Hour || h.requires != (webhook.Requirements{CreatedAt: true, Data: true}) {
		t.Errorf("the defaults are %+v", h)
	}
	if first, second := h.secrets.list[0].label, h.secrets.list[1].label; first != "1" || second != "old" {
		t.Errorf("the labels are %q, %q", first, second)
	}
}

func TestSecretsAreNotInTheConfiguration(t *testing.T) {
	t.Setenv("BUZZBIP_TEST_SECRET", testSecret)
	config := adapt(t, ":80 {\n\tbuzzbip_webhook {env.BUZZBIP_TEST_SECRET}\n}\n")
	if bytes.Contains(config, []byte(testSecret)) {
		t.Errorf("the secret was expanded: %s", config)
	}
	h := &Handler{Secrets: []Secret{{Value: "{env.BUZZBIP_TEST_SECRET}"}}}
	provision(t, h)
	shown, err := json.Marshal(h)
	if err != nil || bytes.Contains(shown, []byte(testSecret)) {
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
		t.Errorf("the log tells the secret: %s", log)
	}
}

func FuzzCaddyfile(f *testing.F) {
	files, err := filepath.Glob("testdata/adapt/*.caddyfiletest")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		site, _, _ := strings.Cut(string(text), "----------\n")
		if _, directive, found := strings.Cut(site, "buzzbip_webhook"); found {
			f.Add("buzzbip_webhook" + directive)
		}
	}
	f.Fuzz(func(t *testing.T, input string) {
		h := new(Handler)
		if err := h.UnmarshalCaddyfile(caddyfile.NewTestDispenser(input)); err != nil {
			return
		}
		// what the parser accepts survives JSON
		config, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		var again Handler
		if err := json.Unmarshal(config, &again); err != nil {
			t.Fatal(err)
		}
		if config2, err := json.Marshal(again); err != nil || !bytes.Equal(config, config2) {
			t.Fatalf("%s became %s (%v)", config, config2, err)
		}
	})
}
