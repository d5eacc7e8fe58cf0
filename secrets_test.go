package buzzbip

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf16"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// writeSecret writes a secret file and returns its path.
func writeSecret(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// inUTF16 encodes text as Windows does, or in network order.
func inUTF16(text string, littleEndian bool) string {
	var encoded strings.Builder
	for _, unit := range utf16.Encode([]rune(text)) {
		high, low := byte(unit>>8), byte(unit)
		if littleEndian {
			high, low = low, high
		}
		encoded.Write([]byte{high, low})
	}
	return encoded.String()
}

// What cannot be a secret is rejected wherever it comes from, and no error
// shows it.
func TestWhatCannotBeASecretIsRejected(t *testing.T) {
	const secret = caddytest.Secret
	for name, test := range map[string]struct{ value, message string }{
		"byte order mark":             {"\ufeff" + secret, "byte order mark"},
		"byte order mark after space": {" \ufeff" + secret, "byte order mark"},
		"UTF-16LE with mark":          {inUTF16("\ufeff"+secret, true), "UTF-16"},
		"UTF-16BE with mark":          {inUTF16("\ufeff"+secret, false), "UTF-16"},
		"UTF-16LE":                    {inUTF16(secret, true), "UTF-16"},
		"UTF-16BE":                    {inUTF16(secret, false), "UTF-16"},
		"UTF-16LE with newline":       {inUTF16("\ufeff"+secret+"\r\n", true), "UTF-16"},
		"NUL at the end":              {secret + "\x00", "NUL"},
		"not UTF-8":                   {secret + "\xe9", "not text"},
		"decoded from hex":            {"\x80\x81\x9f\xfe\xc0" + secret, "not text"},
		"two lines":                   {secret + "\nother", "line break"},
		"lines of an old Mac":         {secret + "\rother", "line break"},
		"escape sequence":             {"\x1b[0m" + secret, "control character"},
		"tab within":                  {secret + "\tmain", "control character"},
		"zero-width space":            {"\u200b" + secret, "invisible character"},
		"zero-width space after":      {secret + "\u200b\n", "invisible character"},
		"zero-width joiner":           {secret + "\u200d" + secret, "invisible character"},
		"soft hyphen":                 {secret + "\u00ad" + secret, "invisible character"},
		"text direction":              {"\u202a" + secret + "\u202c", "invisible character"},
		"private use":                 {secret + "\ue000", "invisible character"},
		"only a zero-width space":     {"\u200b", "invisible character"},
		"only a no-break space":       {"\u00a0", "is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			path := writeSecret(t, test.value)
			for _, s := range []Secret{{File: path}, {Value: "{file." + path + "}"}, {Value: test.value}} {
				err := tryProvision(t, &Handler{Secrets: []Secret{s}})
				if err == nil || !strings.Contains(err.Error(), test.message) || !strings.Contains(err.Error(), "secret 1 ") {
					t.Errorf("%+v: the error is %v, want %q in it", s, err, test.message)
				}
				if err != nil && strings.Contains(err.Error(), secret) {
					t.Errorf("the error shows the secret: %v", err)
				}
			}
		})
	}
}

// warningsOf returns what is logged when a secret is loaded, which is accepted.
func warningsOf(t *testing.T, s Secret) []string {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	if _, err := loadSecrets([]Secret{s}, "", zap.New(core)); err != nil {
		t.Errorf("%q: %v", s, err)
	}
	var warnings []string
	for _, entry := range logs.All() {
		if entry.Level != zapcore.WarnLevel || entry.ContextMap()["secret"] != "1" {
			t.Errorf("logged %+v", entry)
		}
		warnings = append(warnings, entry.Message)
	}
	return warnings
}

func TestWarningsOfASecret(t *testing.T) {
	const secret = caddytest.Secret
	const (
		blank       = "starts or ends with a blank"
		quote       = "starts or ends with a quotation mark"
		variable    = "starts with a name and an equals sign"
		placeholder = "looks like a placeholder"
		mask        = "looks masked or shortened"
		ascii       = "contains characters that are not ASCII"
		short       = "short enough to be guessed"
	)
	tests := map[string][]string{
		"whsec_4f9c2e7d8a1b3c5d": nil, "4f9c2e7d8a1b3c5d6e7f8091a2b3c4d5": nil,
		"YWJjZGVmZ2hpamtsbW5vcA==": nil, "YWJj+ZGVm/Z2hpamtsbW5vcA=": nil, "KRUGKIDROVUWG2ZAMJZG653OE====": nil, "/ab+YWJjZGVmZ2hpamtsbW5vcA": nil,
		"yourself-is-not-your_": nil, "environment.of-a-secret": nil, "a$ecret-with-$igns-in-it": nil, "100%-of-what-is-a-secret%": nil,
		"my secret with blanks in": nil, "changed-and-secret-enough": nil, "a=b+c=d-e_f==g/h0123456": {variable},

		" " + secret: {blank}, secret + " ": {blank}, secret + "\u00a0": {blank}, secret + "\n\n": {blank}, "\t" + secret: {blank}, secret + "\r\r\n": {blank},
		`"` + secret + `"`: {quote}, `'` + secret + `'`: {quote}, "`" + secret: {quote}, secret + `"`: {quote},
		"“" + secret + "”": {quote}, "„" + secret + "“": {quote}, "‘" + secret + "’": {quote}, "«" + secret + "»": {quote}, ` "` + secret + `"`: {blank, quote},
		"BUZZBIP_SECRET=" + secret: {variable}, "export BUZZBIP_SECRET=" + secret: {variable}, "secret = " + secret: {variable}, `SECRET="` + secret + `"`: {quote, variable},
		"whsec–4f9c2e7d8a1b3c5d": {ascii}, "whsec_4f9c2é7d8a1b3c5d": {ascii},
		"whsec_••••••••••••4f9c": {mask, ascii}, "whsec_************4f9c": {mask}, "whsec_4f9c2e7d8a1…": {mask, ascii}, "whsec_4f9c2e7d8a1...": {mask},
		"fifteen-bytes-x": {short}, "sixteen-bytes-ok": nil,

		"{env.BUZZBIP_SECRET": {placeholder}, "env.BUZZBIP_SECRET": {placeholder}, "env.BUZZBIP_SECRET}": {placeholder}, "whsec_{env.BUZZBIP_SECRET": {placeholder},
		"file./run/secrets/buzzbip": {placeholder}, `\{env.BUZZBIP_SECRET\}`: {placeholder}, "%BUZZBIP_SECRET%": {placeholder}, "$BUZZBIP_SECRET_": {placeholder},
		"$BUZZBIP": {placeholder, short}, "${BUZZBIP_SECRET": {placeholder}, "{$BUZZBIP_SECRET": {placeholder}, "$(cat /run/secrets/buzzbip)": {placeholder},
		"{{ .Values.secret": {placeholder}, "<your signing secret>": {placeholder}, "<%= secret %>": {placeholder, short}, "op://vault/buzzbip/secret": {placeholder},
		"/run/secrets/buzzbip": {placeholder}, "./secrets/buzzbip": {placeholder}, `C:\secrets\buzzbip`: {placeholder}, "your-signing-secret": {placeholder},
		"changeme": {placeholder, short}, "change-me-in-production": {placeholder}, "replace_this_secret": {placeholder}, "xxxxxxxxxxxxxxxxxxxx": {placeholder},
		"undefined": {placeholder, short}, "null": {placeholder, short},
	}
	for value, want := range tests {
		path := writeSecret(t, value+"\n")
		for _, s := range []Secret{{File: path}, {Value: "{file." + path + "}"}} {
			got := warningsOf(t, s)
			ok := len(got) == len(want)
			for i := range min(len(got), len(want)) {
				ok = ok && strings.Contains(got[i], want[i])
			}
			if !ok {
				t.Errorf("%q: warnings %q, want %q", value, got, want)
			}
			for _, warning := range got {
				if strings.Contains(warning, strings.TrimSpace(value)) && len(value) > 4 {
					t.Errorf("the warning shows the secret: %s", warning)
				}
			}
		}
	}
}

func TestSecretInClearTextGetsAWarning(t *testing.T) {
	t.Setenv("BUZZBIP_TEST_SECRET", caddytest.Secret)
	path := writeSecret(t, caddytest.Secret)
	const clearText, placeholder = "in clear text", "looks like a placeholder"
	for _, test := range []struct {
		secret Secret
		want   string
	}{
		{Secret{Value: caddytest.Secret}, clearText},
		{Secret{Value: "whsec_{env.BUZZBIP_TEST_SECRET}"}, clearText},
		{Secret{Value: "{env.BUZZBIP_TEST_SECRET"}, placeholder}, // one warning, of what is the matter
		{Secret{Value: "env.BUZZBIP_TEST_SECRET"}, placeholder},
		{Secret{Value: "%BUZZBIP_TEST_SECRET%"}, placeholder},
		{Secret{Value: "{env.BUZZBIP_TEST_SECRET}"}, ""},
		{Secret{Value: "{file." + path + "}"}, ""},
		{Secret{File: path}, ""},
	} {
		got := strings.Join(warningsOf(t, test.secret), ", ")
		if test.want == "" && got != "" || !strings.Contains(got, test.want) || strings.Contains(got, clearText) && strings.Contains(got, placeholder) {
			t.Errorf("%+v: warnings %q, want %q", test.secret, got, test.want)
		}
	}
}

// Kubernetes puts secrets in place by symbolic links.
func TestSecretFileMayBeASymbolicLink(t *testing.T) {
	path := writeSecret(t, caddytest.Secret)
	link := path + ".link"
	if err := os.Symlink(filepath.Base(path), link); err != nil {
		t.Skip(err)
	}
	provision(t, &Handler{Secrets: []Secret{{File: link}, {Value: "{file." + link + "}"}}})
}

func TestSecretFileMustBeARegularFile(t *testing.T) {
	paths := []string{t.TempDir()}
	if runtime.GOOS != "windows" {
		paths = append(paths, "/dev/zero", "/dev/null")
	}
	for _, path := range paths {
		for _, s := range []Secret{{File: path}, {Value: "{file." + path + "}"}} {
			err := tryProvision(t, &Handler{Secrets: []Secret{s}})
			if err == nil || !strings.Contains(err.Error(), "regular file") || !strings.Contains(err.Error(), path) {
				t.Errorf("%+v: the error is %v", s, err)
			}
		}
	}
}

func TestSecretFileThatDoesNotAnswerIsAnErrorOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reads atomic.Int32
		answer := make(chan struct{})
		s := &secret{path: "/mnt/gone/secret", readFile: func(string) ([]byte, error) {
			reads.Add(1)
			<-answer
			return []byte(caddytest.Secret), nil
		}}
		for range 3 {
			start := time.Now()
			if _, err := s.read(); err == nil || !strings.Contains(err.Error(), "does not answer") {
				t.Errorf("the error is %v", err)
			}
			if waited := time.Since(start); waited != secretFileTimeout {
				t.Errorf("it took %s", waited)
			}
		}
		if n := reads.Load(); n != 1 {
			t.Errorf("%d reads wait at once", n)
		}
		close(answer)
		for range 2 { // what waited, and a new one
			if value, err := s.read(); err != nil || string(value) != caddytest.Secret {
				t.Errorf("read %q, %v", value, err)
			}
		}
		if n := reads.Load(); n != 2 {
			t.Errorf("%d reads", n)
		}
	})
}

// watchedFile is the secrets of a handler with one file, in a bubble of synctest.
type watchedFile struct {
	t    *testing.T
	path string
	*secrets
	logs *observer.ObservedLogs
}

func newWatchedFile(t *testing.T) *watchedFile {
	path := writeSecret(t, caddytest.Secret)
	core, logs := observer.New(zapcore.InfoLevel)
	all, err := loadSecrets([]Secret{{File: path}}, "", zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	all.watch(ctx, func(string) {})
	return &watchedFile{t, path, all, logs}
}

func (w *watchedFile) write(content string) {
	w.t.Helper()
	if err := os.WriteFile(w.path, []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// after n more reads, the secret must be the one wanted.
func (w *watchedFile) after(n int, want string) {
	w.t.Helper()
	time.Sleep(time.Duration(n) * watchInterval)
	synctest.Wait()
	for k := range w.keys() {
		if k.sign(nil) != newKey("", []byte(want), "").sign(nil) {
			w.t.Errorf("after %d reads the secret is not %q", n, want)
		}
	}
}

func TestHalfWrittenSecretFileDoesNotCount(t *testing.T) {
	const next = "the-secret-after-the-rotation"
	synctest.Test(t, func(t *testing.T) {
		w := newWatchedFile(t)
		w.after(1, caddytest.Secret)
		for n := 4; n < len(next); n += 4 { // each read sees more of it
			w.write(next[:n])
			w.after(1, caddytest.Secret)
		}
		w.write(next)
		w.after(1, caddytest.Secret)
		w.after(1, next)
		// there and back again is no change
		w.write(caddytest.Secret)
		w.after(1, next)
		w.write(next)
		w.after(1, next)
		w.write(caddytest.Secret)
		w.after(1, next)
		w.after(1, caddytest.Secret)
		// nor does a read count that an error follows
		w.write(next)
		w.after(1, caddytest.Secret)
		w.write("")
		w.after(1, caddytest.Secret)
		w.write(next)
		w.after(1, caddytest.Secret)
		w.after(1, next)
		if n := w.logs.FilterMessage("the secret has changed").Len(); n != 3 {
			t.Errorf("%d changes were logged", n)
		}
	})
}

func TestChangedFileThatCannotBeASecretLeavesTheLastOneActive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatchedFile(t)
		for content, cause := range map[string]string{
			"\ufeffthe-secret-after-the-rotation":          "byte order mark",
			inUTF16("the-secret-after-the-rotation", true): "UTF-16",
			"\n": "is empty",
			"one-secret-of-two-lines\nanother-secret": "line break",
		} {
			w.logs.TakeAll()
			w.write(content)
			w.after(5, caddytest.Secret)
			entries := w.logs.FilterMessageSnippet("keeping the current secret").All()
			if len(entries) != 1 || entries[0].Level != zapcore.ErrorLevel {
				t.Fatalf("%q: logged %+v", content, w.logs.All())
			}
			if err := entries[0].ContextMap()["error"].(string); !strings.Contains(err, cause) || strings.Contains(err, strings.TrimSpace(content)) && content != "\n" {
				t.Errorf("%q: the error is %s", content, err)
			}
		}
		w.logs.TakeAll()
		w.write(`"quoted-secret-of-32-bytes-long!"`)
		w.after(2, `"quoted-secret-of-32-bytes-long!"`)
		if w.logs.FilterMessageSnippet("quotation mark").FilterLevelExact(zapcore.WarnLevel).Len() != 1 || w.logs.FilterMessage("secret file can be read again").Len() != 1 {
			t.Errorf("logged %+v", w.logs.All())
		}
		if err := os.Remove(w.path); err != nil {
			t.Fatal(err)
		}
		if _, err := w.reload(w.list[0]); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the error is %v", err)
		}
	})
}
