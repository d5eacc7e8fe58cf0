package buzzbip

import (
	"errors"
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// errorRoute comes before the error routes of a configuration. They get the
// request that Caddy has; a handler before ours may have passed on a copy of
// it, so what we did to that copy does not count for them.
type errorRoute struct{}

// ServeHTTP gives r the body that error routes may see, and keeps them from
// acknowledging an event: they shape the answer, but a 2xx would tell the sender
// not to send it again.
func (errorRoute) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	state := stateOf(r)
	if state == nil || !state.result.Failure() {
		return next.ServeHTTP(w, r)
	}
	setBody(r, state.errorBody())
	setBodyPlaceholders(r, state.errorBody())
	return next.ServeHTTP(&responseRecorder{
		ResponseWriterWrapper: caddyhttp.ResponseWriterWrapper{ResponseWriter: w},
		onSuccess: func(status int) int {
			if state.result.Failure() { // else a buzzbip_webhook in them has delivered it
				return errorStatus(r)
			}
			return status
		},
	}, r)
}

// errorStatus returns the status of the error that error routes are for.
func errorStatus(r *http.Request) int {
	err, _ := r.Context().Value(caddyhttp.ErrorCtxKey).(error)
	var handlerError caddyhttp.HandlerError
	if errors.As(err, &handlerError) && handlerError.StatusCode >= 300 {
		return handlerError.StatusCode
	}
	return http.StatusInternalServerError
}

// guardErrorRoutes puts errorRoute before all error routes that an error of the
// handler that is being provisioned can reach.
func guardErrorRoutes(ctx caddy.Context) error {
	first := caddyhttp.Route{Handlers: []caddyhttp.MiddlewareHandler{errorRoute{}}}
	if err := first.ProvisionHandlers(ctx, nil); err != nil {
		return err
	}
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok && server.Errors != nil {
		server.Errors.Routes = guard(server.Errors.Routes, first)
	}
	for _, module := range ctx.Modules() {
		if subroute, ok := module.(*caddyhttp.Subroute); ok && subroute.Errors != nil {
			subroute.Errors.Routes = guard(subroute.Errors.Routes, first)
		}
	}
	return nil
}

// guard puts first before routes.
func guard(routes caddyhttp.RouteList, first caddyhttp.Route) caddyhttp.RouteList {
	for _, route := range routes {
		for _, handler := range route.Handlers {
			switch handler := handler.(type) {
			case errorRoute:
				return routes // another handler has guarded them
			case *caddyhttp.Subroute:
				// ours is in a named route, which Caddy provisions after it has
				// compiled error routes; subroutes it compiles for each request
				handler.Routes = guard(handler.Routes, first)
			}
		}
	}
	return slices.Insert(routes, 0, first)
}
