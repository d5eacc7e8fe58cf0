package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// Over HTTP/2 the server has no connection left to wait for once the sender has
// disconnected.
func TestStopWaitsForDeliveriesWhoseSenderHasDisconnected(t *testing.T) {
	for _, test := range []struct {
		name     string
		answered bool // within the grace period
	}{{"the backend answers", true}, {"the grace period ends", false}} {
		t.Run(test.name, func(t *testing.T) {
			release := make(chan struct{})
			arrived := make(chan struct{}, 2)
			b := caddytest.NewBackend(t, func(http.ResponseWriter, *http.Request) {
				arrived <- struct{}{}
				<-release
			})
			defer func() {
				if !test.answered {
					close(release)
				}
			}()
			data, address := t.TempDir(), caddytest.FreeAddress(t)
			globals := "servers {\n\tprotocols h1 h2c\n}"
			c := caddytest.Start(t, data, globals, onSQLite(address, data, b))

			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			var protocols http.Protocols
			protocols.SetUnencryptedHTTP2(true)
			sender := &http.Client{Transport: &http.Transport{
				Protocols:   &protocols,
				DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
			}}
			body := caddytest.NewEvent()
			r, err := http.NewRequest(http.MethodPost, "http://"+address, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("X-BuzzBip-Signature", caddytest.Sign(body))
			disconnected := make(chan struct{})
			go func() {
				if res, err := sender.Do(r); err == nil {
					res.Body.Close()
				}
				close(disconnected)
			}()
			<-arrived
			conn.Close()
			<-disconnected

			if err := c.Cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			caddytest.WaitFor(t, "Caddy to shut down", func() bool { return strings.Contains(c.Log.String(), "servers shutting down") })
			ended := func() {
				t.Helper()
				caddytest.Receive(t, c.Ended, "Caddy to end")
			}
			if !test.answered {
				ended()
				if log := c.Log.String(); !strings.Contains(log, "deliveries under way are cut off") {
					t.Error("the log does not say that a delivery was cut off")
				}
				return
			}
			select {
			case <-c.Ended:
				t.Error("Caddy did not wait for the delivery")
			case <-time.After(200 * time.Millisecond):
			}
			close(release)
			ended()

			caddytest.Start(t, data, globals, onSQLite(address, data, b))
			if got := caddytest.Post(t.Context(), "http://"+address, body); got.Status != http.StatusOK || got.Result != "duplicate" {
				t.Errorf("after a restart the event is answered %d %q", got.Status, got.Result)
			}
		})
	}
}

func TestEventsAreDeliveredUntilTheShutdownDelayHasPassed(t *testing.T) {
	for range 4 { // Caddy stops its apps in random order
		b := caddytest.NewBackend(t, nil)
		data, address := t.TempDir(), caddytest.FreeAddress(t)
		site := fmt.Sprintf("http://%s {\n\tbuzzbip_webhook %s {\n\t\tinbox sqlite %s/inbox.db\n\t}\n\treverse_proxy %s\n}", address, caddytest.Secret, data, b.Address())
		c := caddytest.Start(t, data, "shutdown_delay 500ms", site)
		if err := c.Cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		caddytest.WaitFor(t, "the delay to begin", func() bool { return strings.Contains(c.Log.String(), "shutdown scheduled") })
		if got := caddytest.Post(t.Context(), "http://"+address, caddytest.NewEvent()); got.Status != http.StatusOK || got.Result == "stored" {
			t.Errorf("during the delay an event is answered %d %q", got.Status, got.Result)
		}
		caddytest.Receive(t, c.Ended, "Caddy to end")
	}
}
