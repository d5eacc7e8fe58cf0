// Package e2e tests Caddy with the plugin as a process of its own.
package e2e

import (
	"os"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

func TestMain(m *testing.M) { os.Exit(caddytest.Main(m)) }
