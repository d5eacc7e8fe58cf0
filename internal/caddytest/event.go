package caddytest

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
)

// Secret is the signing secret of the tests.
const Secret = "test-secret-of-32-bytes-exactly!"

// Event is an event to send. What is not set gets a default.
type Event struct {
	ID      string    // default: one that no other test uses, see [NewID]
	Type    string    // default: message.received
	Created time.Time // default: now
	Data    string    // as JSON; default: a message in a conversation
}

// DocumentedTime is when the event in BuzzBip's documentation was created.
var DocumentedTime = time.Date(2026, time.June, 1, 14, 32, 0, 0, time.UTC)

// NewEvent returns the body of an event that no other test sends.
func NewEvent() string { return Event{}.Body() }

// Body returns the event as BuzzBip documents it. Without an ID, each call
// returns another event.
func (e Event) Body() string {
	if e.Created.IsZero() {
		e.Created = time.Now().Truncate(time.Second)
	}
	id := e.ID
	if id == "" {
		id = NewID()
	}
	return fmt.Sprintf(`{"id":%q,"type":%q,"createdAt":%q,"data":%s}`,
		id, cmp.Or(e.Type, "message.received"), e.Created.UTC().Format(time.RFC3339Nano),
		cmp.Or(e.Data, `{"text":"hello","conversation":{"id":"cnv_1"},"tags":["a","b"]}`))
}

var idCount atomic.Int64

// NewID returns the ID of an event that no other test uses: IDs are remembered
// for as long as a process lives, or longer.
func NewID() string { return fmt.Sprintf("evt_%d_%d", os.Getpid(), idCount.Add(1)) }

// Sign returns the signature of a body under [Secret].
func Sign(body string) string { return SignWith(Secret, body) }

// SignWith returns the signature of a body under another secret.
func SignWith(secret, body string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	io.WriteString(mac, body)
	return hex.EncodeToString(mac.Sum(nil))
}
