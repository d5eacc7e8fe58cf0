#!/bin/sh
# Writes the files from which kustomization.yaml creates the Secrets. The signing
# secret is read from the terminal or from standard input.
set -eu
cd "$(dirname "$0")"
umask 077
if [ -e secrets/current ]; then
	echo "secrets/current already exists: see \"Rotating the secret\" in docs/DEPLOYMENT.md" >&2
	exit 1
fi
mkdir -p secrets
trap 'rm -f secrets/new' EXIT

echo "Paste the signing secret, then press Enter and Ctrl-D:" >&2
cat >secrets/new
grep -q '[^[:space:]]' secrets/new || { echo "no secret was given: run this again" >&2; exit 1; }
# the same until the first rotation
cp secrets/new secrets/previous

password=$(openssl rand -hex 32)
echo "redis://caddy:$password@redis:6379" >secrets/redis-url
cat >secrets/redis-users.acl <<END
user default on nopass resetkeys resetchannels -@all +ping
user caddy on >$password ~buzzbip:* &buzzbip:* +@connection +@read +@write +@scripting +@pubsub
END
# last, so that secrets/current exists only if the other files do
mv secrets/new secrets/current
