#!/bin/sh
# Prints what CHANGELOG.md says of a version, for the notes of its release:
#   tools/changes.sh v1.2.3
# v0.0.0 is what is not released yet. That nothing is said is an error.
set -eu
version=${1#v}
[ "$version" = 0.0.0 ] && version=Unreleased
awk -v version="$version" '
	/^## / { name = $2; gsub(/[][]/, "", name); on = name == version; next }
	on && (printed || NF) { print; printed = 1 }
	END { exit !printed }
' "$(dirname "$0")/../CHANGELOG.md" || { echo "CHANGELOG.md has no section ## $version" >&2; exit 1; }
