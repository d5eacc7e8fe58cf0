// Package caddytest has what the tests of several packages need: Caddy with the
// plugin as a process of its own, and its admin API; a backend and a sender;
// events and their signatures; waiting, and addresses that are free.
package caddytest
