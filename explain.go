package buzzbip

import (
	"bytes"
	"compress/gzip"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/dustin/go-humanize"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"
)

func explainCommand() *cobra.Command {
	var secrets secretFlags
	var signature, envelope, maxBodySize, at string
	var maxAge time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain [<body-file>]",
		Short: "Says why a request would be refused, and what is likely wrong",
		Long: `Takes a captured request through the steps of buzzbip_webhook. If the signature
is not that of the body, it looks for the mistake that explains it: another
secret, a newline or blanks at its end, a secret that was decoded, a signature in
another encoding or with a prefix, another algorithm, a body that was saved with
a newline, parsed and written again, or converted.

Capture the body byte for byte. Without a file it is standard input. Fails if the
request would be refused. The right signature is never shown.`,
		Example: `  caddy buzzbip explain captured.json --signature 700d048d09cd1f75… --secret-file secret.txt
  caddy buzzbip explain captured.json --signature 700d048d… --secret-env CURRENT --secret-env PREVIOUS
  caddy buzzbip explain captured.json --signature 700d048d… --max-age 24h --at 2026-06-01T14:32:05Z`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := stdin
			if len(args) == 1 {
				name = args[0]
			}
			given, err := secrets.read(cmd)
			if err != nil {
				return err
			}
			body, err := readBody(cmd, name, secrets)
			if err != nil {
				return err
			}
			lenient, err := choice("--envelope", envelope, envelopeStrict, envelopeLenient)
			if err != nil {
				return err
			}
			limit, err := parseSize("--max-body-size", maxBodySize)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("max-age") {
				if err := positive("--max-age", caddy.Duration(maxAge)); err != nil {
					return err
				}
			}
			request := capture{body: body, secrets: given, maxBodySize: limit, maxAge: maxAge, at: time.Now()}
			request.requires = requirements{createdAt: !lenient || maxAge > 0, data: !lenient}
			if at != "" {
				if request.at, err = parseTime([]byte(at)); err != nil {
					return fmt.Errorf("--at %q is not a time such as 2026-06-01T14:32:05Z", at)
				}
			}
			if cmd.Flags().Changed("signature") {
				request.signature = &signature
			}
			e := request.explain()
			if asJSON {
				if err := json.NewEncoder(cmd.OutOrStdout()).Encode(e); err != nil {
					return err
				}
			} else {
				e.print(cmd.OutOrStdout())
			}
			if e.Reason != "" {
				cmd.SilenceErrors = true
				return errors.New("the request would be refused")
			}
			return nil
		},
	}
	secrets.add(cmd)
	cmd.Flags().StringVar(&signature, "signature", "", "what the header "+SignatureHeader+" said; leave it out if there was none")
	cmd.Flags().StringVar(&envelope, "envelope", envelopeStrict, "as in the Caddyfile: strict or lenient")
	cmd.Flags().StringVar(&maxBodySize, "max-body-size", humanize.IBytes(defaultMaxBodySize), "as in the Caddyfile")
	cmd.Flags().DurationVar(&maxAge, "max-age", 0, "as in the Caddyfile (default no limit)")
	cmd.Flags().StringVar(&at, "at", "", "when the request arrived, such as 2026-06-01T14:32:05Z (default now)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// capture is a request that somebody wonders about.
type capture struct {
	body        []byte
	signature   *string // nil: there was no header
	secrets     []namedSecret
	requires    requirements
	maxBodySize int64
	maxAge      time.Duration
	at          time.Time
}

// explanation is what becomes of a request, and why.
type explanation struct {
	Reason Reason   `json:"reason,omitempty"` // empty: it is accepted
	Status int      `json:"status,omitempty"`
	Detail string   `json:"detail,omitempty"`
	Causes []string `json:"causes,omitempty"` // likely ones, with what to do
	Secret string   `json:"secret,omitempty"` // which of them matched
	ID     string   `json:"id,omitempty"`
	Type   string   `json:"type,omitempty"`
}

func (e explanation) print(out io.Writer) {
	if e.Reason == "" {
		fmt.Fprintf(out, "accepted: the signature is right, under the secret from %s\nevent     %s %s\n", e.Secret, e.Type, e.ID)
		return
	}
	fmt.Fprintf(out, "refused: %s (%d %s)\n%s\n", e.Reason, e.Status, http.StatusText(e.Status), e.Detail)
	if len(e.Causes) > 0 {
		fmt.Fprintln(out, "\nlikely cause:")
		for _, cause := range e.Causes {
			fmt.Fprintf(out, "- %s\n", cause)
		}
	}
}

// explain goes through the steps of [Handler.admit].
func (c capture) explain() explanation {
	refused := func(reason Reason, err error, causes ...string) explanation {
		return explanation{Reason: reason, Status: reason.Status(), Detail: err.Error(), Causes: causes}
	}
	header := make(http.Header)
	if c.signature != nil {
		header.Set(SignatureHeader, *c.signature)
	}
	signature, reason, err := parseSignature(header)
	if reason == ReasonSignatureMissing {
		return refused(reason, err, "the request is not from BuzzBip, or a proxy before Caddy drops headers that it does not know")
	}
	if err != nil {
		return refused(reason, err, c.causes()...)
	}
	if int64(len(c.body)) > c.maxBodySize {
		return refused(ReasonBodyTooLarge, errBodyTooLarge, "if it is from BuzzBip, raise max_body_size; if the Caddyfile has another than was assumed here, say so with --max-body-size")
	}
	var e explanation
	for _, secret := range c.secrets {
		if newKey("", secret.value).sign(c.body) == signature {
			e.Secret = secret.from
			break
		}
	}
	if e.Secret == "" {
		return refused(ReasonSignatureMismatch, errors.New("the signature is not that of the body under any of the secrets"), c.causes()...)
	}
	event, err := parseEvent(c.body, c.requires)
	if err != nil {
		return refused(ReasonEnvelopeInvalid, fmt.Errorf("the signature is right, but the envelope is invalid: %w", err),
			"BuzzBip sends no such events: does something else sign with its secret? If it is BuzzBip, envelope lenient asks for less")
	}
	if c.maxAge > 0 {
		switch age := c.at.Sub(event.created); {
		case age > c.maxAge:
			return refused(ReasonEventStale, fmt.Errorf("the event was %s old, which is more than max_age", age.Round(time.Second)),
				"it is a replay, or a retry that came later than max_age allows for")
		case age < -clockSkew:
			return refused(ReasonEventFromFuture, fmt.Errorf("the event was created %s after it arrived", -age.Round(time.Second)),
				"the clock of this machine is wrong")
		}
	}
	e.ID, e.Type = event.id, event.typ
	return e
}

// variant is a value, and what was done to get it from the one given; nothing
// if description is empty.
type variant struct {
	value       []byte
	description string
}

// causes looks for the mistake that explains the signature, or for as few as
// possible together.
func (c capture) causes() []string {
	secrets := []variant{{nil, "the sender signed with an empty secret"}}
	for _, s := range c.secrets {
		secrets = append(secrets, secretVariants(s)...)
	}
	signatures := signatureVariants(*c.signature)
	var fewest []string
	for _, body := range bodyVariants(c.body) {
		for _, secret := range secrets {
			for _, algorithm := range algorithms {
				sum := algorithm.sum(secret.value, body.value)
				for _, signature := range signatures {
					if !hmac.Equal(sum, signature.value) {
						continue
					}
					var mistakes []string
					for _, description := range []string{signature.description, secret.description, algorithm.description, body.description} {
						if description != "" {
							mistakes = append(mistakes, description)
						}
					}
					if fewest == nil || len(mistakes) < len(fewest) {
						fewest = mistakes
					}
				}
			}
		}
	}
	if fewest != nil {
		return fewest
	}
	if digits := len(*c.signature); digits > 0 && digits < hex.EncodedLen(sha256.Size) && strings.Trim(*c.signature, "0123456789abcdefABCDEF") == "" {
		return []string{fmt.Sprintf("the signature was cut off: copy all %d digits", hex.EncodedLen(sha256.Size))}
	}
	causes := []string{"the secret is that of another webhook: copy it again from Settings > Developer > Webhooks, for this URL",
		"or the body is not, byte for byte, what was sent: something before Caddy changed it, or it was not captured whole"}
	if len(signatures) == 0 {
		causes = []string{"the header is no HMAC in any usual encoding: was it cut off, or written by something other than BuzzBip?"}
	}
	if _, err := parseEvent(c.body, requirements{}); err != nil {
		causes = append(causes, fmt.Sprintf("the body is not an event as BuzzBip sends it (%v), which speaks for that", err))
	}
	return causes
}

// algorithms are what others use to sign.
var algorithms = []struct {
	description string
	sum         func(secret, body []byte) []byte
}{
	{"", keyed(sha256.New)},
	{"the signature was made with HMAC-SHA1, not HMAC-SHA256", keyed(sha1.New)},
	{"the signature was made with HMAC-SHA512, not HMAC-SHA256", keyed(sha512.New)},
	{"the signature was made with HMAC-MD5, not HMAC-SHA256", keyed(md5.New)},
	{"the signature is a SHA-256 of the body, without a secret: it proves nothing", func(_, body []byte) []byte { sum := sha256.Sum256(body); return sum[:] }},
	{"the signature is a SHA-256 of the secret and the body, not an HMAC", func(secret, body []byte) []byte {
		sum := sha256.Sum256(append(bytes.Clone(secret), body...))
		return sum[:]
	}},
}

func keyed(newHash func() hash.Hash) func(secret, body []byte) []byte {
	return func(secret, body []byte) []byte {
		mac := hmac.New(newHash, secret)
		mac.Write(body)
		return mac.Sum(nil)
	}
}

func secretVariants(s namedSecret) []variant {
	found := []variant{{s.value, ""}}
	add := func(value []byte, description string) {
		if len(value) > 0 && !bytes.Equal(value, s.value) {
			found = append(found, variant{value, fmt.Sprintf("the secret from %s: %s", s.from, description)})
		}
	}
	add(bytes.TrimSpace(s.value), "it has a blank or a newline at its start or end that does not belong there")
	for _, end := range []string{"\n", "\r\n", "\r", " "} {
		add(append(bytes.Clone(s.value), end...), "the sender's has a newline or a blank at its end, as from echo without -n")
	}
	add(bytes.Trim(bytes.TrimSpace(s.value), `"'`), "it is in quotes, which do not belong to it")
	_, afterPrefix, _ := bytes.Cut(s.value, []byte("_"))
	add(afterPrefix, "the sender's lacks the prefix up to the _")
	for _, text := range [][]byte{s.value, afterPrefix} {
		if decoded, err := hex.DecodeString(string(text)); err == nil {
			add(decoded, "the sender decoded it from hex: the key is the text as it is shown")
		}
		if decoded, ok := decodeBase64(string(text)); ok {
			add(decoded, "the sender decoded it from base64: the key is the text as it is shown")
		}
	}
	return found
}

func decodeBase64(text string) ([]byte, bool) {
	text = strings.TrimRight(text, "=")
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		if decoded, err := encoding.DecodeString(text); err == nil {
			return decoded, true
		}
	}
	return nil, false
}

func signatureVariants(text string) []variant {
	var found []variant
	trimmed := strings.Trim(strings.TrimSpace(text), `"'`)
	prefix := ""
	if trimmed != text {
		prefix = "the header has blanks or quotes around the signature, which do not belong there"
	}
	candidates := []variant{{[]byte(trimmed), prefix}}
	if i := strings.IndexAny(strings.TrimRight(trimmed, "="), "=:,"); i >= 0 {
		candidates = append(candidates, variant{[]byte(trimmed[i+1:]), fmt.Sprintf("the header has %q before the signature, which does not belong there", trimmed[:i+1])})
	}
	if rest, ok := strings.CutPrefix(strings.ToLower(trimmed), "0x"); ok {
		candidates = append(candidates, variant{[]byte(rest), `the header has "0x" before the signature, which does not belong there`})
	}
	for _, c := range candidates {
		if decoded, err := hex.DecodeString(string(c.value)); err == nil && len(decoded) > 0 {
			found = append(found, variant{decoded, c.description})
		}
		if decoded, ok := decodeBase64(string(c.value)); ok && len(decoded) >= md5.Size {
			description := "the signature is in base64: it must be in hex"
			if c.description != "" {
				description = c.description + ", and " + description
			}
			found = append(found, variant{decoded, description})
		}
	}
	return found
}

// Why a body is not the one that was signed.
const (
	rewritten = "the body was parsed and written again before it was signed or captured, which changes bytes: sign and keep it as it is"
	saved     = "the captured body differs from the signed one in a newline at its end, as editors and shells add it"
	converted = "the body was converted to another character encoding"
	lineEnds  = "the line ends of the body were converted between LF and CRLF"
	marked    = "a byte order mark was added to the body or removed"
)

func bodyVariants(body []byte) []variant {
	found := []variant{{body, ""}}
	add := func(value []byte, description string) {
		if !bytes.Equal(value, body) {
			found = append(found, variant{value, description})
		}
	}
	add(bytes.TrimRight(body, "\r\n"), saved)
	add(append(bytes.Clone(body), "\n"...), saved)
	add(append(bytes.Clone(body), "\r\n"...), saved)
	add(bytes.TrimSpace(body), saved)
	mark := []byte("\ufeff")
	add(bytes.TrimPrefix(body, mark), marked)
	add(append(bytes.Clone(mark), body...), marked)
	unix := bytes.ReplaceAll(body, []byte("\r\n"), []byte("\n"))
	add(unix, lineEnds)
	add(bytes.ReplaceAll(unix, []byte("\n"), []byte("\r\n")), lineEnds)

	for _, options := range [][]jsontext.Options{
		{},
		{jsontext.PreserveRawStrings(true)},
		{jsontext.SpaceAfterColon(true), jsontext.SpaceAfterComma(true)},
		{jsontext.EscapeForHTML(true)},
		{jsontext.Multiline(true), jsontext.WithIndent("  ")},
		{jsontext.Multiline(true), jsontext.WithIndent("    ")},
		{jsontext.Multiline(true), jsontext.WithIndent("\t")},
		{jsontext.ReorderRawObjects(true)},
		{jsontext.ReorderRawObjects(true), jsontext.SpaceAfterColon(true), jsontext.SpaceAfterComma(true)},
	} {
		written, err := jsontext.AppendFormat(nil, body, append(options, lax...)...)
		if err != nil {
			continue
		}
		add(written, rewritten)
		add(append(bytes.Clone(written), '\n'), rewritten)
		ascii := escaped(written)
		add(ascii, rewritten)
		add(bytes.ReplaceAll(ascii, []byte("/"), []byte(`\/`)), rewritten)
		add(bytes.ReplaceAll(written, []byte("/"), []byte(`\/`)), rewritten)
	}

	latin := make([]byte, 0, len(body)) // UTF-8 to Latin-1
	for _, r := range string(body) {
		if r > 0xff {
			latin = nil
			break
		}
		latin = append(latin, byte(r))
	}
	if latin != nil {
		add(latin, converted)
	}
	var wide []byte // Latin-1 to UTF-8
	for _, b := range body {
		wide = utf8.AppendRune(wide, rune(b))
	}
	add(wide, converted)

	if zipped, err := gzip.NewReader(bytes.NewReader(body)); err == nil {
		if plain, err := io.ReadAll(io.LimitReader(zipped, defaultMaxBodySize)); err == nil {
			add(plain, "the body is compressed with gzip, and was not when it was signed")
		}
	}
	if decoded, ok := decodeBase64(strings.TrimSpace(string(body))); ok {
		add(decoded, "the captured body is in base64")
	}
	if decoded, err := url.QueryUnescape(strings.TrimSpace(string(body))); err == nil {
		add([]byte(decoded), "the captured body is percent-encoded")
	}
	return found
}

// escaped writes what is not ASCII as escapes, as Python and PHP do.
func escaped(text []byte) []byte {
	var ascii []byte
	for _, r := range string(text) {
		switch {
		case r < utf8.RuneSelf:
			ascii = append(ascii, byte(r))
		case r > 0xffff:
			r -= 0x10000
			ascii = fmt.Appendf(ascii, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			ascii = fmt.Appendf(ascii, `\u%04x`, r)
		}
	}
	return ascii
}
