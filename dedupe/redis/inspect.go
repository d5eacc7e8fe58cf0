package redis

import (
	"context"
	"strings"
	"time"

	"go.uber.org/zap"
)

// inspect warns of settings that make Redis lose IDs. It ignores what the ACL
// does not permit to read.
func (c *connection) inspect(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, max(c.settings.timeout, time.Second))
	defer cancel()
	for address, node := range c.client().Nodes() {
		info, _ := node.Do(ctx, node.B().Info().Section("memory").Build()).ToString()
		limit, policy := infoField(info, "maxmemory"), infoField(info, "maxmemory_policy")
		if limit != "" && limit != "0" && policy != "noeviction" {
			logger().Warn("Redis evicts IDs when its memory is full, so duplicates may be delivered; set maxmemory-policy to noeviction",
				zap.String("address", address), zap.String("maxmemory", limit), zap.String("maxmemory_policy", policy))
		}
		config, err := node.Do(ctx, node.B().ConfigGet().Parameter("appendonly", "save").Build()).AsStrMap()
		if err == nil && config["appendonly"] == "no" && config["save"] == "" {
			logger().Warn("Redis has no persistence, so a restart forgets all IDs and duplicates may be delivered; set appendonly to yes",
				zap.String("address", address))
		}
	}
}

// infoField returns the value of a field in the reply to INFO, or "".
func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
