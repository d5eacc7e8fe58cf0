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
// another buzzbip_webhook with the same scope. A claim there would wait for the
// end of the delivery, which waits for the claim.
var chains chainSet

type chainSet struct {
	mu    sync.Mutex
	sends map[eventInStore]*sending // a linked list: usually of one
}

// eventInStore is what handlers claim: those with the same one wait for each
// other.
type eventInStore struct {
	store string // kind and backing
	scope string
	key   dedupe.Key
}

func (c *chainSet) add(event eventInStore, s *sending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sends == nil {
		c.sends = make(map[eventInStore]*sending)
	}
	s.next = c.sends[event]
	c.sends[event] = s
}

func (c *chainSet) remove(event eventInStore, s *sending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := c.sends[event]
	for place := &first; *place != nil; place = &(*place).next {
		if *place == s {
			*place = s.next
			break
		}
	}
	if first == nil {
		delete(c.sends, event)
		return
	}
	c.sends[event] = first
}

// lead reports whether r is part of a delivery of the event.
func (c *chainSet) lead(r *http.Request, event eventInStore) bool {
	tokens := r.Header[deliveryHeader]
	if len(tokens) == 0 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := c.sends[event]; s != nil; s = s.next {
		if slices.Contains(tokens, s.token[0]) {
			return true
		}
	}
	return false
}
