package buzzbip

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// errorRoute runs before the handlers of each error route of a configuration.
// Error routes get Caddy's own request. If a handler before buzzbip_webhook passed
// on a copy, what we changed in the copy is not in that request.
type errorRoute struct{}

// ServeHTTP gives r the body that error routes may see. If error routes answer
// 2xx, the sender gets the status of the error instead, so that it retries.
func (errorRoute) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	state := stateOf(r)
	if state == nil || state.observed || !state.result.Failure() || state.errorRequest == r {
		return next.ServeHTTP(w, r)
	}
	if state.result == webhook.ResultFailed {
		cost := state.cost()
		underWay.add(cost)
		defer underWay.release(cost)
		// as the delivery, so that error routes can keep the event
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), state.timeout)
		defer cancel()
		r = r.WithContext(ctx)
	}
	state.errorRequest = r
	body := &content{bytes: state.errorBody()}
	setBody(r, http.NoBody, 0)
	if len(body.bytes) > 0 {
		setBody(r, newPayload(body), len(body.bytes))
	}
	setBodyPlaceholders(r, body)
	delete(r.Header, deliveryHeader)
	return next.ServeHTTP(&responseRecorder{
		ResponseWriterWrapper: caddyhttp.ResponseWriterWrapper{ResponseWriter: w},
		onSuccess:             errorResponse{state, r},
	}, r)
}

// errorResponse is the response of error routes.
type errorResponse struct {
	state *requestState
	r     *http.Request
}

func (e errorResponse) succeed(status int) int {
	if e.state.result.Failure() { // else a buzzbip_webhook in the error routes has delivered the event
		return errorStatus(e.r)
	}
	return status
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

// rejectedBefore returns the error of a request that a buzzbip_webhook has
// rejected, if its error routes have another one. There is nothing to verify.
func (state *requestState) rejectedBefore(r *http.Request) error {
	if state == nil || state.observed || state.result != webhook.ResultRejected && state.result != webhook.ResultInFlight {
		return nil
	}
	err, _ := r.Context().Value(caddyhttp.ErrorCtxKey).(error)
	return err
}

// guardErrorRoutes puts errorRoute into all error routes that errors of the
// handler that is being provisioned can reach, and reports whether there are any.
// Caddy provisions the routes of a server first, then its error routes, which it
// compiles at once, and then its named routes.
func guardErrorRoutes(ctx caddy.Context) (found bool, err error) {
	var lists []caddyhttp.RouteList
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		if server.Errors != nil && len(server.Errors.Routes) > 0 {
			routes := server.Errors.Routes
			compiled := !slices.ContainsFunc(routes, func(route caddyhttp.Route) bool { return !provisioned(route) })
			if compiled && slices.ContainsFunc(routes, cannotBeGuarded) {
				return true, errors.New("buzzbip_webhook is in a named route, so the error routes of its server must have their handlers in a subroute, as handle_errors of a Caddyfile does")
			}
			lists = append(lists, routes)
		}
		// subroutes that invoke a named route are not among the modules around it
		lists = appendErrorRoutes(lists, server.Routes)
	}
	for _, module := range ctx.Modules() {
		if subroute, ok := module.(*caddyhttp.Subroute); ok && subroute.Errors != nil {
			lists = append(lists, subroute.Errors.Routes)
		}
	}
	for _, routes := range lists {
		if err := guard(ctx, routes); err != nil {
			return true, err
		}
	}
	return len(lists) > 0, nil
}

// appendErrorRoutes appends the error routes of the subroutes in routes.
func appendErrorRoutes(lists []caddyhttp.RouteList, routes caddyhttp.RouteList) []caddyhttp.RouteList {
	for _, route := range routes {
		for _, handler := range route.Handlers {
			subroute, ok := handler.(*caddyhttp.Subroute)
			if !ok {
				continue
			}
			if subroute.Errors != nil {
				lists = append(lists, subroute.Errors.Routes)
			}
			lists = appendErrorRoutes(lists, subroute.Routes)
		}
	}
	return lists
}

// provisioned reports whether Caddy has provisioned the handlers of a route.
func provisioned(route caddyhttp.Route) bool { return len(route.HandlersRaw) == 0 }

func guarded(route caddyhttp.Route) bool {
	if len(route.Handlers) == 0 {
		return false
	}
	_, ok := route.Handlers[0].(errorRoute)
	return ok
}

// cannotBeGuarded reports whether a compiled route has no part that Caddy
// compiles for each request.
func cannotBeGuarded(route caddyhttp.Route) bool {
	return !guarded(route) && !slices.ContainsFunc(route.Handlers, func(handler caddyhttp.MiddlewareHandler) bool {
		_, ok := handler.(*caddyhttp.Subroute)
		return ok
	})
}

// guard puts errorRoute before the handlers of each route. It changes the routes
// in place, because Caddy may be provisioning them.
func guard(ctx caddy.Context, routes caddyhttp.RouteList) error {
	for i := range routes {
		route := &routes[i]
		if guarded(*route) {
			continue
		}
		route.Handlers = slices.Insert(route.Handlers, 0, caddyhttp.MiddlewareHandler(errorRoute{}))
		if !provisioned(*route) {
			continue // Caddy adds the other handlers
		}
		if err := route.ProvisionHandlers(ctx, nil); err != nil { // compiles them again
			return err
		}
		// the route may have been compiled into a chain, but subroutes are
		// compiled for each request
		for _, handler := range route.Handlers {
			if subroute, ok := handler.(*caddyhttp.Subroute); ok {
				if err := guard(ctx, subroute.Routes); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
