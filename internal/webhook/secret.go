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
	// shortSecret is the length in bytes below which a secret gets a warning.
	shortSecret = 16
	// maxSecretFile is the size in bytes of the largest file that can be a
	// secret.
	maxSecretFile = 64 << 10
)

// CheckSecret says what is suspicious about a value, or why it cannot be a
// secret as BuzzBip shows it. Both continue a sentence that begins with "the
// secret", and contain nothing of it.
//
// What is rejected cannot be shown on a page, so no secret has it. The rest is
// unlikely, but BuzzBip does not document what its secrets consist of.
func CheckSecret(value []byte) (warnings []string, reject error) {
	text := string(value)
	trimmed := strings.TrimSpace(text)
	switch {
	case trimmed == "":
		return nil, errors.New("is empty")
	case strings.HasPrefix(text, "\xff\xfe"), strings.HasPrefix(text, "\xfe\xff"), strings.Contains(text, "\x00"):
		return nil, errors.New("is in UTF-16 or contains NUL bytes: save it as plain text in UTF-8")
	case strings.HasPrefix(trimmed, "\ufeff"):
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

// Quotes are the quotation marks of keyboards and of word processors.
const Quotes = "\"'`´“”„‟‘’‚‛«»‹›"

var (
	// assignment is of a value that is not only the = that base64 ends with.
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

// LooksUnexpanded reports whether a secret looks like what should have been
// replaced with one.
func LooksUnexpanded(text string) bool { return unexpanded.MatchString(strings.TrimSpace(text)) }

// ReadSecret reads a secret, without the newline at its end.
func ReadSecret(from io.Reader, name string) ([]byte, error) {
	value, err := io.ReadAll(io.LimitReader(from, maxSecretFile+1))
	if err != nil {
		return nil, err
	}
	if len(value) > maxSecretFile {
		return nil, fmt.Errorf("%s is too large for a secret", name)
	}
	value = bytes.TrimSuffix(bytes.TrimSuffix(value, []byte("\n")), []byte("\r"))
	if len(bytes.TrimSpace(value)) == 0 {
		return nil, fmt.Errorf("%s is empty", name)
	}
	return value, nil
}

// ReadSecretFile reads a secret from a regular file, or a link to one.
func ReadSecretFile(path string) ([]byte, error) {
	// opening a device can have effects of its own
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, irregular(path)
	}
	file, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return ReadSecret(file, path)
}

// openRegular does not wait for the other end of a pipe that has taken the
// place of a file.
func openRegular(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = irregular(path)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func irregular(path string) error {
	return fmt.Errorf("%s is a directory, a pipe or a device: give the path of a regular file that holds the secret", path)
}
