# make test         the tests, with the race detector; about 4 minutes on 2 cores, the first time more;
#                   installs redis-server if it is missing
# make check        all of these that follow, up to deployment; about 10 minutes on 2 cores,
#                   the first time up to 30, as Go compiles much;
#                   installs what is missing of redis-server, Prometheus, Chromium, systemd and openssl
#   make lint           format, modules, vet, staticcheck
#   make fuzz           the envelope, the signature header and the Caddyfile parser, each for a short time
#   make monitoring     the example of that name, with Prometheus
#   make browser        the page of the admin endpoint, in Chromium
#   make newest-caddy   the tests with the newest Caddy, without the race detector
#   make xcaddy         a build with xcaddy: build/caddy
#   make deployment     the Dockerfile and the examples of Compose, Kubernetes and systemd, without any of these
# make bench        the benchmarks
# make screenshots  those in docs
# make redis        only installs redis-server
# make clean        removes build
#
# Programs are installed with the package manager of your system, by sudo unless you are root.

GO ?= go

# The newest Caddy that is known to work; go.mod has the oldest.
CADDY_VERSION ?= v2.11.9
# A number of runs: with a time, Go before 1.27 may fail at its end (go.dev/issue/75804).
FUZZTIME ?= 20000x

# What the system's package manager calls redis-server.
REDIS_PACKAGE := $(shell if command -v apt-get >/dev/null; then echo redis-server; else echo redis; fi)

MODULES := http.handlers.buzzbip_webhook http.matchers.buzzbip_event \
	http.buzzbip_webhook.stores.memory http.buzzbip_webhook.stores.bolt \
	http.buzzbip_webhook.stores.redis buzzbip_webhook

.PHONY: help test redis check announce lint fuzz monitoring browser screenshots newest-caddy xcaddy deployment bench clean

# The list above.
help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

test: redis
	$(GO) test -race -timeout 15m ./...

# REDIS_SERVER names another server to test with, such as valkey-server.
redis:
	@[ -n "$$REDIS_SERVER" ] || tools/install.sh redis-server $(REDIS_PACKAGE)

check: announce lint fuzz monitoring browser newest-caddy xcaddy deployment

announce:
	@echo "make check takes about 10 minutes on 2 cores, the first time up to 30, and installs what is missing of"
	@echo "redis-server, Prometheus, Chromium, systemd and openssl with the package manager of your system"

lint:
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not formatted:"; echo "$$unformatted"; exit 1; fi
	$(GO) mod tidy -diff
	$(GO) vet -tags monitoring ./...
	$(GO) tool -modfile=tools/go.mod staticcheck -tags monitoring ./...
	cd e2e/browser && $(GO) mod tidy -diff && $(GO) vet ./... && $(GO) tool -modfile=../../tools/go.mod staticcheck ./...
	cd e2e/deployment && $(GO) mod tidy -diff && $(GO) vet ./... && $(GO) tool -modfile=../../tools/go.mod staticcheck ./...

# Go fuzzes one target at a time.
fuzz:
	$(GO) test -run '^$$' -fuzz '^FuzzEnvelope$$' -fuzztime $(FUZZTIME) .
	$(GO) test -run '^$$' -fuzz '^FuzzTime$$' -fuzztime $(FUZZTIME) .
	$(GO) test -run '^$$' -fuzz '^FuzzSignatureHeader$$' -fuzztime $(FUZZTIME) .
	$(GO) test -run '^$$' -fuzz '^FuzzCaddyfile$$' -fuzztime $(FUZZTIME) .

# The example, by Prometheus itself. That no test has run is a failure too.
monitoring:
	tools/install.sh prometheus
	tools/install.sh promtool prometheus
	promtool check config examples/monitoring/prometheus.yml
	promtool check rules examples/monitoring/alerts.yml
	promtool test rules examples/monitoring/alerts_test.yml
	@mkdir -p build
	$(GO) test -v -count=1 -timeout 15m -tags monitoring -run '^TestMonitoring' ./e2e >build/monitoring 2>&1 || { cat build/monitoring; exit 1; }
	@grep -- '--- PASS: TestMonitoring' build/monitoring

# The page of the admin endpoint.
browser:
	@[ -n "$$CHROMIUM" ] || tools/install.sh chromium
	cd e2e/browser && $(GO) test -timeout 10m ./...

screenshots:
	cd e2e/browser && $(GO) test -count=1 -run TestPageFits . -args -screenshots $(CURDIR)/docs

newest-caddy: redis
	@mkdir -p build
	cp go.mod build/newest.mod
	cp go.sum build/newest.sum
	$(GO) get -modfile=build/newest.mod github.com/caddyserver/caddy/v2@$(CADDY_VERSION)
	# in the environment, for tests that build Caddy themselves
	GOFLAGS="$$GOFLAGS -modfile=$(CURDIR)/build/newest.mod" $(GO) test -timeout 15m ./...

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

bench: redis
	$(GO) test -run '^$$' -bench . -benchmem ./...

clean:
	rm -rf build
