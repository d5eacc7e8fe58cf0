package storetest

import "github.com/buzzbip/caddy-webhook/dedupe"

// id is the model of an ID, which every store must agree with.
type id struct {
	delivered bool
	digest    dedupe.Digest
	owner     int // number of the current claim, or 0
}

func (i id) claim(r dedupe.Request) any {
	switch {
	case i.delivered && i.digest == r.Digest:
		return dedupe.Delivered
	case i.delivered && !r.Redeliver:
		return dedupe.Conflicting
	case i.owner != 0:
		return dedupe.ErrInFlight
	}
	return dedupe.Claimed
}

// settle returns the ID after the claim of a number was settled.
func (i id) settle(number int, c dedupe.Claim, delivered bool) id {
	late := i.owner != number
	if !late {
		i.owner = 0
	}
	deliveredSince := i.delivered && (c.Replaces == 0 || c.Replaces != i.digest)
	if delivered && !(late && deliveredSince) {
		i.delivered, i.digest = true, c.Digest
	}
	return i
}
