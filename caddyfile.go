package buzzbip

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/buzzbip/caddy-webhook/internal/option"
)

func init() {
	httpcaddyfile.RegisterHandlerDirective("buzzbip_webhook", parseCaddyfile)
	// after directives that may rewrite or reject any request, before those that
	// change headers or answer
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
//		answer_within    <duration>
//		max_in_flight    <size>
//		max_age          <duration>
//		retention        <duration>
//		scope            <name>
//		store            <module> [<args>] {...}
//		on_conflict      drop|deliver
//		dedupe           off
//		inbox            <module> [<args>] {...}
//		order_by         <path>...
//		enforce          off
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
		name := d.Val()
		repeatable := name == "secret" || name == "secret_file" || name == "events"
		if err := option.Once(d, slices.Contains(given, name) && !repeatable); err != nil {
			return err
		}
		given = append(given, name)
		if err := h.unmarshalOption(d, name); err != nil {
			return err
		}
	}
	return nil
}

func (h *Handler) unmarshalOption(d *caddyfile.Dispenser, name string) (err error) {
	switch name {
	case "secret", "secret_file":
		var s Secret
		value, what := &s.Value, "value"
		if name == "secret_file" {
			value, what = &s.File, "path"
		}
		switch args := d.RemainingArgs(); len(args) {
		case 2:
			s.Label = args[1]
			fallthrough
		case 1:
			*value = args[0]
		default:
			return d.Errf("%s takes a %s and, if you like, a label: quote a %[2]s that contains spaces", name, what)
		}
		if name == "secret_file" && s.File == "" {
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
	case "max_body_size":
		h.MaxBodySize, err = option.Size(d)
	case "read_timeout":
		h.ReadTimeout, err = option.Duration(d)
	case "delivery_timeout":
		h.DeliveryTimeout, err = option.Duration(d)
	case "answer_within":
		h.AnswerWithin, err = option.Duration(d)
	case "max_in_flight":
		h.MaxInFlight, err = option.Size(d)
	case "max_age":
		h.MaxAge, err = option.Duration(d)
	case "retention":
		h.Retention, err = option.Duration(d)
	case "store":
		h.StoreRaw, err = unmarshalGuest(d, "store", storeNamespace)
	case "inbox":
		h.InboxRaw, err = unmarshalGuest(d, "inbox", inboxNamespace)
	case "order_by":
		err = h.unmarshalOrderBy(d)
	case "envelope", "scope", "on_conflict", "dedupe", "enforce":
		words := map[string]*string{"envelope": &h.Envelope, "scope": &h.Scope, "on_conflict": &h.OnConflict, "dedupe": &h.Dedupe, "enforce": &h.Enforce}
		*words[name], err = option.Word(d)
	default:
		return unknownOption(d, name)
	}
	return err
}

func (h *Handler) unmarshalOrderBy(d *caddyfile.Dispenser) error {
	if h.OrderBy = d.RemainingArgs(); len(h.OrderBy) == 0 {
		return d.ArgErr()
	}
	if _, err := newOrderBy(h.OrderBy); err != nil {
		return d.WrapErr(err)
	}
	return nil
}

// options are those of buzzbip_webhook, as errors list them.
var options = []string{
	"secret", "secret_file", "events", "envelope", "max_body_size", "read_timeout", "delivery_timeout", "answer_within",
	"max_in_flight", "max_age", "retention", "scope", "store", "on_conflict", "dedupe", "inbox", "order_by", "enforce",
}

// directives are those of Caddy that have no module of the same name. Its own
// list is not exported.
var directives = []string{
	"abort", "acme_server", "basic_auth", "bind", "forward_auth", "fs", "handle", "handle_errors", "handle_path", "header",
	"import", "log", "method", "php_fastcgi", "redir", "request_header", "respond", "root", "route", "tls", "try_files", "uri",
}

// optionName matches what errors may show: in the wrong place, a secret may be
// taken for an option.
var optionName = regexp.MustCompile(`^[a-z_]{1,32}$`)

// unknownOption asks for a brace if the name is of what may follow the block.
func unknownOption(d *caddyfile.Dispenser, name string) error {
	_, notAHandler := caddy.GetModule("http.handlers." + name)
	if notAHandler == nil || slices.Contains(directives, name) || strings.HasPrefix(name, "@") {
		return d.Errf("%s is not an option of buzzbip_webhook: close its block with a } before this line", name)
	}
	shown := ""
	if optionName.MatchString(name) {
		shown = strconv.Quote(name) + " "
	}
	return d.Errf("unknown option %sof buzzbip_webhook: it has %s", shown, strings.Join(options, ", "))
}

// unmarshalGuest returns the configuration of a guest module, such as a store.
func unmarshalGuest(d *caddyfile.Dispenser, kind, namespace string) (json.RawMessage, error) {
	var available []string
	for _, module := range caddy.GetModules(namespace) {
		available = append(available, module.ID.Name())
	}
	if !d.NextArg() {
		return nil, d.Errf("%s needs the name of a module: this Caddy has %s", kind, strings.Join(available, ", "))
	}
	name := d.Val()
	id := namespace + "." + name
	if _, err := caddy.GetModule(id); err != nil {
		return nil, d.Errf("unknown %s %q: this Caddy has %s", kind, name, strings.Join(available, ", "))
	}
	guest, err := caddyfile.UnmarshalModule(d, id)
	if err != nil {
		return nil, err
	}
	return caddyconfig.JSONModuleObject(guest, "module", name, nil), nil
}

// Interface guard
var _ caddyfile.Unmarshaler = (*Handler)(nil)
