package buzzbip

import (
	"net"
	"net/http"
	"slices"
	"sync"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// chains are the deliveries of this process that are with the next handlers. If
// a site proxies to another site of the same Caddy, a delivery may come back to
// another buzzbip_webhook with the same scope. A claim there would wait for the
// end of the delivery, which waits for the claim.
var chains chainSet

type chainSet struct {
	mu    sync.Mutex
	sends map[chainID][]*sending
}

type chainID struct {
	scope string
	key   dedupe.Key
}

func (c *chainSet) add(event *dedupe.Request, s *sending) {
	id := chainID{event.Scope, event.Key}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sends == nil {
		c.sends = make(map[chainID][]*sending)
	}
	c.sends[id] = append(c.sends[id], s)
}

func (c *chainSet) remove(event *dedupe.Request, s *sending) {
	id := chainID{event.Scope, event.Key}
	c.mu.Lock()
	defer c.mu.Unlock()
	rest := slices.DeleteFunc(c.sends[id], func(other *sending) bool { return other == s })
	if len(rest) == 0 {
		delete(c.sends, id)
		return
	}
	c.sends[id] = rest
}

// lead reports whether r arrived over the connection that a delivery of the event
// was sent over, so that r is part of that delivery, and not a duplicate.
func (c *chainSet) lead(r *http.Request, event *dedupe.Request) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.sends[chainID{event.Scope, event.Key}], func(s *sending) bool {
		conn := s.conn.Load()
		here, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		// both ends: connections to different destinations may have the same
		// local address
		return conn != nil && ok && (*conn).LocalAddr().String() == r.RemoteAddr && (*conn).RemoteAddr().String() == here.String()
	})
}
