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
