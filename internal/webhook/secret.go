package webhook

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"
)

const (
	// shortSecret is the length below which a secret gets a warning, in bytes.
	shortSecret = 16
	// maxSecretSize bounds what is read as a secret, in bytes.
	maxSecretSize = 64 << 10
)

const (
	// ByteOrderMark is what some editors write at the start of a file.
	ByteOrderMark = "\ufeff"
	// ASCIIQuotes are the quotation marks of keyboards and shells.
	ASCIIQuotes = "\"'`"
	// Quotes are ASCIIQuotes and the typographic ones of word processors.
	Quotes = ASCIIQuotes + "´“”„‟‘’‚‛«»‹›"
)

// CheckSecret returns an error if value cannot be a secret as BuzzBip shows it,
// or else a warning for each thing that is suspicious about it. The texts continue
// a sentence that begins with "the secret", and contain no part of value.
//
// Rejected are only values that a web page cannot show. Everything else may be a
// secret: BuzzBip does not document which characters its secrets consist of.
func CheckSecret(value []byte) (warnings []string, err error) {
	text := string(value)
	trimmed := strings.TrimSpace(text)
	switch {
	case trimmed == "":
		return nil, errors.New("is empty")
	case LooksUTF16(value):
		return nil, errors.New("is in UTF-16 or contains NUL bytes: save it as plain text in UTF-8")
	case strings.HasPrefix(trimmed, ByteOrderMark):
		return nil, errors.New("starts with a byte order mark, which is not part of it: save it as UTF-8 without one")
	case !utf8.ValidString(text):
		return nil, errors.New("is not text: save it in UTF-8, exactly as BuzzBip shows it, not decoded")
	case strings.ContainsFunc(trimmed, unicode.IsControl):
		return nil, errors.New("contains a line break or another control character: keep nothing but the secret there")
	case strings.ContainsFunc(trimmed, func(r rune) bool { return !unicode.IsGraphic(r) }):
		return nil, errors.New("contains an invisible character, such as a zero-width space: copy it again, or type it")
	}
	warn := func(suspicious bool, problem string) {
		if suspicious {
			warnings = append(warnings, problem)
		}
	}
	warn(trimmed != text, "starts or ends with a blank or a line break, which is rarely part of it: remove it")
	warn(strings.Trim(trimmed, Quotes) != trimmed, "starts or ends with a quotation mark, which is rarely part of it: remove it")
	warn(assignment.MatchString(trimmed), "starts with a name and an equals sign, as in a file of variables: keep only what follows")
	warn(LooksUnexpanded(text), "looks like a placeholder or a path that was not expanded: write {env.NAME} or {file./path}, or use secret_file")
	warn(masked.MatchString(trimmed), "looks masked or shortened: copy the whole secret")
	warn(strings.ContainsFunc(strings.Trim(trimmed, Quotes), func(r rune) bool { return r >= utf8.RuneSelf }),
		"contains characters that are not ASCII, such as a typographic dash: copy it again, or type it")
	warn(len(value) < shortSecret, fmt.Sprintf("is short enough to be guessed: it has fewer than %d bytes", shortSecret))
	return warnings, nil
}

// LooksUTF16 reports whether a value starts with a byte order mark of UTF-16 or
// contains NUL bytes, as ASCII text in UTF-16 does.
func LooksUTF16(value []byte) bool {
	return bytes.HasPrefix(value, []byte("\xff\xfe")) || bytes.HasPrefix(value, []byte("\xfe\xff")) || bytes.IndexByte(value, 0) >= 0
}

var (
	// assignment matches NAME=value, but not the = at the end of base64. It is
	// narrower than what `caddy buzzbip explain` tries: a false warning is repeated
	// at each load.
	assignment = regexp.MustCompile(`^(export\s+)?[A-Za-z_][A-Za-z0-9_]*\s*=\s*[^=\s]`)

	masked = regexp.MustCompile(`\*\*\*|•|●|…|\.\.\.`)

	unexpanded = regexp.MustCompile(`(?i)` + strings.Join([]string{
		`^\{`, `\}$`, `\{(env|file|system|vars?)\.`, `\{\$`, `\$\{`, `\{\{`, // {env.NAME {$NAME} ${NAME} {{NAME}}
		`^\$\w+$`, `^\$\(`, `^%\w+%$`, `^<.+>$`, // $NAME $(command) %NAME% <name>
		`^(env|file)\.[\w./\\:-]+$`, // env.NAME
		`^[a-z][a-z0-9+.-]*://`,     // op://vault/item
		`^\.{0,2}/(run|etc|var|home|root|opt|usr|mnt|srv|data|secrets?|tmp)/`, `^[a-z]:\\`, // a path
		`^(change|replace)[-_ ]?(me|this|it)`, `^your[-_ ]`, `^x+$`,
		`^(secret|password|example|placeholder|todo|none|null|nil|undefined|true|false)$`,
	}, "|"))
)

// LooksUnexpanded reports whether a value looks like a placeholder, a variable, a
// path or an example that should have been replaced with a secret.
func LooksUnexpanded(text string) bool { return unexpanded.MatchString(strings.TrimSpace(text)) }

// ReadSecret reads a secret of at most 64 KiB and drops one newline (LF or CRLF)
// at its end. It does not check the secret otherwise: see [CheckSecret]. Errors
// about the content begin with name, which says where the secret comes from.
func ReadSecret(from io.Reader, name string) ([]byte, error) {
	value, err := io.ReadAll(io.LimitReader(from, maxSecretSize+1))
	if err != nil {
		return nil, err
	}
	if len(value) > maxSecretSize {
		return nil, fmt.Errorf("%s is too large for a secret", name)
	}
	value = bytes.TrimSuffix(bytes.TrimSuffix(value, []byte("\n")), []byte("\r"))
	if len(bytes.TrimSpace(value)) == 0 {
		return nil, fmt.Errorf("%s is empty", name)
	}
	return value, nil
}

// ErrNotRegular is in the error of [ReadSecretFile] for a directory, a pipe or a
// device.
var ErrNotRegular = errors.New("is not a regular file: give the path of one that holds the secret")

// ReadSecretFile reads a secret from a regular file, or a link to one, as
// [ReadSecret] does. It never waits for the writer of a pipe.
func ReadSecretFile(path string) ([]byte, error) {
	// opening a device can have effects of its own, so this looks before it opens
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if err := mustBeRegular(info, path); err != nil {
		return nil, err
	}
	file, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return ReadSecret(file, path)
}

// openRegular opens a file, and does not wait if a pipe has taken its place.
func openRegular(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil {
		err = mustBeRegular(info, path)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func mustBeRegular(info os.FileInfo, path string) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s %w", path, ErrNotRegular)
	}
	return nil
}
