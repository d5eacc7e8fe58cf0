// Package e2e tests Caddy with the plugin as a process of its own.
package e2e

import (
	"context"
	"os"
	"sync"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

func TestMain(m *testing.M) { os.Exit(caddytest.Main(m)) }

// underLoad calls send again and again, in a goroutine for each of the senders, until
// during returns.
func underLoad(t *testing.T, senders int, send func(ctx context.Context, sender int), during func()) {
	ctx, stop := context.WithCancel(t.Context())
	var sending sync.WaitGroup
	for sender := range senders {
		sending.Go(func() {
			for ctx.Err() == nil {
				send(ctx, sender)
			}
		})
	}
	during()
	stop()
	sending.Wait()
}
