package buzzbip

import (
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/buzzbip/caddy-webhook/dedupe"
)

// deliveryHeader is added to requests to the backend. Its values tell a
// buzzbip_webhook of the same process, behind this one, that a request is part of
// a delivery of this process, and not a duplicate. To everyone else it means
// nothing, and only while the delivery lasts.
const deliveryHeader = "X-Buzzbip-Delivery" // as net/http spells it in a header map

// deliveries are those of this process that are with the next handlers. They survive
// reloads.
//
// If a site proxies to another site of the same Caddy, a delivery may come back to
// another buzzbip_webhook. There it must wait neither for a claim, if the scope is
// the same, nor for memory: it would wait for the end of deliveries that wait for it.
var deliveries = new(deliverySet)

// deliverySet calls keepLate of each keeper whose deadline passes while its delivery is
// in the set. They share one timer: most are gone long before, and timers of their own
// were half of what an inbox costs while the backend accepts events. The zero value is
// empty and ready for use.
type deliverySet struct {
	mu      sync.Mutex
	byToken map[string]*attempt
	timer   *time.Timer
	rings   time.Time // when timer does, or zero
	pause   time.Time // until then, timer must not ring again
}

// eventInStore is what handlers claim: those with the same one wait for each
// other.
type eventInStore struct {
	store string // kind and backing
	scope string
	key   dedupe.Key
}

func (s *deliverySet) add(token string, a *attempt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byToken == nil {
		s.byToken = make(map[string]*attempt)
	}
	s.byToken[token] = a
	if a.keeper != nil {
		s.ringAt(a.keeper.deadline)
	}
}

func (s *deliverySet) remove(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byToken, token)
}

func (s *deliverySet) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.byToken)
}

// lead reports whether r is part of a delivery of the event.
func (s *deliverySet) lead(r *http.Request, event eventInStore) bool {
	return s.any(r, func(a *attempt) bool { return a.target == event })
}

// contain reports whether r is part of a delivery of any event.
func (s *deliverySet) contain(r *http.Request) bool {
	return s.any(r, func(*attempt) bool { return true })
}

func (s *deliverySet) any(r *http.Request, matches func(*attempt) bool) bool {
	tokens := r.Header[deliveryHeader]
	if len(tokens) == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(tokens, func(token string) bool {
		a := s.byToken[token]
		return a != nil && matches(a)
	})
}

// ringAt makes the timer ring at a time or earlier, but not during the pause. The caller
// locks.
func (s *deliverySet) ringAt(at time.Time) {
	if at.Before(s.pause) {
		at = s.pause
	}
	switch {
	case !s.rings.IsZero() && !s.rings.After(at):
		return
	case s.timer == nil:
		s.timer = time.AfterFunc(time.Until(at), s.ring)
	default:
		s.timer.Reset(time.Until(at))
	}
	s.rings = at
}

// ring looks for late deliveries. To look at one takes some 0.1 µs; the pause after it
// keeps this from taking more than a hundredth of the time.
func (s *deliverySet) ring() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rings = time.Time{}
	now := time.Now()
	s.pause = now.Add(time.Duration(len(s.byToken)) * 10 * time.Microsecond)
	for _, a := range s.byToken {
		k := a.keeper
		switch {
		case k == nil || k.toldLate:
		case !k.deadline.After(now):
			k.toldLate = true
			go k.keepLate()
		default:
			s.ringAt(k.deadline)
		}
	}
}
