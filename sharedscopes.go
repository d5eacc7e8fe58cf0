package buzzbip

import (
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

// warnOfSharedScopes logs which sites take each other's events for duplicates.
// That may be intended, as for one endpoint on two sites.
func (a *App) warnOfSharedScopes() {
	sites := a.sites()
	type space struct{ store, scope string }
	type sharing struct {
		handlers       []*Handler
		sites, secrets []string
	}
	spaces := make(map[space]*sharing)
	for _, h := range a.handlers {
		if h.store == nil {
			continue
		}
		for k := range h.secrets.keys() {
			id := space{h.store.backing(), k.scope}
			s := spaces[id]
			if s == nil {
				s = new(sharing)
				spaces[id] = s
			}
			if !slices.Contains(s.handlers, h) {
				s.handlers = append(s.handlers, h)
				s.sites = append(s.sites, sites[h]...)
				s.secrets = append(s.secrets, k.label)
			}
		}
	}
	for id, s := range spaces {
		if len(s.handlers) < 2 {
			continue
		}
		fields := []zap.Field{zap.Strings("sites", s.sites), zap.Strings("secrets", s.secrets)}
		if name := s.handlers[0].Scope; name == id.scope { // a default scope, derived from a secret, is not shown
			fields = append(fields, zap.String("scope", name))
		}
		s.handlers[0].logger.Warn("sites share a scope: an event that arrives at several of them is delivered by one only; if they are different endpoints, give each its own scope", fields...)
	}
}

// sites returns where each handler serves: the hosts and paths of the routes that
// lead to it.
func (a *App) sites() map[*Handler][]string {
	found := make(map[*Handler][]string)
	app, err := a.ctx.AppIfConfigured("http")
	if err != nil {
		return found
	}
	for _, server := range app.(*caddyhttp.App).Servers {
		w := siteWalk{found: found, named: server.NamedRoutes}
		w.routes(server.Routes, strings.Join(server.Listen, ","), "")
	}
	return found
}

type siteWalk struct {
	found   map[*Handler][]string
	named   map[string]*caddyhttp.Route
	invoked []string // names of the named routes that are being walked
}

func (w *siteWalk) routes(routes caddyhttp.RouteList, host, path string) {
	for _, route := range routes {
		w.route(route, host, path)
	}
}

func (w *siteWalk) route(route caddyhttp.Route, host, path string) {
	for _, set := range route.MatcherSets {
		for _, matcher := range set {
			switch matcher := matcher.(type) {
			case *caddyhttp.MatchHost:
				host = strings.Join(*matcher, ",")
			case *caddyhttp.MatchPath:
				path = strings.Join(*matcher, ",")
			}
		}
	}
	for _, handler := range route.Handlers {
		switch handler := handler.(type) {
		case *Handler:
			w.found[handler] = append(w.found[handler], host+path)
		case *caddyhttp.Subroute:
			w.routes(handler.Routes, host, path)
		case *caddyhttp.Invoke:
			named := w.named[handler.Name]
			if named == nil || slices.Contains(w.invoked, handler.Name) {
				continue
			}
			w.invoked = append(w.invoked, handler.Name)
			w.route(*named, host, path)
			w.invoked = w.invoked[:len(w.invoked)-1]
		}
	}
}
