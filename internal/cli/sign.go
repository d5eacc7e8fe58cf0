package cli

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
	"github.com/spf13/cobra"
)

// stdin is the name of a file that is standard input.
const stdin = "-"

// announce tells people at a terminal that a command waits for their input.
func announce(cmd *cobra.Command, what string) {
	if isTerminal(cmd.InOrStdin()) {
		fmt.Fprintf(cmd.ErrOrStderr(), "reading the %s from standard input; Ctrl-D ends it\n", what)
	}
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
			signature := webhook.Sign(secret, body)
			if header {
				signature = webhook.SignatureHeader + ": " + signature
			}
			fmt.Fprintln(cmd.OutOrStdout(), signature)
			return nil
		},
	}
	secrets.add(cmd)
	cmd.Flags().BoolVar(&header, "header", false, "print it as a header, for curl -H")
	return cmd
}
