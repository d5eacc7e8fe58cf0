# Caddy with buzzbip_webhook, from this checkout:
#
#	docker build -t buzzbip-caddy .
#
# docs/DEPLOYMENT.md says how to run it. "make deployment" runs what is below
# without Docker, as far as that goes.

# the same as CADDY_VERSION in the Makefile
ARG CADDY_VERSION=2.11.9

# It compiles for any platform, without emulating it.
FROM --platform=$BUILDPLATFORM caddy:${CADDY_VERSION}-builder AS builder
ARG TARGETOS TARGETARCH
# the plugin's, which "caddy list-modules --versions" shows
ARG VERSION
# Should the Go in there be older than go.mod asks for, it gets the right one.
ENV GOTOOLCHAIN=auto
# No file capability on the binary: with one, the kernel refuses to start it
# where all capabilities are dropped, as in the Kubernetes example.
ENV XCADDY_SETCAP=0
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
	GOOS=$TARGETOS GOARCH=$TARGETARCH xcaddy build --output build/caddy \
	--with github.com/buzzbip/caddy-webhook@${VERSION:-v0.0.0}=.

FROM caddy:${CADDY_VERSION}
COPY --from=builder /src/build/caddy /usr/bin/caddy
# Volumes that are mounted there for the first time take this owner over.
RUN caddy list-modules | grep -x http.handlers.buzzbip_webhook && chown -R 10001:10001 /data /config
# A number, so that Kubernetes sees that it is not root. Docker lets it have the
# ports 80 and 443; elsewhere use ports above 1023.
USER 10001:10001
# Any configuration will do, unless it turns the admin endpoint off.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
	CMD ["wget", "-q", "-O", "/dev/null", "http://127.0.0.1:2019/config/"]
