package cli

import (
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

	"github.com/buzzbip/caddy-webhook/internal/adminapi"
	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

// adminFlags say where the admin endpoint is, as those of `caddy reload` do.
type adminFlags struct{ address, config, adapter string }

func (f *adminFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.address, "address", "", "`address` of Caddy's admin endpoint (default that of --config, or localhost:2019)")
	cmd.Flags().StringVarP(&f.config, "config", "c", "", "configuration `file` that says where the admin endpoint is")
	cmd.Flags().StringVarP(&f.adapter, "adapter", "a", "", "config `adapter` for --config")
}

// adminEndpoint is that of a running Caddy. It is asked as caddy itself does, but
// not with its AdminAPIRequest, which makes one text of a status and a body.
type adminEndpoint struct {
	address   string
	url       *url.URL // of what is ours
	header    http.Header
	transport *http.Transport
}

func (f *adminFlags) find() (*adminEndpoint, error) {
	address, err := caddycmd.DetermineAdminAPIAddress(f.address, nil, f.config, f.adapter)
	if err != nil {
		return nil, err
	}
	to, err := caddy.ParseNetworkAddress(address)
	if err != nil || to.PortRangeSize() > 1 {
		return nil, fmt.Errorf("%q is not an address of an admin endpoint", address)
	}
	e := &adminEndpoint{address: address, url: &url.URL{Scheme: "http", Host: to.JoinHostPort(0), Path: adminapi.Path}}
	e.header = http.Header{"Origin": {"http://" + e.url.Host}}
	if to.IsUnixNetwork() {
		to.Host, _, _ = strings.Cut(to.Host, "|") // permission bits
		e.url.Host, e.header = "127.0.0.1", http.Header{}
	}
	e.transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, to.Network, to.JoinHostPort(0))
		},
	}
	return e, nil
}

// request makes a request for a path below adminapi.Path. What was answered may be
// there with an error too.
func (e *adminEndpoint) request(method, path string) (text []byte, err error) {
	r, err := http.NewRequest(method, e.url.String()+path, nil)
	if err != nil {
		return nil, err
	}
	r.Header = e.header.Clone()
	res, err := e.transport.RoundTrip(r)
	if err != nil {
		return nil, fmt.Errorf("%w\nIs Caddy running, with its admin endpoint at %s? Say where it is with --address or --config", err, e.address)
	}
	defer res.Body.Close()
	if text, err = io.ReadAll(res.Body); err != nil || res.StatusCode == http.StatusOK {
		return text, err
	}
	var answer struct{ Error string }
	if json.Unmarshal(text, &answer) != nil || answer.Error == "" {
		return nil, e.foreign()
	}
	return text, errors.New(answer.Error)
}

func (e *adminEndpoint) foreign() error {
	return fmt.Errorf("%s is not the admin endpoint of a Caddy with buzzbip_webhook", e.address)
}

// ask makes a request about an event and prints the answer, also one that is
// not complete.
func (f *adminFlags) ask(cmd *cobra.Command, asJSON bool, method, id string, print func(w io.Writer, answer adminapi.Event)) error {
	endpoint, err := f.find()
	if err != nil {
		return err
	}
	escaped := url.PathEscape(id)
	if id == "." || id == ".." {
		escaped = strings.ReplaceAll(id, ".", "%2E") // else they are steps of the path
	}
	text, failed := endpoint.request(method, "events/"+escaped)
	var answer adminapi.Event
	if json.Unmarshal(text, &answer) != nil || answer.Scopes == nil {
		return cmp.Or(failed, endpoint.foreign())
	}
	if asJSON {
		_, err = cmd.OutOrStdout().Write(text)
	} else {
		table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		print(table, answer)
		err = table.Flush()
	}
	return cmp.Or(failed, err)
}
