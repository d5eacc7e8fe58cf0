#!/bin/sh
# Writes the files that kustomization.yaml makes Secrets of. The signing secret is
# read from the terminal or from standard input.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets

echo "The signing secret, then Enter and Ctrl-D:" >&2
cat >secrets/current
[ -s secrets/current ] || { echo "there is none" >&2; exit 1; }
# until the first rotation
cp secrets/current secrets/previous

password=$(openssl rand -hex 32)
echo "redis://caddy:$password@redis:6379" >secrets/redis-url
cat >secrets/redis-users.acl <<END
user default on nopass resetkeys resetchannels -@all +ping
user caddy on >$password ~buzzbip:* &buzzbip:* +@connection +@read +@write +@scripting +@pubsub
END
