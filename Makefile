# make test         the tests, with the race detector: 5 to 10 minutes on 2 cores, longer the first time;
#                   installs redis-server, jq and curl if they are missing
# make check        everything below, from lint to deployment: about 10 minutes on 2 cores,
#                   up to 40 the first time, because Go compiles a lot; installs redis-server, jq, curl,
#                   Prometheus, Chromium, systemd and openssl if they are missing
#   make lint           format, modules, vet, staticcheck, golangci-lint, the workflows
#   make cross          compiles for Windows, macOS and ARM, including the tests
#   make fuzz           the envelope, the signature header and the Caddyfile parser, each for a short time
#   make monitoring     the monitoring example, with a real Prometheus
#   make browser        the page of the admin API, in Chromium
#   make newest-caddy   the tests with the newest Caddy, without the race detector
#   make xcaddy         builds build/caddy with xcaddy
#   make deployment     the Dockerfile and the examples for Compose, Kubernetes and systemd, without running any of these
# make bench        the benchmarks, then bench/, which measures a running Caddy: about 20 minutes
# make bench-check  runs bench/, and says what got worse than docs/performance.json
# make soak         has Caddy killed, reloaded, its disk filled and its backend turned off, under load, again and
#                   again for SOAKTIME=5m, and counts what became of the events; make test does so once; for Linux
# make screenshots  takes the screenshots in docs: about 5 minutes
# make release      builds a release into dist: of VERSION=v1.2.3, or of this checkout
# make redis        installs redis-server only
# make jq           installs jq only
# make curl         installs curl only
# make clean        removes build and dist
#
# Programs are installed with your system's package manager, with sudo unless you are root.

GO ?= go

# The newest Caddy that is known to work; go.mod has the oldest.
CADDY_VERSION ?= v2.11.9
# A number of runs: with a time, Go before 1.27 may fail at its end (go.dev/issue/75804).
FUZZTIME ?= 20000x

SOAKTIME ?= 5m

# Without SQLite itself, which is C translated to Go: its memory would take most of the time of its tests.
# That two goroutines use one connection or statement is found in the package around it.
RACE := -race -gcflags=github.com/ncruces/go-sqlite3-wasm/...=-race=false

# What is released. GOARM follows arm.
VERSION ?= v0.0.0
PLATFORMS ?= linux/amd64 linux/arm64 linux/arm/7 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64 freebsd/amd64
# What "make cross" compiles for: other systems, and one with 32 bits.
CROSS := windows/amd64 darwin/arm64 linux/arm64 linux/arm

# What the system's package manager calls redis-server.
REDIS_PACKAGE := $(shell if command -v apt-get >/dev/null; then echo redis-server; else echo redis; fi)

MODULES := http.handlers.buzzbip_webhook http.matchers.buzzbip_event \
	http.buzzbip_webhook.stores.memory http.buzzbip_webhook.stores.sqlite \
	http.buzzbip_webhook.stores.redis http.buzzbip_webhook.inboxes.sqlite buzzbip_webhook

.PHONY: help test redis jq curl check announce lint cross fuzz monitoring browser screenshots newest-caddy xcaddy deployment release bench bench-check soak clean

# The list above.
help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

# -count=1 for the tests in e2e: Go does not know that they build Caddy from this module, and would
# show the results of an earlier one.
test: redis jq curl
	$(GO) test $(RACE) -timeout 15m ./...
	cd e2e && $(GO) test $(RACE) -count=1 -timeout 15m .

# REDIS_SERVER names another server to test with, such as valkey-server.
redis:
	@[ -n "$$REDIS_SERVER" ] || tools/install.sh redis-server $(REDIS_PACKAGE)

jq:
	@tools/install.sh jq

curl:
	@tools/install.sh curl

check: announce lint cross fuzz monitoring browser newest-caddy xcaddy deployment

announce:
	@echo "make check takes about 10 minutes on 2 cores, the first time up to 40, and installs what is missing of"
	@echo "redis-server, jq, curl, Prometheus, Chromium, systemd and openssl with the package manager of your system"

lint:
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not formatted:"; echo "$$unformatted"; exit 1; fi
	$(GO) mod tidy -diff
	$(GO) vet -tags monitoring ./...
	$(GO) tool -modfile=tools/go.mod staticcheck -tags monitoring ./...
	cd e2e && $(GO) mod tidy -diff && $(GO) vet -tags monitoring ./... && $(GO) tool -modfile=../tools/go.mod staticcheck -tags monitoring ./...
	cd e2e/deployment && $(GO) mod tidy -diff && $(GO) vet ./... && $(GO) tool -modfile=../../tools/go.mod staticcheck ./...
	@mkdir -p build
	cd tools/lint && $(GO) build -o ../../build/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@for file in $$(git ls-files '*go.mod' ':!tools'); do dir=$$(dirname $$file); echo "golangci-lint in $$dir"; \
		(cd $$dir && $(CURDIR)/build/golangci-lint run --config $(CURDIR)/.golangci.yml ./...) || exit 1; done
	$(GO) tool -modfile=tools/go.mod actionlint
	@for file in $$(git ls-files '*go.mod'); do dir=/$$(dirname $$file); grep -qx " *- $${dir%/.}/*" .github/dependabot.yml || \
		{ echo "not in .github/dependabot.yml: $$dir"; exit 1; }; done

# e2e/deployment is for Linux.
cross:
	@for platform in $(CROSS); do echo "vet for $$platform"; \
		export CGO_ENABLED=0 GOOS=$${platform%/*} GOARCH=$${platform#*/}; \
		$(GO) build -o /dev/null ./cmd/caddy && $(GO) vet -tags monitoring ./... && (cd e2e && $(GO) vet -tags monitoring ./...) || exit 1; done

# Go fuzzes one target at a time.
fuzz:
	$(GO) test -run '^$$' -fuzz '^FuzzEnvelope$$' -fuzztime $(FUZZTIME) ./internal/webhook
	$(GO) test -run '^$$' -fuzz '^FuzzTime$$' -fuzztime $(FUZZTIME) ./internal/webhook
	$(GO) test -run '^$$' -fuzz '^FuzzSignatureHeader$$' -fuzztime $(FUZZTIME) ./internal/webhook
	$(GO) test -run '^$$' -fuzz '^FuzzCaddyfile$$' -fuzztime $(FUZZTIME) .

# The example, by Prometheus itself. That no test has run is a failure too.
monitoring:
	tools/install.sh prometheus
	tools/install.sh promtool prometheus
	promtool check config examples/monitoring/prometheus.yml
	promtool check rules examples/monitoring/alerts.yml
	promtool test rules examples/monitoring/alerts_test.yml
	@mkdir -p build
	cd e2e && $(GO) test -v -count=1 -timeout 15m -tags monitoring -run '^TestMonitoring' . >$(CURDIR)/build/monitoring 2>&1 || { cat $(CURDIR)/build/monitoring; exit 1; }
	@grep -- '--- PASS: TestMonitoring' build/monitoring

# The page of the admin endpoint.
browser:
	@[ -n "$$CHROMIUM" ] || tools/install.sh chromium
	cd e2e && $(GO) test -count=1 -timeout 10m ./browser

screenshots:
	cd e2e && $(GO) test -count=1 -timeout 15m -run TestScreenshots ./browser -args -screenshots $(CURDIR)/docs

newest-caddy: redis jq curl
	@mkdir -p build
	cp go.mod build/newest.mod
	cp go.sum build/newest.sum
	$(GO) get -modfile=build/newest.mod github.com/caddyserver/caddy/v2@$(CADDY_VERSION)
	# in the environment, for tests that build Caddy themselves
	GOFLAGS="$$GOFLAGS -modfile=$(CURDIR)/build/newest.mod" $(GO) test -timeout 15m ./...
	# e2e has no Caddy in its own go.mod, which the flag restores
	cd e2e && GOFLAGS="$$GOFLAGS -modfile=$(CURDIR)/build/newest.mod" $(GO) test -modfile=$(CURDIR)/e2e/go.mod -count=1 -timeout 15m .

xcaddy:
	@mkdir -p build
	$(GO) tool xcaddy build $(CADDY_VERSION) --output build/caddy --with github.com/buzzbip/caddy-webhook@v0.0.0=.
	@build/caddy list-modules > build/modules
	@for module in $(MODULES); do grep -qxF "$$module" build/modules || { echo "not in the build: $$module"; exit 1; }; echo "$$module"; done

# systemd is not started, only its systemd-analyze used.
deployment: redis
	tools/install.sh systemd-analyze systemd
	tools/install.sh openssl
	cd e2e/deployment && $(GO) test -count=1 -timeout 15m -v ./...

release:
	$(GO) build -o build/xcaddy github.com/caddyserver/xcaddy/cmd/xcaddy
	cd tools && $(GO) build -o ../build/cyclonedx-gomod github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod
	tools/release.sh $(VERSION) $(CADDY_VERSION) $(PLATFORMS)

bench: redis
	$(GO) test -run '^$$' -bench . -benchmem ./...
	$(GO) run ./bench

# For people, not for CI: what else a machine does shows in the figures.
bench-check: redis
	$(GO) run ./bench -compare docs/performance.json

soak:
	cd e2e && $(GO) test $(RACE) -count=1 -timeout 0 -v -run '^TestSoak$$' . -args -soak $(SOAKTIME)

clean:
	rm -rf build dist
