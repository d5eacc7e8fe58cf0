package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/buzzbip/caddy-webhook/internal/adminapi"
)

// adminFlags are the flags that say where the admin endpoint is, as those of
// `caddy reload` do.
type adminFlags struct{ address, config, adapter string }

func (f *adminFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.address, "address", "", "`address` of Caddy's admin endpoint (default that of --config, or localhost:2019)")
	cmd.Flags().StringVarP(&f.config, "config", "c", "", "configuration `file` that says where the admin endpoint is")
	cmd.Flags().StringVarP(&f.adapter, "adapter", "a", "", "config `adapter` for --config")
}

// adminClient sends requests to the admin endpoint of a running Caddy. It does not
// use Caddy's AdminAPIRequest, which returns a status and a body as one text.
type adminClient struct {
	address   string
	url       *url.URL // with adminapi.Path
	header    http.Header
	transport *http.Transport
}

// client returns a client for the endpoint of the flags. It sends nothing yet.
func (f *adminFlags) client() (*adminClient, error) {
	address, err := caddycmd.DetermineAdminAPIAddress(f.address, nil, f.config, f.adapter)
	if err != nil {
		return nil, err
	}
	to, err := caddy.ParseNetworkAddress(address)
	if err != nil || to.PortRangeSize() > 1 || strings.Contains(address, "://") {
		return nil, fmt.Errorf("%q is not the address of an admin endpoint, such as localhost:2019", address)
	}
	c := &adminClient{address: address, url: &url.URL{Scheme: "http", Host: to.JoinHostPort(0), Path: adminapi.Path}}
	c.header = http.Header{"Origin": {"http://" + c.url.Host}}
	if to.IsUnixNetwork() {
		to.Host, _, _ = strings.Cut(to.Host, "|") // permission bits
		c.url.Host, c.header = "127.0.0.1", http.Header{}
	}
	c.transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, to.Network, to.JoinHostPort(0))
		},
	}
	return c, nil
}

// send sends a request for a path below adminapi.Path, with a body in JSON unless
// that is nil.
func (c *adminClient) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, c.url.String()+path, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	r.Header = c.header.Clone()
	res, err := c.transport.RoundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("%w\nIs Caddy running, with its admin endpoint on, at %s? If it is elsewhere, say where with --address or --config", err, c.address)
	}
	return res, nil
}

// failure returns the error in an answer.
func (c *adminClient) failure(answer []byte) error {
	var failure struct{ Error string }
	if json.Unmarshal(answer, &failure) != nil || failure.Error == "" {
		return c.wrongEndpoint()
	}
	return errors.New(failure.Error)
}

// request sends a request. It may return an answer together with an error.
func (c *adminClient) request(method, path string) (answer []byte, err error) {
	res, err := c.send(context.Background(), method, path, nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if answer, err = io.ReadAll(res.Body); err == nil && res.StatusCode != http.StatusOK {
		err = c.failure(answer)
	}
	return answer, err
}

// open sends a request and returns the body of the answer.
func (c *adminClient) open(ctx context.Context, method, path string, body any) (io.ReadCloser, error) {
	res, err := c.send(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	if res.StatusCode == http.StatusOK {
		return res.Body, nil
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	return nil, cmp.Or(err, c.failure(answer))
}

// ask sends a request and decodes the answer, which is JSON.
func (c *adminClient) ask(ctx context.Context, method, path string, body, answer any) error {
	text, err := c.open(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer text.Close()
	if json.NewDecoder(text).Decode(answer) != nil {
		return c.wrongEndpoint()
	}
	return nil
}

// wrongEndpoint is the error for answers that are not those of the plugin.
func (c *adminClient) wrongEndpoint() error {
	return fmt.Errorf("%s is not the admin endpoint of a Caddy with buzzbip_webhook", c.address)
}

// eventOptions are the options of the commands that ask about an event.
type eventOptions struct {
	admin adminFlags
	json  bool
}

func (o *eventOptions) add(cmd *cobra.Command) {
	o.admin.add(cmd)
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
}

// request sends a request about an event and prints the answer, also one that is
// incomplete because a store failed.
func (o *eventOptions) request(cmd *cobra.Command, method, id string, printTable func(io.Writer, []adminapi.EventState)) error {
	client, err := o.admin.client()
	if err != nil {
		return err
	}
	escaped := url.PathEscape(id)
	if id == "." || id == ".." {
		escaped = strings.ReplaceAll(id, ".", "%2E") // else they are removed from the path
	}
	answer, failed := client.request(method, "events/"+escaped)
	var event adminapi.Event
	if json.Unmarshal(answer, &event) != nil || event.Scopes == nil {
		return cmp.Or(failed, client.wrongEndpoint())
	}
	if o.json {
		_, err = cmd.OutOrStdout().Write(answer)
	} else {
		table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		printTable(table, event.Scopes)
		err = table.Flush()
	}
	return cmp.Or(failed, err)
}
