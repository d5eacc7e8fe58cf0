#!/bin/sh
# Posts a message to the incoming webhook of a chat, such as Slack, Mattermost or
# Rocket.Chat. Its URL is in the environment variable CHAT_WEBHOOK_URL of Caddy.
#
# usage: notify.sh <event of Caddy> <how often> <what> [<detail>]
set -eu

case $1 in
buzzbip_webhook.dead) text="$2 event(s) are dead. The last one is $3: ${4:-}. See caddy buzzbip inbox list --state dead" ;;
buzzbip_webhook.conflict) text="$2 event(s) had the ID of a delivered event, but another body. The last one is $3, at ${4:-}" ;;
buzzbip_webhook.store_down) text="The store $3 is down: ${4:-}" ;;
buzzbip_webhook.store_up) text="The store $3 is back" ;;
buzzbip_webhook.inbox_paused) text="The inbox $3 is paused. See caddy buzzbip inbox resume" ;;
buzzbip_webhook.secret_rotated) text="The secret $3 has changed" ;;
*) text="$*" ;;
esac

jq -cn --arg text "$(hostname): $text" '{text: $text}' |
	curl --silent --show-error --fail --max-time 10 --header 'Content-Type: application/json' --data-binary @- "$CHAT_WEBHOOK_URL"
