// Tests in a browser, apart from the plugin: who builds it into Caddy does not
// download what drives the browser.
module github.com/buzzbip/caddy-webhook/e2e/browser

go 1.26.0

require (
	github.com/buzzbip/caddy-webhook v0.0.0
	github.com/chromedp/cdproto v0.159.0
	github.com/chromedp/chromedp v0.23.0
)

require github.com/go-json-experiment/json v1.27.2 // indirect

replace github.com/buzzbip/caddy-webhook => ../..
