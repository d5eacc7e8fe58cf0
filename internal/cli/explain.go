package cli

import (
	"crypto/hmac"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/buzzbip/caddy-webhook/internal/option"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

type explainOptions struct {
	secrets                                      secretFlags
	signature, envelope, maxBodySize, maxAge, at string
	json                                         bool
}

func explainCommand() *cobra.Command {
	o := explainOptions{secrets: secretFlags{unchecked: true}}
	cmd := &cobra.Command{
		Use:   "explain [<body-file>]",
		Short: "Says why a request would be rejected, and what is likely wrong",
		Long: `Takes a captured request through the steps of buzzbip_webhook. If the signature
is not that of the body, it looks for the mistake that explains it: a newline,
blanks, quotes, a byte order mark or NAME= around the secret, a secret that was
decoded, a signature in another encoding or with a prefix, another algorithm, a
body that was saved with a newline, parsed and written again, or converted.

Capture the body byte for byte. Without a file, it is read from standard input. If
the body is escaped, or within something else such as a log entry, explain finds it
there. --signature takes the value of the header, or a line with its name from
curl -v, a JSON log or "caddy buzzbip sign --header". The right signature is never
shown.

Exit code: 0 if the request would be accepted; 1 if it would be rejected.`,
		Example: `  caddy buzzbip explain captured.json --signature 700d048d09cd1f75… --secret-file secret.txt
  caddy buzzbip explain captured.json --signature "X-BuzzBip-Signature: 700d048d…"
  caddy buzzbip explain captured.json --signature 700d048d… --secret-env CURRENT --secret-env PREVIOUS
  caddy buzzbip explain captured.json --signature 700d048d… --max-age 24h --at 2026-06-01T14:32:05Z`,
		Args: cobra.MaximumNArgs(1),
		RunE: o.run,
	}
	o.secrets.add(cmd)
	cmd.Flags().StringVar(&o.signature, "signature", "", "the "+webhook.SignatureHeader+" `header`, or its value; leave it out if there was none")
	cmd.Flags().StringVar(&o.envelope, "envelope", webhook.EnvelopeStrict, "as in the Caddyfile: strict or lenient")
	cmd.Flags().StringVar(&o.maxBodySize, "max-body-size", humanize.IBytes(webhook.DefaultMaxBodySize), "as in the Caddyfile")
	cmd.Flags().StringVar(&o.maxAge, "max-age", "", "as in the Caddyfile, a `duration` such as 24h (default no limit)")
	cmd.Flags().StringVar(&o.at, "at", "", "when the request arrived, such as 2026-06-01T14:32:05Z (default now)")
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func (o *explainOptions) run(cmd *cobra.Command, args []string) error {
	request, err := o.request(cmd, fileArg(args))
	if err != nil {
		return err
	}
	e := request.explain()
	if o.json {
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
}

// request returns the request that the flags and a file describe.
func (o *explainOptions) request(cmd *cobra.Command, file string) (request capturedRequest, err error) {
	if request.secrets, err = o.secrets.read(cmd); err != nil {
		return request, err
	}
	if request.body, err = readBody(cmd, file, o.secrets); err != nil {
		return request, err
	}
	lenient, err := option.Choice("--envelope", o.envelope, webhook.EnvelopeStrict, webhook.EnvelopeLenient)
	if err != nil {
		return request, err
	}
	if request.maxBodySize, err = option.ParseSize("--max-body-size", o.maxBodySize); err != nil {
		return request, err
	}
	if cmd.Flags().Changed("max-age") {
		if request.maxAge, err = caddy.ParseDuration(o.maxAge); err != nil {
			return request, fmt.Errorf("--max-age %q is not a duration such as 24h or 7d", o.maxAge)
		}
		if err := option.Positive("--max-age", caddy.Duration(request.maxAge)); err != nil {
			return request, err
		}
	}
	request.required = webhook.Requirements{CreatedAt: !lenient || request.maxAge > 0, Data: !lenient}
	request.at = time.Now()
	if o.at != "" {
		if request.at, err = webhook.ParseTime([]byte(o.at)); err != nil {
			return request, fmt.Errorf("--at %q is not a time such as 2026-06-01T14:32:05Z", o.at)
		}
	}
	if cmd.Flags().Changed("signature") {
		request.signatures = headerValues(o.signature)
	}
	return request, nil
}

// capturedRequest is a request, and the settings to judge it by.
type capturedRequest struct {
	body        []byte
	signatures  []string // the values of the header
	secrets     []namedSecret
	required    webhook.Requirements
	maxBodySize int64         // in bytes
	maxAge      time.Duration // 0: no limit
	at          time.Time     // when it arrived
}

// explanation is the outcome of a request, and why.
type explanation struct {
	Reason webhook.Reason `json:"reason,omitempty"` // empty: it is accepted
	Status int            `json:"status,omitempty"`
	Detail string         `json:"detail,omitempty"`
	Causes []string       `json:"causes,omitempty"` // likely ones, with what to do
	Secret string         `json:"secret,omitempty"` // where the one that matched is from
	ID     string         `json:"id,omitempty"`
	Type   string         `json:"type,omitempty"`
}

func rejected(reason webhook.Reason, err error, causes ...string) explanation {
	return explanation{Reason: reason, Status: reason.Status(), Detail: err.Error(), Causes: causes}
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

// explain takes the request through the steps of the handler, in the same order.
func (r *capturedRequest) explain() explanation {
	signature, reason, err := webhook.ParseSignature(r.header())
	if err != nil {
		return rejected(reason, err, r.headerCauses(reason)...)
	}
	if int64(len(r.body)) > r.maxBodySize {
		return rejected(webhook.ReasonBodyTooLarge, webhook.ErrBodyTooLarge,
			"if it is from BuzzBip, raise max_body_size; if the Caddyfile has another max_body_size than was assumed here, give it with --max-body-size")
	}
	secret, matched := r.matchingSecret(signature[:])
	if !matched {
		return rejected(webhook.ReasonSignatureMismatch, errors.New("the signature is not that of the body under any of the secrets"), r.diagnose()...)
	}
	event, err := webhook.ParseEvent(r.body, r.required)
	if err != nil {
		return rejected(webhook.ReasonEnvelopeInvalid, fmt.Errorf("the signature is right, but the envelope is invalid: %w", err),
			"BuzzBip sends no such events: does something else sign with its secret? If it is BuzzBip, envelope lenient asks for less")
	}
	if r.maxAge > 0 {
		switch age := r.at.Sub(event.Created); {
		case age > r.maxAge:
			return rejected(webhook.ReasonEventStale, fmt.Errorf("the event was %s old, which is more than max_age", age.Round(time.Second)),
				"it is a replay, or a retry that came later than max_age allows for")
		case age < -webhook.ClockSkew:
			return rejected(webhook.ReasonEventFromFuture, fmt.Errorf("the event was created %s after it arrived", -age.Round(time.Second)),
				"the clock of this machine is wrong")
		}
	}
	return explanation{Secret: secret, ID: event.ID, Type: event.Type}
}

// header returns the headers of the request, as far as they are known.
func (r *capturedRequest) header() http.Header {
	header := make(http.Header)
	for _, signature := range r.signatures {
		header.Add(webhook.SignatureHeader, signature)
	}
	return header
}

// headerCauses returns why the signature header may be missing or malformed.
func (r *capturedRequest) headerCauses(reason webhook.Reason) []string {
	switch {
	case reason == webhook.ReasonSignatureMissing:
		return []string{"the request is not from BuzzBip, or a proxy before Caddy drops headers that it does not know; if it had the header, give it with --signature"}
	case len(r.signatures) > 1:
		return []string{"the sender, or a proxy before Caddy, adds the header a second time"}
	}
	return r.diagnose()
}

// matchingSecret returns where the first secret is from under which the signature
// is right.
func (r *capturedRequest) matchingSecret(signature []byte) (source string, matched bool) {
	for _, secret := range r.secrets {
		if hmac.Equal(hmacSHA256(secret.value, r.body), signature) {
			return secret.source, true
		}
	}
	return "", false
}
