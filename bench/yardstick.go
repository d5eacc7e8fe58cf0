package main

import (
	"io"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(readBody{})
	httpcaddyfile.RegisterHandlerDirective("bench_read_body", func(httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		return readBody{}, nil
	})
}

// readBody is what no receiver of events can do without: it reads the body into
// memory. Caddy's placeholder {http.request.body} would copy it several times.
type readBody struct{}

// CaddyModule returns the Caddy module information.
func (readBody) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.bench_read_body", New: func() caddy.Module { return new(readBody) }}
}

// ServeHTTP reads the body, whose length must be declared.
func (readBody) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if _, err := io.ReadFull(r.Body, make([]byte, r.ContentLength)); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil { // to the end, which disarms deadlines
		return err
	}
	return next.ServeHTTP(w, r)
}
