package buzzbip

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "buzzbip",
		Usage: "<command>",
		Short: "Signs, sends and explains BuzzBip webhooks, checks endpoints, and looks up events",
		Long: `
Tools for people who receive BuzzBip webhooks.

Secrets are read from a file, an environment variable or standard input, so that
they do not show in the list of processes or in the history of your shell. By
default a secret is taken from the environment variable BUZZBIP_SECRET.

Each command ends with exit code 0 if it succeeds, else with 1.`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.Args = cobra.NoArgs
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
			cmd.AddCommand(signCommand(), sendCommand(), explainCommand(), checkCommand(), pageCommand(), lookupCommand(), forgetCommand())
			// Caddy's own ends with a page that has none of this
			cmd.SetHelpTemplate(cmd.HelpTemplate() + "\nFull documentation is available at:\n" + documentation + "\n")
			cmd.SetFlagErrorFunc(withUsage)
			for _, cmd := range append(cmd.Commands(), cmd) {
				args := cmd.Args
				cmd.Args = func(cmd *cobra.Command, given []string) error { return withUsage(cmd, args(cmd, given)) }
			}
		},
	})
}

const documentation = "https://github.com/buzzbip/caddy-webhook#tools"

// withUsage adds to an error of the command line how to write it.
func withUsage(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w\nUsage: %s\nMore:  %s --help", err, cmd.UseLine(), cmd.CommandPath())
}

// senderTimeout is when BuzzBip disconnects (developer documentation, "Webhooks",
// updated 2026-06-01: "within 10 seconds").
const senderTimeout = 10 * time.Second

// stdin is the name of a file that is standard input.
const stdin = "-"

// defaultSecretVariable holds the secret unless a flag names another place.
const defaultSecretVariable = "BUZZBIP_SECRET"

// secretFlags are the flags that say where secrets are.
type secretFlags struct {
	files, variables []string
	raw              bool // also what cannot be a secret, so that it can be explained
}

func (f *secretFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.files, "secret-file", nil, "`file` that holds the signing secret; - is standard input")
	cmd.Flags().StringArrayVar(&f.variables, "secret-env", nil, "environment `variable` that holds the signing secret (default "+defaultSecretVariable+")")
}

// namedSecret is a secret and the name of its file or variable.
type namedSecret struct {
	from  string
	value []byte
}

// read returns the secrets, at least one.
func (f *secretFlags) read(cmd *cobra.Command) ([]namedSecret, error) {
	variables := f.variables
	if len(f.files)+len(variables) == 0 {
		variables = []string{defaultSecretVariable}
	}
	var secrets []namedSecret
	for _, name := range f.files {
		secret, err := f.readFile(cmd, name)
		if err != nil {
			return nil, fmt.Errorf("the secret: %w", err)
		}
		secrets = append(secrets, secret)
	}
	for _, name := range variables {
		value := os.Getenv(name)
		if strings.TrimSpace(value) == "" {
			return nil, fmt.Errorf("the secret: the environment variable %s is not set or blank: set it, or name another with --secret-env, or a file with --secret-file (- is standard input)", name)
		}
		secrets = append(secrets, namedSecret{name, []byte(value)})
	}
	if f.raw {
		return secrets, nil
	}
	for _, secret := range secrets {
		warnings, err := secretProblems(secret.value)
		if err != nil {
			return nil, fmt.Errorf("the secret from %s %w", secret.from, err)
		}
		for _, warning := range warnings {
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: the secret from %s %s\n", secret.from, warning)
		}
	}
	return secrets, nil
}

// readFile reads a secret from a file or standard input.
func (f *secretFlags) readFile(cmd *cobra.Command, name string) (secret namedSecret, err error) {
	secret.from = name
	switch {
	case name == stdin:
		secret.from = "standard input"
		announce(cmd, "secret")
		if f.raw {
			secret.value, err = readRawSecret(cmd.InOrStdin(), secret.from)
		} else {
			secret.value, err = readSecret(cmd.InOrStdin(), secret.from)
		}
	case f.raw:
		secret.value, err = readRawSecretFile(name)
	default:
		secret.value, err = (&source{path: name}).read()
	}
	return secret, err
}

// announce tells people at a terminal that a command waits for their input.
func announce(cmd *cobra.Command, what string) {
	if isTerminal(cmd.InOrStdin()) {
		fmt.Fprintf(cmd.ErrOrStderr(), "reading the %s from standard input; Ctrl-D ends it\n", what)
	}
}

// one returns the secret of a command that signs.
func (f *secretFlags) one(cmd *cobra.Command) ([]byte, error) {
	if len(f.files)+len(f.variables) > 1 {
		return nil, errors.New("give one secret")
	}
	secrets, err := f.read(cmd)
	if err != nil {
		return nil, err
	}
	return secrets[0].value, nil
}

// readBody reads a body from a file or standard input, once.
func readBody(cmd *cobra.Command, name string, secrets secretFlags) ([]byte, error) {
	if name != stdin {
		return os.ReadFile(name)
	}
	for _, file := range secrets.files {
		if file == stdin {
			return nil, errors.New("both the secret and the body are to come from standard input: give one of them in a file")
		}
	}
	announce(cmd, "body")
	return io.ReadAll(cmd.InOrStdin())
}

func signCommand() *cobra.Command {
	var secrets secretFlags
	var header bool
	cmd := &cobra.Command{
		Use:   "sign [<body-file>]",
		Short: "Prints the signature of a body",
		Long: `Prints the signature that BuzzBip sends with a body: its HMAC-SHA256 under the
signing secret, in hex. Every byte of the body counts, also a newline at its end.
Without a file, the body is standard input.`,
		Example: `  caddy buzzbip sign event.json --secret-file /run/secrets/buzzbip
  curl https://hooks.example.com/webhooks/buzzbip --data-binary @event.json -H "$(caddy buzzbip sign event.json --header)"
  read -rs BUZZBIP_SECRET; export BUZZBIP_SECRET  # paste it, Enter
  printf %s '{"id":"evt_1"}' | caddy buzzbip sign`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := stdin
			if len(args) == 1 {
				name = args[0]
			}
			secret, err := secrets.one(cmd)
			if err != nil {
				return err
			}
			body, err := readBody(cmd, name, secrets)
			if err != nil {
				return err
			}
			signature := Sign(secret, body)
			if header {
				signature = SignatureHeader + ": " + signature
			}
			fmt.Fprintln(cmd.OutOrStdout(), signature)
			return nil
		},
	}
	secrets.add(cmd)
	cmd.Flags().BoolVar(&header, "header", false, "print it as a header, for curl -H")
	return cmd
}

// newEventID returns an ID that BuzzBip does not use.
func newEventID(prefix string) string { return prefix + strings.ToLower(rand.Text()[:12]) }

// newEvent returns the body of an event, as BuzzBip documents it.
func newEvent(id, typ string, created time.Time, data json.RawMessage) ([]byte, error) {
	return json.Marshal(struct {
		ID        string          `json:"id"`
		Type      string          `json:"type"`
		CreatedAt string          `json:"createdAt"`
		Data      json.RawMessage `json:"data"`
	}{id, typ, created.UTC().Format(time.RFC3339), data})
}

// newSender returns a client that behaves as BuzzBip does: it follows no
// redirects.
func newSender(insecure bool) *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: insecure}
	transport.MaxConnsPerHost = 0
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// checkURL returns an error that says how to write a URL.
func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return fmt.Errorf("%q is not a URL: write it as https://hooks.example.com/webhooks/buzzbip", text)
	}
	return nil
}

func sendCommand() *cobra.Command {
	var secrets secretFlags
	var id, typ, data, created, bodyFile string
	var timeout time.Duration
	var insecure bool
	cmd := &cobra.Command{
		Use:   "send <url>",
		Short: "Builds and posts a signed event",
		Long: `Sends an event as BuzzBip does, and shows the answer.

The event is a new one, made from the flags, or what is in --body-file, byte for
byte. Nothing is sent again: to see a duplicate, give the same --id and
--created-at twice. Plain HTTP works too, for tests: BuzzBip needs HTTPS.

Exit code: 0 if the answer is a 2xx; 1 if it is another or there is none, with a
hint where the status has a usual cause.`,
		Example: `  caddy buzzbip send https://hooks.example.com/webhooks/buzzbip
  caddy buzzbip send https://localhost:8443/webhooks/buzzbip --insecure --type contact.created --data '{"contact":{"id":"con_1"}}'
  caddy buzzbip send https://hooks.example.com/webhooks/buzzbip --body-file captured.json --secret-file secret.txt`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkURL(args[0]); err != nil {
				return err
			}
			var body []byte
			var err error
			if bodyFile != "" {
				for _, flag := range []string{"id", "type", "data", "created-at"} {
					if cmd.Flags().Changed(flag) {
						return fmt.Errorf("--%s is for new events: leave it out, or --body-file", flag)
					}
				}
				body, err = readBody(cmd, bodyFile, secrets)
			} else {
				at := time.Now()
				if created != "" {
					if at, err = parseTime([]byte(created)); err != nil {
						return fmt.Errorf("--created-at %q is not a time such as 2026-06-01T14:32:00Z", created)
					}
				}
				if id == "" {
					id = newEventID("evt_test_")
				}
				if body, err = newEvent(id, typ, at, json.RawMessage(data)); err != nil {
					err = errors.New("--data is not valid JSON")
				}
			}
			if err != nil {
				return err
			}
			secret, err := secrets.one(cmd)
			if err != nil {
				return err
			}
			if isPlainHTTP(args[0]) {
				fmt.Fprintln(cmd.ErrOrStderr(), "note: BuzzBip does not deliver to plain HTTP; this is a test only")
			}
			start := time.Now()
			got := post(newSender(insecure), args[0], Sign(secret, body), bytes.NewReader(body), timeout)
			out := cmd.OutOrStdout()
			if bodyFile == "" && got.sent {
				fmt.Fprintf(out, "sent     %s %s\n", typ, id)
			}
			if got.err != nil {
				return withHint(fmt.Errorf("no answer after %s: %w", time.Since(start).Round(time.Millisecond), plain(got.err)), got.hint())
			}
			fmt.Fprintf(out, "answered %s in %s\n", got, time.Since(start).Round(time.Millisecond))
			if len(bytes.TrimSpace(got.body)) > 0 {
				fmt.Fprintf(out, "\n%s\n", bytes.TrimRight(got.body, "\n"))
			}
			if !got.success() {
				return withHint(errors.New("BuzzBip would send the event again: only 2xx is a success"), got.hint())
			}
			if got.unrouted() {
				fmt.Fprintln(cmd.ErrOrStderr(), "note: "+unroutedHint+": check that the backend got the event")
			}
			return nil
		},
	}
	secrets.add(cmd)
	cmd.Flags().StringVar(&id, "id", "", "ID of the event (default a new one)")
	cmd.Flags().StringVar(&typ, "type", "message.received", "type of the event")
	cmd.Flags().StringVar(&data, "data", "{}", "data of the event, JSON")
	cmd.Flags().StringVar(&created, "created-at", "", "when the event was created, such as 2026-06-01T14:32:00Z (default now)")
	cmd.Flags().StringVar(&bodyFile, "body-file", "", "`file` with the body to send, instead of a new event; - is standard input")
	cmd.Flags().DurationVar(&timeout, "timeout", senderTimeout, "when to disconnect; BuzzBip does after 10s")
	cmd.Flags().BoolVar(&insecure, "insecure", false, "accept any certificate, for tests; BuzzBip does not")
	return cmd
}

func withHint(err error, hint string) error {
	if hint == "" {
		return err
	}
	return fmt.Errorf("%w\n%s", err, hint)
}

// reply is the answer of an endpoint.
type reply struct {
	sent     bool // the whole request, or enough of it for an answer
	status   int
	result   string // of ResultHeader
	location string // where it redirects to, or empty
	header   http.Header
	body     []byte
	err      error
}

func (r reply) success() bool { return r.err == nil && r.status/100 == 2 }

func (r reply) String() string {
	if r.err != nil {
		return plain(r.err).Error()
	}
	text := fmt.Sprintf("%d %s", r.status, http.StatusText(r.status))
	if r.result != "" {
		text += " (" + r.result + ")"
	}
	return strings.TrimSpace(text)
}

// maxReply is how much of an answer is read, in bytes.
const maxReply = 64 << 10

// post sends a body. Without a signature there is no header.
func post(client *http.Client, to, signature string, body io.Reader, timeout time.Duration) reply {
	r, err := http.NewRequest(http.MethodPost, to, body)
	if err != nil {
		return reply{err: err}
	}
	r.Header.Set("Content-Type", "application/json")
	if signature != "" {
		r.Header.Set(SignatureHeader, signature)
	}
	return do(client, r, timeout)
}

// plain drops the URL, which the user has just typed, from an error.
func plain(err error) error {
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}
