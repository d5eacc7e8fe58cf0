package buzzbip

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"
)

func init() {
	httpcaddyfile.RegisterHandlerDirective("buzzbip_webhook", parseCaddyfile)
	// after what may rewrite or refuse any request, before what changes headers
	// or answers
	httpcaddyfile.RegisterDirectiveOrder("buzzbip_webhook", httpcaddyfile.After, "forward_auth")
}

func parseCaddyfile(helper httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	h := new(Handler)
	return h, h.UnmarshalCaddyfile(helper.Dispenser)
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	buzzbip_webhook [<matcher>] [<secret>] {
//		secret           <value> [<label>]
//		secret_file      <path> [<label>]
//		events           <pattern>...
//		envelope         strict|lenient
//		max_body_size    <size>
//		read_timeout     <duration>
//		delivery_timeout <duration>
//		duplicate_wait   <duration>
//		max_age          <duration>
//		retention        <duration>
//		scope            <name>
//		store            <module> [<args>] {...}
//		on_conflict      drop|deliver
//		dedupe           off
//	}
//
// The options secret, secret_file and events may be repeated.
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive
	if d.NextArg() {
		h.Secrets = append(h.Secrets, Secret{Value: d.Val()})
	}
	if d.NextArg() {
		return d.Err("buzzbip_webhook takes a matcher and a secret: quote a secret that contains spaces, and give a label with the option secret") // not showing what may be the secret
	}
	var given []string
	for d.NextBlock(0) {
		option := d.Val()
		repeatable := option == "secret" || option == "secret_file" || option == "events"
		if slices.Contains(given, option) && !repeatable {
			return d.Errf("%s is given more than once", option)
		}
		given = append(given, option)
		if err := h.unmarshalOption(d, option); err != nil {
			return err
		}
	}
	return nil
}

func (h *Handler) unmarshalOption(d *caddyfile.Dispenser, option string) (err error) {
	switch option {
	case "secret", "secret_file":
		var s Secret
		value, what := &s.Value, "value"
		if option == "secret_file" {
			value, what = &s.File, "path"
		}
		switch args := d.RemainingArgs(); len(args) {
		case 2:
			s.Label = args[1]
			fallthrough
		case 1:
			*value = args[0]
		default:
			return d.Errf("%s takes a %s and, if you like, a label: quote a %[2]s that contains spaces", option, what)
		}
		if option == "secret_file" && s.File == "" {
			return d.Err("secret_file is empty")
		}
		h.Secrets = append(h.Secrets, s)
	case "events":
		args := d.RemainingArgs()
		if len(args) == 0 {
			return d.ArgErr()
		}
		if _, err := newPatterns(args); err != nil {
			return d.WrapErr(err)
		}
		h.Events = append(h.Events, args...)
	case "envelope":
		h.Envelope, err = word(d)
	case "max_body_size":
		h.MaxBodySize, err = size(d, option)
	case "read_timeout":
		h.ReadTimeout, err = duration(d, option)
	case "delivery_timeout":
		h.DeliveryTimeout, err = duration(d, option)
	case "duplicate_wait":
		h.DuplicateWait, err = duration(d, option)
	case "max_age":
		h.MaxAge, err = duration(d, option)
	case "retention":
		h.Retention, err = duration(d, option)
	case "scope":
		h.Scope, err = word(d)
	case "store":
		err = h.unmarshalStore(d)
	case "on_conflict":
		h.OnConflict, err = word(d)
	case "dedupe":
		h.Dedupe, err = word(d)
	default:
		return unknownOption(d, option)
	}
	return err
}

// options are those of buzzbip_webhook, as errors list them.
var options = []string{
	"secret", "secret_file", "events", "envelope", "max_body_size", "read_timeout", "delivery_timeout", "duplicate_wait",
	"max_age", "retention", "scope", "store", "on_conflict", "dedupe",
}

// directives are those of Caddy that have no module of the same name. Its own
// list is not exported.
var directives = []string{
	"abort", "acme_server", "basic_auth", "bind", "forward_auth", "fs", "handle", "handle_errors", "handle_path", "header",
	"import", "log", "method", "php_fastcgi", "redir", "request_header", "respond", "root", "route", "tls", "try_files", "uri",
}

// unknownOption asks for a brace if the option is what may follow the block.
func unknownOption(d *caddyfile.Dispenser, option string) error {
	_, notAHandler := caddy.GetModule("http.handlers." + option)
	if notAHandler == nil || slices.Contains(directives, option) || strings.HasPrefix(option, "@") {
		return d.Errf("%s is not an option of buzzbip_webhook: close its block with a } before this line", option)
	}
	return d.Errf("unknown option %q of buzzbip_webhook: it has %s", option, strings.Join(options, ", "))
}

func (h *Handler) unmarshalStore(d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.ArgErr()
	}
	name := d.Val()
	id := storeNamespace + "." + name
	if _, err := caddy.GetModule(id); err != nil {
		return d.Errf("unknown store %q: check the spelling, and that Caddy is built with it", name)
	}
	store, err := caddyfile.UnmarshalModule(d, id)
	if err != nil {
		return err
	}
	h.StoreRaw = caddyconfig.JSONModuleObject(store, "module", name, nil)
	return nil
}

// word reads the only argument of an option.
func word(d *caddyfile.Dispenser) (string, error) {
	var value string
	if !d.AllArgs(&value) {
		return "", d.ArgErr()
	}
	if value == "" {
		return "", d.Err("the value is empty")
	}
	return value, nil
}

func duration(d *caddyfile.Dispenser, option string) (*caddy.Duration, error) {
	text, err := word(d)
	if err != nil {
		return nil, err
	}
	parsed, err := caddy.ParseDuration(text)
	if err != nil {
		return nil, d.Errf("%s must be a duration such as 30s or 24h: %w", option, err)
	}
	value := caddy.Duration(parsed)
	if err := positive(option, value); err != nil {
		return nil, d.WrapErr(err)
	}
	return &value, nil
}

func size(d *caddyfile.Dispenser, option string) (*int64, error) {
	text, err := word(d)
	if err != nil {
		return nil, err
	}
	parsed, err := parseSize(option, text)
	if err != nil {
		return nil, d.WrapErr(err)
	}
	return &parsed, nil
}

func parseSize(option, text string) (int64, error) {
	parsed, err := humanize.ParseBytes(text)
	if err != nil || parsed > math.MaxInt64 {
		return 0, fmt.Errorf("%s must be a size such as 512KiB or 1MB, not %q", option, text)
	}
	return int64(parsed), positive(option, int64(parsed))
}

// Interface guard
var _ caddyfile.Unmarshaler = (*Handler)(nil)
