// Package buzzbip is a Caddy module that receives the webhooks of BuzzBip. It
// verifies their signature, deduplicates their events and passes them to the
// next handlers, such as reverse_proxy, which it judges by their status.
//
// In a Caddyfile it is the directive buzzbip_webhook:
//
//	hooks.example.com {
//		handle /webhooks/buzzbip {
//			buzzbip_webhook {env.BUZZBIP_SECRET}
//			reverse_proxy 127.0.0.1:9000
//		}
//		respond 404
//	}
//
// Programs that build Caddy import the package for its side effects: it
// registers [Handler] as http.handlers.buzzbip_webhook, [MatchEvent] as
// http.matchers.buzzbip_event, the stores (see the package dedupe), the inbox (see
// the package inbox), an admin API and the command `caddy buzzbip`.
//
// # A request on its way
//
// [Handler.ServeHTTP] in handler.go takes a request through its steps: method and
// signature header, body (body.go), signature (verify.go), envelope, type
// (events.go), and the claim on the event's ID. deliver.go passes the event to the
// next handlers and settles the claim by their answer; transport.go decides what a
// transport may send again, deliveries.go recognizes a delivery that comes back to
// another buzzbip_webhook, and errorroutes.go what error routes may see and
// answer. With an inbox, keep.go stores the event if the next handlers fail, and
// redeliver.go delivers it again later. placeholders.go and matcher.go show the event to other handlers,
// accesslog.go, metrics.go, feed.go, failures.go and admin.go to operators.
package buzzbip
