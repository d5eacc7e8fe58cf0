package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// defaultSecretVariable holds the secret if no flag says where it is.
const defaultSecretVariable = "BUZZBIP_SECRET"

// secretFlags are the flags that say where secrets are.
type secretFlags struct {
	files, variables []string
	unchecked        bool // accept what cannot be a secret, so that it can be explained
}

func (f *secretFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.files, "secret-file", nil, "`file` that holds the signing secret; - is standard input")
	cmd.Flags().StringArrayVar(&f.variables, "secret-env", nil, "environment `variable` that holds the signing secret (default "+defaultSecretVariable+")")
}

// namedSecret is a secret and the name of its file or variable.
type namedSecret struct {
	source string
	value  []byte
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
	if f.unchecked {
		return secrets, nil
	}
	for _, secret := range secrets {
		warnings, err := webhook.CheckSecret(secret.value)
		if err != nil {
			return nil, fmt.Errorf("the secret from %s %w", secret.source, err)
		}
		for _, warning := range warnings {
			fmt.Fprintf(cmd.ErrOrStderr(), "warning: the secret from %s %s\n", secret.source, warning)
		}
	}
	return secrets, nil
}

// readFile reads a secret from standard input or a file.
func (f *secretFlags) readFile(cmd *cobra.Command, name string) (secret namedSecret, err error) {
	secret.source = name
	switch {
	case name == stdin:
		secret.source = "standard input"
		announce(cmd, "secret")
		secret.value, err = webhook.ReadSecret(cmd.InOrStdin(), secret.source)
	case f.unchecked:
		// the path itself may be the mistake: opening a pipe would wait for its writer
		secret.value, err = webhook.ReadSecretFile(name)
		if errors.Is(err, webhook.ErrNotRegular) {
			err = fmt.Errorf("%w, or give the secret on standard input with --secret-file -", err)
		}
	default:
		secret.value, err = readAnyFile(name)
	}
	return secret, err
}

// readAnyFile reads a secret from a file of any kind, such as the pipe in
// --secret-file <(pass show buzzbip).
func readAnyFile(name string) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return webhook.ReadSecret(file, name)
}
