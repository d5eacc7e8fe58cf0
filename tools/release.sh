#!/bin/sh
# Writes what a release consists of into dist: for each platform an archive with
# Caddy and the plugin, and an SBOM of that binary; and the checksums of all.
#   tools/release.sh <version> <Caddy's version> <os>/<arch>[/<GOARM>]...
# "make release" builds the programs in build that it needs. v0.0.0 is this
# checkout; any other version is the tag that everybody gets from Go's proxy.
set -eu
version=$1 caddy=$2
shift 2
cd "$(dirname "$0")/.."
root=$PWD
plugin=github.com/buzzbip/caddy-webhook
with=$plugin@$version
[ "$version" != v0.0.0 ] || with=$with=.
name=buzzbip-caddy_${version#v}
export XCADDY_SETCAP=0 CGO_ENABLED=0
# the same commit gives the same archives
date=@$(git log -1 --format=%ct)

tools/changes.sh "$version" >/dev/null
command -v zip >/dev/null || { echo "install zip: archives for Windows need it" >&2; exit 1; }
rm -rf dist
mkdir dist
for platform; do
	IFS=/ read -r os arch arm <<-EOF
		$platform
	EOF
	echo "== $platform"
	artifact=${name}_${os}_$arch${arm:+v$arm}
	stage=build/release/$artifact
	rm -rf "$stage"
	mkdir -p "$stage"
	binary=$stage/caddy
	[ "$os" != windows ] || binary=$binary.exe
	GOOS=$os GOARCH=$arch GOARM=$arm build/xcaddy build "$caddy" --output "$binary" --with "$with"
	go version -m "$binary" | grep -F "$plugin"
	build/cyclonedx-gomod bin -json -std -noserial -notimestamp -version "$version" -output "dist/$artifact.cdx.json" "$binary"
	cp LICENSE README.md "$stage"
	touch -d "$date" "$stage"/*
	if [ "$os" = windows ]; then
		(cd "$stage" && TZ=UTC zip -q -X "$root/dist/$artifact.zip" ./*)
	else
		tar -C "$stage" --sort=name --owner=0 --group=0 --numeric-owner --mtime="$date" -cf - . | gzip -n >"dist/$artifact.tar.gz"
	fi
	rm -rf "$stage"
done
(cd dist && sha256sum -- * >"../build/checksums" && mv ../build/checksums "${name}_checksums.txt")
