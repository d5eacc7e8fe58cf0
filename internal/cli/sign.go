package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

type signOptions struct {
	secrets secretFlags
	header  bool
}

func signCommand() *cobra.Command {
	var o signOptions
	cmd := &cobra.Command{
		Use:   "sign [<body-file>]",
		Short: "Prints the signature of a body",
		Long: `Prints the signature that BuzzBip sends with a body: its HMAC-SHA256 under the
signing secret, in hex. Every byte of the body counts, also a newline at its end.
Without a file, the body is read from standard input.`,
		Example: `  caddy buzzbip sign event.json --secret-file /run/secrets/buzzbip
  curl https://hooks.example.com/webhooks/buzzbip --data-binary @event.json -H "$(caddy buzzbip sign event.json --header)"
  read -rs BUZZBIP_SECRET; export BUZZBIP_SECRET  # paste it, Enter
  printf %s '{"id":"evt_1"}' | caddy buzzbip sign`,
		Args: cobra.MaximumNArgs(1),
		RunE: o.run,
	}
	o.secrets.add(cmd)
	cmd.Flags().BoolVar(&o.header, "header", false, "print it as a header, for curl -H")
	return cmd
}

func (o *signOptions) run(cmd *cobra.Command, args []string) error {
	secret, err := o.secrets.one(cmd)
	if err != nil {
		return err
	}
	body, err := readBody(cmd, fileArg(args), o.secrets)
	if err != nil {
		return err
	}
	signature := webhook.Sign(secret, body)
	if o.header {
		signature = webhook.SignatureHeader + ": " + signature
	}
	fmt.Fprintln(cmd.OutOrStdout(), signature)
	return nil
}
