package webhook

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSecretIsReadWithoutOneNewline(t *testing.T) {
	for text, want := range map[string]string{
		"secret":                           "secret",
		"secret\n":                         "secret",
		"secret\r\n":                       "secret",
		"secret\n\n":                       "secret\n",
		" secret \n":                       " secret ",
		"one\ntwo\n":                       "one\ntwo",
		"se\x00ret\r":                      "se\x00ret", // CheckSecret rejects it
		strings.Repeat("x", maxSecretSize): strings.Repeat("x", maxSecretSize),
	} {
		if got, err := ReadSecret(strings.NewReader(text), "here"); err != nil || string(got) != want {
			t.Errorf("%.20q is read as %.20q, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"":                                   "here is empty",
		" \r\n":                              "here is empty",
		strings.Repeat("x", maxSecretSize+1): "here is too large for a secret",
	} {
		if got, err := ReadSecret(strings.NewReader(text), "here"); got != nil || err == nil || err.Error() != want {
			t.Errorf("%.20q is read as %.20q, %v, want the error %q", text, got, err, want)
		}
	}
}

func TestSecretFileIsRegularOrALinkToARegularFile(t *testing.T) {
	directory := t.TempDir()
	path := filepath.Join(directory, "secret")
	if err := os.WriteFile(path, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	paths := []string{path}
	if link := path + ".link"; os.Symlink("secret", link) == nil {
		paths = append(paths, link)
	}
	for _, path := range paths {
		if got, err := ReadSecretFile(path); err != nil || string(got) != "secret" {
			t.Errorf("%s is read as %q, %v", path, got, err)
		}
	}
	if _, err := ReadSecretFile(directory); !errors.Is(err, ErrNotRegular) || !strings.HasPrefix(err.Error(), directory+" is not a regular file") {
		t.Errorf("a directory: %v", err)
	}
	if _, err := ReadSecretFile(path + ".missing"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestCheckSecret(t *testing.T) {
	for value, want := range map[string]struct {
		rejected string
		warnings []string
	}{
		"whsec_4f9c2e7d8a1b3c5d":                 {"", nil},
		"":                                       {"is empty", nil},
		"\xff\xfew\x00h\x00":                     {"is in UTF-16", nil},
		"\xfe\xff\x00w\x00h":                     {"is in UTF-16", nil},
		ByteOrderMark + "whsec_4f9c2e7d8a1b3c5d": {"starts with a byte order mark", nil},
		"whsec_4f9c2e7d8a1b3c5d\xe9":             {"is not text", nil},
		"whsec_4f9c2e7d\n8a1b3c5d":               {"contains a line break", nil},
		"whsec_4f9c2e7d\u200b8a1b3c5d":           {"contains an invisible character", nil},
		"\"whsec_4f9c2e7d8a1b3c5d\" ":            {"", []string{"starts or ends with a blank", "starts or ends with a quotation mark"}},
		"“whsec_4f9c2e7d8a1b3c5d”":               {"", []string{"starts or ends with a quotation mark"}},
		"BUZZBIP_SECRET=whsec_4f9c2e7d8a1b3c5d":  {"", []string{"starts with a name and an equals sign"}},
		"KRUGKIDROVUWG2ZAMJZG653OE====":          {"", nil}, // base64
		"{env.BUZZBIP_SECRET":                    {"", []string{"looks like a placeholder"}},
		"whsec_************3c5d":                 {"", []string{"looks masked"}},
		"whsec–4f9c2e7d8a1b3c5d":                 {"", []string{"contains characters that are not ASCII"}},
		"fifteen-bytes-x":                        {"", []string{"is short enough to be guessed: it has fewer than 16 bytes"}},
	} {
		warnings, err := CheckSecret([]byte(value))
		if err == nil != (want.rejected == "") || err != nil && !strings.HasPrefix(err.Error(), want.rejected) || len(warnings) != len(want.warnings) {
			t.Errorf("%q: %v, %q, want %+v", value, err, warnings, want)
			continue
		}
		for i, warning := range want.warnings {
			if !strings.HasPrefix(warnings[i], warning) {
				t.Errorf("%q: the warnings are %q, want %q", value, warnings, want.warnings)
			}
		}
	}
}

func TestLooksUTF16(t *testing.T) {
	for value, want := range map[string]bool{
		"":                     false,
		"secret":               false,
		"\xff":                 false,
		ByteOrderMark + "text": false, // UTF-8
		"\xff\xfes\x00":        true,
		"\xfe\xff\x00s":        true,
		"s\x00e\x00":           true,
		"\x00s\x00e":           true,
	} {
		if got := LooksUTF16([]byte(value)); got != want {
			t.Errorf("%q: %t", value, got)
		}
	}
}
