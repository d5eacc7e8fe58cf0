package buzzbip

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"
)

func pageCommand() *cobra.Command {
	var admin adminFlags
	var listen string
	cmd := &cobra.Command{
		Use:   "page",
		Short: "Serves the page that shows deliveries live",
		Long: `Serves the page of a running Caddy's admin endpoint, which shows deliveries live,
at an address that a browser can open: the admin endpoint itself refuses browsers
that come from nowhere, and may be a socket. Nothing else of it is passed on.

The address ends in a word that nobody can guess: do not give it away.`,
		Example: `  caddy buzzbip page
  ssh -L 8080:127.0.0.1:8080 hooks.example.com caddy buzzbip page --listen 127.0.0.1:8080`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			address, err := admin.find()
			if err != nil {
				return err
			}
			res, err := request(address, http.MethodGet, adminPath)
			if err != nil {
				return err
			}
			res.Body.Close()
			relay, err := newRelay(address)
			if err != nil {
				return err
			}
			listener, err := net.Listen("tcp", listen)
			if err != nil {
				return err
			}
			path := "/" + strings.ToLower(rand.Text()) + "/"
			mux := http.NewServeMux()
			mux.Handle(path, http.StripPrefix(path, relay))
			fmt.Fprintf(cmd.OutOrStdout(), "http://%s%s\nCtrl-C ends it.\n", listener.Addr(), path)
			return http.Serve(listener, mux)
		},
	}
	admin.add(cmd)
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "address to serve the page at; port 0 is any that is free")
	return cmd
}

// newRelay returns a handler that passes requests, whose paths are relative to
// adminPath, on to an admin endpoint.
func newRelay(address string) (http.Handler, error) {
	to, err := caddy.ParseNetworkAddress(address)
	if err != nil || to.PortRangeSize() > 1 {
		return nil, fmt.Errorf("%q is not an address of an admin endpoint", address)
	}
	target := &url.URL{Scheme: "http", Host: to.JoinHostPort(0), Path: adminPath}
	header := http.Header{"Origin": {"http://" + target.Host}}
	if to.IsUnixNetwork() {
		to.Host, _, _ = strings.Cut(to.Host, "|") // permission bits
		target.Host, header = "127.0.0.1", http.Header{}
	}
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = target.Host
			r.Out.Header = header.Clone() // as caddy itself asks, not as a browser
		},
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, to.Network, to.JoinHostPort(0))
			},
		},
	}, nil
}
