package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
	"github.com/spf13/cobra"
)

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
		warnings, err := webhook.CheckSecret(secret.value)
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
			secret.value, err = webhook.ReadSecret(cmd.InOrStdin(), secret.from)
		}
	case f.raw:
		secret.value, err = readRawSecretFile(name)
	default:
		secret.value, err = readSecretFile(name)
	}
	return secret, err
}

// readSecretFile reads a secret from a file of any kind, such as a pipe.
func readSecretFile(name string) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return webhook.ReadSecret(file, name)
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

// maxRawSecret is the size of the largest secret that is looked at, in bytes.
const maxRawSecret = 64 << 10

func readRawSecretFile(name string) ([]byte, error) {
	info, err := os.Stat(name) // opening a pipe would wait for its writer
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file: give the secret in one, or on standard input with --secret-file -", name)
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return readRawSecret(file, name)
}

// readRawSecret reads what may be no valid secret, without the newline at its end.
func readRawSecret(from io.Reader, name string) ([]byte, error) {
	value, err := io.ReadAll(io.LimitReader(from, maxRawSecret+1))
	if err != nil {
		return nil, err
	}
	if len(value) > maxRawSecret {
		return nil, fmt.Errorf("%s is too large for a secret", name)
	}
	value = bytes.TrimSuffix(bytes.TrimSuffix(value, []byte("\n")), []byte("\r"))
	if len(bytes.TrimSpace(value)) == 0 {
		return nil, fmt.Errorf("%s is empty", name)
	}
	return value, nil
}
