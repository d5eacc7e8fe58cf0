package cli

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/option"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
	"github.com/caddyserver/caddy/v2"
	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
)

func explainCommand() *cobra.Command {
	var secrets secretFlags
	secrets.raw = true
	var signature, envelope, maxBodySize, maxAge, at string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "explain [<body-file>]",
		Short: "Says why a request would be rejected, and what is likely wrong",
		Long: `Takes a captured request through the steps of buzzbip_webhook. If the signature
is not that of the body, it looks for the mistake that explains it: a newline,
blanks, quotes, a byte order mark or NAME= around the secret, a secret that was
decoded, a signature in another encoding or with a prefix, another algorithm, a
body that was saved with a newline, parsed and written again, or converted.

Capture the body byte for byte. Without a file it is standard input. A body that
is escaped or within something else, as in a log entry, is found there. The
signature may be the value of the header or a line with its name, from curl -v, a
JSON log or "caddy buzzbip sign --header". The right signature is never shown.

Exit code: 0 if the request would be accepted; 1 if it would be rejected.`,
		Example: `  caddy buzzbip explain captured.json --signature 700d048d09cd1f75… --secret-file secret.txt
  caddy buzzbip explain captured.json --signature "X-BuzzBip-Signature: 700d048d…"
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
			lenient, err := option.Choice("--envelope", envelope, webhook.EnvelopeStrict, webhook.EnvelopeLenient)
			if err != nil {
				return err
			}
			limit, err := option.ParseSize("--max-body-size", maxBodySize)
			if err != nil {
				return err
			}
			request := capture{body: body, secrets: given, maxBodySize: limit, at: time.Now()}
			if cmd.Flags().Changed("max-age") {
				if request.maxAge, err = caddy.ParseDuration(maxAge); err != nil {
					return fmt.Errorf("--max-age %q is not a duration such as 24h or 7d", maxAge)
				}
				if err := option.Positive("--max-age", caddy.Duration(request.maxAge)); err != nil {
					return err
				}
			}
			request.requires = webhook.Requirements{CreatedAt: !lenient || request.maxAge > 0, Data: !lenient}
			if at != "" {
				if request.at, err = webhook.ParseTime([]byte(at)); err != nil {
					return fmt.Errorf("--at %q is not a time such as 2026-06-01T14:32:05Z", at)
				}
			}
			if cmd.Flags().Changed("signature") {
				request.signatures = headerValues(signature)
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
				return errors.New("the request would be rejected")
			}
			return nil
		},
	}
	secrets.add(cmd)
	cmd.Flags().StringVar(&signature, "signature", "", "the "+webhook.SignatureHeader+" `header`, or its value; leave it out if there was none")
	cmd.Flags().StringVar(&envelope, "envelope", webhook.EnvelopeStrict, "as in the Caddyfile: strict or lenient")
	cmd.Flags().StringVar(&maxBodySize, "max-body-size", humanize.IBytes(webhook.DefaultMaxBodySize), "as in the Caddyfile")
	cmd.Flags().StringVar(&maxAge, "max-age", "", "as in the Caddyfile, a `duration` such as 24h (default no limit)")
	cmd.Flags().StringVar(&at, "at", "", "when the request arrived, such as 2026-06-01T14:32:05Z (default now)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// capture is a captured request.
type capture struct {
	body        []byte
	signatures  []string // the lines of the header
	secrets     []namedSecret
	requires    webhook.Requirements
	maxBodySize int64
	maxAge      time.Duration
	at          time.Time
}

// explanation is the outcome of a request, and why.
type explanation struct {
	Reason webhook.Reason `json:"reason,omitempty"` // empty: it is accepted
	Status int            `json:"status,omitempty"`
	Detail string         `json:"detail,omitempty"`
	Causes []string       `json:"causes,omitempty"` // likely ones, with what to do
	Secret string         `json:"secret,omitempty"` // which of them matched
	ID     string         `json:"id,omitempty"`
	Type   string         `json:"type,omitempty"`
}

func (e explanation) print(out io.Writer) {
	if e.Reason == "" {
		fmt.Fprintf(out, "accepted: the signature is right, under the secret from %s\nevent     %s %s\n", e.Secret, e.Type, e.ID)
		return
	}
	fmt.Fprintf(out, "rejected: %s (%d %s)\n%s\n", e.Reason, e.Status, http.StatusText(e.Status), e.Detail)
	if len(e.Causes) > 0 {
		fmt.Fprintln(out, "\nlikely cause:")
		for _, cause := range e.Causes {
			fmt.Fprintf(out, "- %s\n", cause)
		}
	}
}

// explain goes through the steps of [Handler.admit].
func (c capture) explain() explanation {
	rejected := func(reason webhook.Reason, err error, causes ...string) explanation {
		return explanation{Reason: reason, Status: reason.Status(), Detail: err.Error(), Causes: causes}
	}
	header := make(http.Header)
	for _, signature := range c.signatures {
		header.Add(webhook.SignatureHeader, signature)
	}
	signature, reason, err := webhook.ParseSignature(header)
	if reason == webhook.ReasonSignatureMissing {
		return rejected(reason, err, "the request is not from BuzzBip, or a proxy before Caddy drops headers that it does not know; if it had the header, say so with --signature")
	}
	if len(c.signatures) > 1 {
		return rejected(reason, err, "the sender, or a proxy before Caddy, adds the header a second time")
	}
	if err != nil {
		return rejected(reason, err, c.causes()...)
	}
	if int64(len(c.body)) > c.maxBodySize {
		return rejected(webhook.ReasonBodyTooLarge, webhook.ErrBodyTooLarge, "if it is from BuzzBip, raise max_body_size; if the Caddyfile has another than was assumed here, say so with --max-body-size")
	}
	var e explanation
	for _, secret := range c.secrets {
		if hmac.Equal(algorithms[0].sum(secret.value, c.body), signature[:]) {
			e.Secret = secret.from
			break
		}
	}
	if e.Secret == "" {
		return rejected(webhook.ReasonSignatureMismatch, errors.New("the signature is not that of the body under any of the secrets"), c.causes()...)
	}
	event, err := webhook.ParseEvent(c.body, c.requires)
	if err != nil {
		return rejected(webhook.ReasonEnvelopeInvalid, fmt.Errorf("the signature is right, but the envelope is invalid: %w", err),
			"BuzzBip sends no such events: does something else sign with its secret? If it is BuzzBip, envelope lenient asks for less")
	}
	if c.maxAge > 0 {
		switch age := c.at.Sub(event.Created); {
		case age > c.maxAge:
			return rejected(webhook.ReasonEventStale, fmt.Errorf("the event was %s old, which is more than max_age", age.Round(time.Second)),
				"it is a replay, or a retry that came later than max_age allows for")
		case age < -webhook.ClockSkew:
			return rejected(webhook.ReasonEventFromFuture, fmt.Errorf("the event was created %s after it arrived", -age.Round(time.Second)),
				"the clock of this machine is wrong")
		}
	}
	e.ID, e.Type = event.ID, event.Type
	return e
}

// causes looks for the mistake that explains the signature, or for as few as
// possible together.
func (c capture) causes() []string {
	secrets := []variant{{nil, "the sender signed with an empty secret"}}
	for _, s := range c.secrets {
		secrets = append(secrets, secretVariants(s)...)
	}
	given := c.signatures[0]
	signatures := signatureVariants(given)
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
	if digits := len(given); digits > 0 && digits < hex.EncodedLen(sha256.Size) && strings.Trim(given, "0123456789abcdefABCDEF") == "" {
		return []string{fmt.Sprintf("the signature was cut off: copy all %d digits", hex.EncodedLen(sha256.Size))}
	}
	causes := []string{"the secret is that of another webhook: copy it again from Settings > Developer > Webhooks, for this URL",
		"or the body is not, byte for byte, what was sent: something before Caddy changed it, or it was not captured whole"}
	if len(signatures) == 0 {
		causes = []string{"the header is no HMAC in any usual encoding: was it cut off, or written by something other than BuzzBip?"}
	}
	if _, err := webhook.ParseEvent(c.body, webhook.Requirements{}); err != nil {
		causes = append(causes, fmt.Sprintf("the body is not an event as BuzzBip sends it (%v), which speaks for that", err))
	}
	return causes
}
