package cli

import (
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"

	"github.com/spf13/cobra"
)

type pageOptions struct {
	admin  adminFlags
	listen string
}

func pageCommand() *cobra.Command {
	var o pageOptions
	cmd := &cobra.Command{
		Use:   "page",
		Short: "Serves the page that shows requests live",
		Long: `Serves the page of a running Caddy's admin endpoint, which shows requests live,
at an address that a browser can open: the admin endpoint itself rejects most
requests of browsers, and may be a socket. Nothing else of it is served.

The address ends in a random word. Anyone who knows the address can use the page.

Runs until Ctrl-C. Exit code: 1 if there is no such admin endpoint, or the address
cannot be used.`,
		Example: `  caddy buzzbip page
  ssh -t -L 8080:127.0.0.1:8080 hooks.example.com caddy buzzbip page --listen 127.0.0.1:8080`,
		Args: cobra.NoArgs,
		RunE: o.run,
	}
	o.admin.add(cmd)
	cmd.Flags().StringVar(&o.listen, "listen", "127.0.0.1:0", "`address` to serve the page at; port 0 is any free one")
	return cmd
}

func (o *pageOptions) run(cmd *cobra.Command, _ []string) error {
	client, err := o.admin.client()
	if err != nil {
		return err
	}
	if _, err := client.request(http.MethodGet, ""); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("%w: give another address with --listen, such as 127.0.0.1:8080", err)
	}
	path := "/" + strings.ToLower(rand.Text()) + "/"
	mux := http.NewServeMux()
	// the endpoint does not see which site a request comes from, see relay
	mux.Handle(path, http.StripPrefix(path, http.NewCrossOriginProtection().Handler(client.relay())))
	fmt.Fprintf(cmd.OutOrStdout(), "http://%s%s\nCtrl-C ends it.\n", listener.Addr(), path)
	return http.Serve(listener, mux)
}

// relay returns a handler that passes requests on to the endpoint. Their paths are
// relative to adminapi.Path.
func (c *adminClient) relay() http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(c.url)
			r.Out.Host = c.url.Host
			r.Out.Header = c.header.Clone() // the endpoint rejects the headers of browsers
		},
		Transport: c.transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			// not logged: this happens while Caddy restarts, and the page tries again
			http.Error(w, "Caddy does not answer at "+c.address, http.StatusBadGateway)
		},
	}
}
