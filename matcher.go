package buzzbip

import (
	"net/http"
	"reflect"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types/ref"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(MatchEvent{})
}

// MatchEvent matches requests by the type of their event: each value is a full
// type such as `message.received`, or a prefix such as `message.*`. It matches
// only after buzzbip_webhook has verified the event, so never a request that
// is not from BuzzBip.
type MatchEvent []string

// CaddyModule returns the Caddy module information.
func (MatchEvent) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.matchers.buzzbip_event",
		New: func() caddy.Module { return new(MatchEvent) },
	}
}

// UnmarshalCaddyfile sets up the matcher from Caddyfile tokens. Syntax:
//
//	buzzbip_event <pattern>...
func (m *MatchEvent) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	for d.Next() { // lines of the same matcher are one
		patterns := d.RemainingArgs()
		if len(patterns) == 0 {
			return d.ArgErr()
		}
		if d.NextBlock(0) {
			return d.Err("buzzbip_event takes no block")
		}
		*m = append(*m, patterns...)
	}
	return nil
}

// CELLibrary makes the function buzzbip_event available in expressions, for
// example `buzzbip_event('message.*', 'contact.created')`.
func (MatchEvent) CELLibrary(caddy.Context) (cel.Library, error) {
	return caddyhttp.CELMatcherImpl(
		"buzzbip_event",
		"buzzbip_event_match_request_list",
		[]*cel.Type{cel.ListType(cel.StringType)},
		func(data ref.Val) (caddyhttp.RequestMatcherWithError, error) {
			list, err := data.ConvertToNative(reflect.TypeFor[[]string]())
			if err != nil {
				return nil, err
			}
			m := MatchEvent(list.([]string))
			return m, m.Provision(caddy.Context{})
		},
	)
}

// Provision checks the patterns.
func (m MatchEvent) Provision(caddy.Context) error {
	_, err := newPatterns(m)
	return err
}

// MatchWithError reports whether the type of r's event is one of m.
func (m MatchEvent) MatchWithError(r *http.Request) (bool, error) {
	state := stateOf(r)
	return state.verified() && len(m) > 0 && patterns(m).match(state.event.Type), nil
}

// Interface guards
var (
	_ caddy.Provisioner                 = MatchEvent(nil)
	_ caddyfile.Unmarshaler             = (*MatchEvent)(nil)
	_ caddyhttp.CELLibraryProducer      = MatchEvent(nil)
	_ caddyhttp.RequestMatcherWithError = MatchEvent(nil)
)
