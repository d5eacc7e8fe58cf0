package buzzbip

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/internal/option"
	"github.com/buzzbip/caddy-webhook/internal/webhook"

	// the stores and the command line
	_ "github.com/buzzbip/caddy-webhook/dedupe/memory"
	_ "github.com/buzzbip/caddy-webhook/dedupe/redis"
	_ "github.com/buzzbip/caddy-webhook/dedupe/sqlite"
	_ "github.com/buzzbip/caddy-webhook/inbox/sqlite"
	_ "github.com/buzzbip/caddy-webhook/internal/cli"
)

func init() {
	caddy.RegisterModule(Handler{})
}

const (
	defaultReadTimeout     = caddy.Duration(10 * time.Second)
	defaultDeliveryTimeout = caddy.Duration(time.Minute)
	defaultAnswerWithin    = caddy.Duration(8 * time.Second)
	defaultMaxInFlight     = 256 << 20
	defaultRetention       = caddy.Duration(24 * time.Hour)

	// storeNamespace is where Caddy finds the stores.
	storeNamespace = "http.buzzbip_webhook.stores"

	// leaseMargin is how much longer a lease is than delivery_timeout, so that
	// there is time to record the outcome.
	leaseMargin = 15 * time.Second

	// settleTimeout is how long a sender waits at most until its success is
	// recorded.
	settleTimeout = 2 * time.Second
)

const (
	onConflictDrop    = "drop"
	onConflictDeliver = "deliver"
	dedupeOff         = "off"
)

// Handler receives the webhooks of BuzzBip. It passes a request to the next
// handlers if its signature is right and its event is new, and answers 2xx only
// if they did.
//
// A rejected request is an error, which `handle_errors` can shape. Error routes
// get no body of a rejected request, and cannot answer 2xx.
//
// Placeholders:
//
// Placeholder | Description
// ------------|---------------
// `{http.buzzbip_webhook.event.id}` | The ID of the event, once it is verified
// `{http.buzzbip_webhook.event.type}` | The type of the event, once it is verified
// `{http.buzzbip_webhook.event.created_at}` | When the event was created, as BuzzBip wrote it, once it is verified
// `{http.buzzbip_webhook.event.data.<path>}` | A member of the event's `data`, by its [GJSON path](https://github.com/tidwall/gjson/blob/master/SYNTAX.md); empty if there is none
// `{http.buzzbip_webhook.secret}` | The label of the secret that matched
// `{http.buzzbip_webhook.result}` | The outcome: `delivered`, `failed`, `stored`, `duplicate`, `conflict`, `ignored`, `in_flight` or `rejected`
// `{http.buzzbip_webhook.attempt}` | The number of the attempt to deliver the event, from 1
// `{http.buzzbip_webhook.reason}` | Why the request was rejected, or would be, else empty
// `{http.buzzbip_webhook.would_be}` | With `enforce off`, what the result would be, after the next handlers; else empty
//
// Control characters in the values are replaced by spaces, so that they can be
// headers.
type Handler struct {
	// The signing secrets of the webhook. A request must match one of them;
	// more than one is for rotation, and for several webhooks at one address.
	Secrets []Secret `json:"secrets,omitempty"`

	// The event types to pass on, each a full type such as `message.received`
	// or a prefix such as `message.*`. Events of other types are acknowledged
	// and dropped. Default: all.
	Events []string `json:"events,omitempty"`

	// How much of the envelope must be right: `strict` asks for all four
	// documented members, `lenient` does not look at `createdAt` and `data`
	// (with `max_age`, not at `data`). Default: `strict`.
	Envelope string `json:"envelope,omitempty"`

	// The size of the largest body to accept, in bytes. Default: 1048576.
	MaxBodySize *int64 `json:"max_body_size,omitempty"`

	// How long the whole body may take to arrive. Default: 10s.
	ReadTimeout *caddy.Duration `json:"read_timeout,omitempty"`

	// How long the next handlers may take, also after the sender has
	// disconnected, which BuzzBip does after 10 seconds. Default: 1m.
	DeliveryTimeout *caddy.Duration `json:"delivery_timeout,omitempty"`

	// How long an event may wait before its delivery, from the end of the
	// request's body: for a delivery of the same event that is in flight, for its
	// turn, and for memory. After that, the sender is asked to retry (503 with
	// `Retry-After`).
	// A delivery that has begun may take longer. Default: 8s, since BuzzBip
	// disconnects after 10 seconds.
	AnswerWithin *caddy.Duration `json:"answer_within,omitempty"`

	// How much memory verified events may take while they are delivered or wait,
	// in bytes. Each counts as its body and 96 KiB. Deliveries of all handlers
	// count together, also those that began before a reload. If they take three
	// quarters of it, further events wait; if these take the rest, the sender is
	// asked to retry. Default: 268435456.
	MaxInFlight *int64 `json:"max_in_flight,omitempty"`

	// How old an event may be, by its `createdAt`. Older ones are rejected, so
	// that a captured request cannot be replayed once its event is forgotten.
	// It must be at least 5 minutes, the allowed clock skew, shorter than the
	// retention. Default: no limit.
	MaxAge *caddy.Duration `json:"max_age,omitempty"`

	// How long the ID of a delivered event is remembered. Default: 24h.
	Retention *caddy.Duration `json:"retention,omitempty"`

	// The space in which event IDs are unique. Handlers with the same scope and
	// store take each other's events for duplicates. Default: derived from the
	// secret that matched.
	Scope string `json:"scope,omitempty"`

	// Where event IDs are remembered. Default: `memory`.
	StoreRaw json.RawMessage `json:"store,omitempty" caddy:"namespace=http.buzzbip_webhook.stores inline_key=module"`

	// Keeps the events that the backend did not take, acknowledges them, and
	// delivers them again until it does. Default: none.
	InboxRaw json.RawMessage `json:"inbox,omitempty" caddy:"namespace=http.buzzbip_webhook.inboxes inline_key=module"`

	// Members of the event's `data`, as [GJSON paths](https://github.com/tidwall/gjson/blob/master/SYNTAX.md),
	// such as `conversation.id`. The first that is a string or a number is the order
	// key of the event. Events with the same one go to the backend one at a time, in
	// the order in which they have arrived. Default: in no order.
	OrderBy []string `json:"order_by,omitempty"`

	// What to do with an event whose ID was delivered with another body: `drop`
	// answers it like a duplicate, `deliver` passes it on. Either way it is
	// logged as an error. Default: `drop`.
	OnConflict string `json:"on_conflict,omitempty"`

	// Set to `off` to verify only, and pass on duplicates.
	// Default: deduplication.
	Dedupe string `json:"dedupe,omitempty"`

	// Set to `off` to observe only: every request passes as if the handler were not
	// there. What would have become of it is in the access log, the metrics and
	// `caddy buzzbip report`. Events that are in an inbox already are still
	// delivered. Default: the handler enforces what it finds.
	Enforce string `json:"enforce,omitempty"`

	// The rest is resolved by Provision.
	secrets         *secrets
	events          patterns
	requires        webhook.Requirements
	maxBodySize     int64
	readTimeout     time.Duration
	deliveryTimeout time.Duration
	answerWithin    time.Duration
	maxInFlight     int64
	maxAge          time.Duration
	retention       time.Duration
	store           *measured // nil: no deduplication
	inbox           *inboxUse // nil: none
	orderBy         *orderBy  // nil: none
	server          *caddyhttp.Server
	keptRetention   time.Duration // how long the ID of an event in the inbox is remembered at least
	errorRoutes     bool          // whether there are any that see what the handler returns

	app     *App
	logger  *zap.Logger
	sampled *sampler // for entries that senders can cause at any rate
}

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.buzzbip_webhook",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision checks the settings, resolves placeholders and defaults, and loads
// the store.
func (h *Handler) Provision(ctx caddy.Context) error {
	h.logger, h.sampled = ctx.Logger(), new(sampler)
	app, err := ctx.App("buzzbip_webhook")
	if err != nil {
		return err
	}
	h.app = app.(*App)
	if h.secrets, err = loadSecrets(h.Secrets, h.Scope, h.logger); err != nil {
		return err
	}
	if h.events, err = newPatterns(h.Events); err != nil {
		return err
	}
	if unknown := h.events.undocumented(); len(unknown) > 0 {
		h.logger.Warn("no event type that BuzzBip documents is one of these: check the spelling", zap.Strings("events", unknown))
	}
	if err := h.provisionLimits(); err != nil {
		return err
	}
	if h.orderBy, err = newOrderBy(h.OrderBy); err != nil {
		return err
	}
	if err := h.provisionDedupe(ctx); err != nil {
		return err
	}
	if err := h.provisionInbox(ctx); err != nil {
		return err
	}
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		server.RegisterOnStop(h.app.serverStopped)
	}
	switch h.Enforce {
	case "":
		if h.errorRoutes, err = guardErrorRoutes(ctx); err != nil {
			return err
		}
	case enforceOff:
		h.logger.Warn("enforce off: every request reaches the next handlers, also forged ones and duplicates; remove the option once caddy buzzbip report shows what you expect")
	default:
		return fmt.Errorf("enforce can only be %s, not %q: leave it out to enforce", enforceOff, h.Enforce)
	}
	h.app.register(h)
	h.secrets.watch(ctx, func(label string) { h.app.notices.add(noticeSecretRotated, map[string]any{"secret": label}) })
	return nil
}

func (h *Handler) provisionLimits() error {
	lenient, err := option.Choice("envelope", h.Envelope, webhook.EnvelopeStrict, webhook.EnvelopeLenient)
	if err != nil {
		return err
	}
	if h.maxBodySize, err = option.Resolve("max_body_size", h.MaxBodySize, webhook.DefaultMaxBodySize); err != nil {
		return err
	}
	if h.maxInFlight, err = option.Resolve("max_in_flight", h.MaxInFlight, defaultMaxInFlight); err != nil {
		return err
	}
	for _, d := range []struct {
		name    string
		value   *caddy.Duration
		unset   caddy.Duration
		setting *time.Duration
	}{
		{"read_timeout", h.ReadTimeout, defaultReadTimeout, &h.readTimeout},
		{"delivery_timeout", h.DeliveryTimeout, defaultDeliveryTimeout, &h.deliveryTimeout},
		{"answer_within", h.AnswerWithin, defaultAnswerWithin, &h.answerWithin},
		{"max_age", h.MaxAge, 0, &h.maxAge},
		{"retention", h.Retention, defaultRetention, &h.retention},
	} {
		resolved, err := option.Resolve(d.name, d.value, d.unset)
		if err != nil {
			return err
		}
		*d.setting = time.Duration(resolved)
	}
	h.requires = webhook.Requirements{CreatedAt: !lenient || h.maxAge > 0, Data: !lenient}
	return nil
}

func (h *Handler) provisionDedupe(ctx caddy.Context) error {
	if _, err := option.Choice("on_conflict", h.OnConflict, onConflictDrop, onConflictDeliver); err != nil {
		return err
	}
	switch h.Dedupe {
	case "":
	case dedupeOff:
		if h.StoreRaw != nil || h.Retention != nil || h.InboxRaw != nil || h.orderBy != nil {
			return errors.New("dedupe off remembers nothing: remove it, or remove store, retention, inbox and order_by")
		}
		return nil
	default:
		return fmt.Errorf("dedupe can only be %s, not %q: leave it out to deduplicate", dedupeOff, h.Dedupe)
	}
	if h.maxAge > 0 && h.maxAge > h.retention-webhook.ClockSkew {
		return fmt.Errorf("max_age (%s) plus %s of clock skew is greater than retention (%s), so an event could be forgotten while a replay of it is still accepted: raise retention or lower max_age",
			h.maxAge, webhook.ClockSkew, h.retention)
	}

	var store any
	var err error
	if h.StoreRaw != nil {
		store, err = ctx.LoadModule(h, "StoreRaw")
	} else {
		store, err = ctx.LoadModuleByID(storeNamespace+".memory", nil)
	}
	if err != nil {
		return fmt.Errorf("loading store: %w", err)
	}
	h.store = newMeasured(store.(dedupe.Store), store.(caddy.Module).CaddyModule().ID.Name())
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
