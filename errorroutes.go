package buzzbip

import (
	"errors"
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// errorRoute runs before the error routes of a configuration. Error routes get
// Caddy's own request. If a handler before buzzbip_webhook passed on a copy, what
// we changed in the copy is not in that request.
type errorRoute struct{}

// ServeHTTP gives r the body that error routes may see. If error routes answer
// 2xx, the sender gets the status of the error instead, so that it retries.
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
			if state.result.Failure() { // else a buzzbip_webhook in the error routes has delivered the event
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

// guardErrorRoutes puts errorRoute before all error routes that errors of the
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
				// needed if our handler is in a named route: Caddy provisions
				// those after it has compiled the error routes, but compiles
				// subroutes for each request
				handler.Routes = guard(handler.Routes, first)
			}
		}
	}
	return slices.Insert(routes, 0, first)
}
