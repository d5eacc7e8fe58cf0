package cli

import (
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"
)

// stdin is the file name that means standard input.
const stdin = "-"

// announce says, at a terminal, that the command waits for input.
func announce(cmd *cobra.Command, what string) {
	if isTerminal(cmd.InOrStdin()) {
		fmt.Fprintf(cmd.ErrOrStderr(), "reading the %s from standard input; Ctrl-D ends it\n", what)
	}
}

// readBody reads a body from a file, or from standard input unless a secret is
// read from there.
func readBody(cmd *cobra.Command, name string, secrets secretFlags) ([]byte, error) {
	input, err := openInput(cmd, name, "body", secrets)
	if err != nil {
		return nil, err
	}
	defer input.Close()
	return io.ReadAll(input)
}

// openInput opens a file, or standard input unless a secret is read from there.
func openInput(cmd *cobra.Command, name, what string, secrets secretFlags) (io.ReadCloser, error) {
	if name != stdin {
		return os.Open(name)
	}
	if slices.Contains(secrets.files, stdin) {
		return nil, fmt.Errorf("both the secret and the %s are to come from standard input: give one of them in a file", what)
	}
	announce(cmd, what)
	return io.NopCloser(cmd.InOrStdin()), nil
}

// fileArg returns the optional argument of a command that reads a body.
func fileArg(args []string) string {
	if len(args) == 0 {
		return stdin
	}
	return args[0]
}
