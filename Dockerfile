# Caddy with buzzbip_webhook, from this checkout:
#
#	docker build -t buzzbip-caddy .
#
# docs/DEPLOYMENT.md says how to run it. "make deployment" tests as much of this
# file as is possible without Docker.

# the same as CADDY_VERSION in the Makefile
ARG CADDY_VERSION=2.11.9

# It compiles for any platform, without emulating it.
FROM --platform=$BUILDPLATFORM caddy:${CADDY_VERSION}-builder AS builder
ARG TARGETOS TARGETARCH
# the version of the plugin, which "caddy list-modules --versions" shows
ARG VERSION
# If the image's Go is older than go.mod requires, Go downloads the right version.
ENV GOTOOLCHAIN=auto
# No file capability on the binary: with one, the kernel would not start it where
# all capabilities are dropped, as in the Kubernetes example.
ENV XCADDY_SETCAP=0
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
	GOOS=$TARGETOS GOARCH=$TARGETARCH xcaddy build --output build/caddy \
	--with github.com/buzzbip/caddy-webhook@${VERSION:-v0.0.0}=.

FROM caddy:${CADDY_VERSION}
COPY --from=builder /src/build/caddy /usr/bin/caddy
# New volumes that are mounted there inherit this owner. The inbox, the store sqlite and
# the certificates are in /data: without a volume there, they are lost with the container.
RUN caddy list-modules | grep -x http.handlers.buzzbip_webhook && chown -R 10001:10001 /data /config
# A number, so that Kubernetes can verify that it is not root. Docker lets this
# user bind the ports 80 and 443; elsewhere, use ports above 1023.
USER 10001:10001
# This works with any configuration that does not disable the admin endpoint.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
	CMD ["wget", "-q", "-O", "/dev/null", "http://127.0.0.1:2019/config/"]
