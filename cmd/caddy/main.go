// Command caddy is Caddy with its standard modules and buzzbip_webhook, for
// development and the quickstart. For production, build it with xcaddy.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/buzzbip/caddy-webhook"
)

func main() {
	caddycmd.Main()
}
