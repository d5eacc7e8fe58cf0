#!/bin/sh
# Writes the files that kustomization.yaml makes Secrets of. The signing secret is
# read from the terminal or from standard input.
set -eu
cd "$(dirname "$0")"
umask 077
if [ -e secrets/current ]; then
	echo "secrets/current is there already: see \"A rotation of the secret\" in docs/DEPLOYMENT.md" >&2
	exit 1
fi
mkdir -p secrets
trap 'rm -f secrets/new' EXIT

echo "The signing secret, then Enter and Ctrl-D:" >&2
cat >secrets/new
grep -q '[^[:space:]]' secrets/new || { echo "there is none" >&2; exit 1; }
# until the first rotation
cp secrets/new secrets/previous

password=$(openssl rand -hex 32)
echo "redis://caddy:$password@redis:6379" >secrets/redis-url
cat >secrets/redis-users.acl <<END
user default on nopass resetkeys resetchannels -@all +ping
user caddy on >$password ~buzzbip:* &buzzbip:* +@connection +@read +@write +@scripting +@pubsub
END
# last, when nothing is missing any more
mv secrets/new secrets/current
