// Package cli implements the command `caddy buzzbip`. It registers the command
// with Caddy when it is imported, and has no other effect on a process that serves.
package cli

import (
	"errors"
	"fmt"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "buzzbip",
		Usage: "<command>",
		Short: "Signs, sends and explains BuzzBip webhooks, checks endpoints, and manages events",
		Long: `
Tools for people who receive BuzzBip webhooks.

Secrets are read from a file, an environment variable or standard input, so that
they do not show in the list of processes or in the history of your shell. The
default is the environment variable BUZZBIP_SECRET.

Each command ends with exit code 0 if it succeeds, else with 1.`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.Args = cobra.NoArgs
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
			cmd.AddCommand(signCommand(), sendCommand(), explainCommand(), checkCommand(), pageCommand(), lookupCommand(), forgetCommand(), reportCommand(), inboxCommand())
			// Caddy's own help links to its documentation, which does not describe these commands
			cmd.SetHelpTemplate(cmd.HelpTemplate() + "\nFull documentation is available at:\n" + documentation + "\n")
			cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return withUsage(cmd, flagError(err)) })
			checkArgs(cmd)
		},
	})
}

// checkArgs adds the usage to the errors of the arguments of a command and of those
// below it.
func checkArgs(cmd *cobra.Command) {
	if validate := cmd.Args; validate != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error { return withUsage(cmd, validate(cmd, args)) }
	}
	for _, below := range cmd.Commands() {
		checkArgs(below)
	}
}

// flagError says what a flag takes, where pflag says how it was parsed.
func flagError(err error) error {
	var value *pflag.InvalidValueError
	if errors.As(err, &value) {
		takes := map[string]string{"int": "a number", "int64": "a number", "intSlice": "numbers", "duration": "a duration such as 30s"}
		if kind := takes[value.GetFlag().Value.Type()]; kind != "" {
			return fmt.Errorf("--%s takes %s, not %q", value.GetFlag().Name, kind, value.GetValue())
		}
	}
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) && unknown.GetSpecifiedName() == "secret" {
		return fmt.Errorf("%w: give the secret in %s, or its file with --secret-file", err, defaultSecretVariable)
	}
	return err
}

const documentation = "https://github.com/buzzbip/caddy-webhook#tools"

// withUsage adds the usage of the command to an error of the command line.
func withUsage(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w\nUsage: %s\nMore:  %s --help", err, cmd.UseLine(), cmd.CommandPath())
}
