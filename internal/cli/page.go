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

func pageCommand() *cobra.Command {
	var admin adminFlags
	var listen string
	cmd := &cobra.Command{
		Use:   "page",
		Short: "Serves the page that shows deliveries live",
		Long: `Serves the page of a running Caddy's admin endpoint, which shows deliveries live,
at an address that a browser can open: the admin endpoint itself rejects most
requests of browsers, and may be a socket. Nothing else of it is served.

The address ends in a random word: whoever knows it can use the page.

Runs until Ctrl-C. Exit code: 1 if there is no such admin endpoint, or the address
cannot be used.`,
		Example: `  caddy buzzbip page
  ssh -t -L 8080:127.0.0.1:8080 hooks.example.com caddy buzzbip page --listen 127.0.0.1:8080`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			endpoint, err := admin.find()
			if err != nil {
				return err
			}
			if _, err := endpoint.request(http.MethodGet, ""); err != nil {
				return err
			}
			listener, err := net.Listen("tcp", listen)
			if err != nil {
				return err
			}
			path := "/" + strings.ToLower(rand.Text()) + "/"
			mux := http.NewServeMux()
			mux.Handle(path, http.StripPrefix(path, endpoint.relay()))
			fmt.Fprintf(cmd.OutOrStdout(), "http://%s%s\nCtrl-C ends it.\n", listener.Addr(), path)
			return http.Serve(listener, mux)
		},
	}
	admin.add(cmd)
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "`address` to serve the page at; port 0 is any free one")
	return cmd
}

// relay returns a handler that passes requests, whose paths are relative to
// adminapi.Path, on to the endpoint.
func (e *adminEndpoint) relay() http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(e.url)
			r.Out.Host = e.url.Host
			r.Out.Header = e.header.Clone() // not that of a browser
		},
		Transport: e.transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			// while Caddy restarts: the page tries again, so this is no news for a log
			http.Error(w, "Caddy does not answer at "+e.address, http.StatusBadGateway)
		},
	}
}
