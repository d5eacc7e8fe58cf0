#!/bin/sh
# Installs a command through the system's package manager if it is missing:
#   tools/install.sh <command> [<package>]
set -eu
command=$1
package=${2:-$1}
command -v "$command" >/dev/null && exit 0

sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
echo "installing $package for $command"
if command -v apt-get >/dev/null; then
	$sudo apt-get update -q
	# the service that comes with it is not to be started: packages ask this
	policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		trap '$sudo rm -f "$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
		$sudo chmod 755 "$policy"
	fi
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$package"
elif command -v dnf >/dev/null; then
	$sudo dnf install -y "$package"
elif command -v apk >/dev/null; then
	$sudo apk add "$package"
elif command -v brew >/dev/null; then
	brew install "$package"
else
	echo "no package manager that this script knows: install $command yourself" >&2
	exit 1
fi
command -v "$command" >/dev/null
