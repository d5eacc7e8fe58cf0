package buzzbip

import (
	"net/http"
	"slices"
	"sync"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// deliveryHeader is added to requests to the backend. Its values tell a
// buzzbip_webhook of the same process, behind this one, that a request is part of
// a delivery of this process, and not a duplicate. To everyone else it means
// nothing, and only while the delivery lasts.
const deliveryHeader = "X-Buzzbip-Delivery" // as net/http spells it in a header map

// chains are the deliveries of this process that are with the next handlers. If
// a site proxies to another site of the same Caddy, a delivery may come back to
// another buzzbip_webhook. There it must wait neither for a claim, if the scope is
// the same, nor for memory: it would wait for the end of deliveries that wait for it.
var chains chainSet

type chainSet struct {
	mu     sync.Mutex
	events map[string]eventInStore // by the token of the delivery
}

// eventInStore is what handlers claim: those with the same one wait for each
// other.
type eventInStore struct {
	store string // kind and backing
	scope string
	key   dedupe.Key
}

func (c *chainSet) add(token string, event eventInStore) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.events == nil {
		c.events = make(map[string]eventInStore)
	}
	c.events[token] = event
}

func (c *chainSet) remove(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.events, token)
}

// lead reports whether r is part of a delivery of the event.
func (c *chainSet) lead(r *http.Request, event eventInStore) bool {
	return c.any(r, func(delivered eventInStore) bool { return delivered == event })
}

// contain reports whether r is part of a delivery of any event.
func (c *chainSet) contain(r *http.Request) bool {
	return c.any(r, func(eventInStore) bool { return true })
}

func (c *chainSet) any(r *http.Request, matches func(eventInStore) bool) bool {
	tokens := r.Header[deliveryHeader]
	if len(tokens) == 0 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(tokens, func(token string) bool {
		event, ok := c.events[token]
		return ok && matches(event)
	})
}
