package cli

import (
	"crypto/rand"
	"encoding/json"
	"strings"
	"time"
)

// newEventID returns a random ID. Its prefix tells it from those of BuzzBip.
func newEventID(prefix string) string { return prefix + strings.ToLower(rand.Text()[:12]) }

// newEvent returns the body of an event as BuzzBip documents it. It fails if data
// is not JSON.
func newEvent(id, eventType string, created time.Time, data json.RawMessage) ([]byte, error) {
	return json.Marshal(struct {
		ID        string          `json:"id"`
		Type      string          `json:"type"`
		CreatedAt string          `json:"createdAt"`
		Data      json.RawMessage `json:"data"`
	}{id, eventType, created.UTC().Format(time.RFC3339), data})
}
