package buzzbip

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/tidwall/gjson"
	"go.uber.org/zap"

	"github.com/buzzbip/caddy-webhook/inbox"
)

const (
	// maxOrderKey is how long an order key may be, in bytes. A hash stands for a
	// longer one.
	maxOrderKey = 256
	// laneShare is the part of max_in_flight that events may take that wait for one
	// lane: they must not keep others from waiting.
	laneShare = 32
	// unorderedEvents is how many events without an order key are taken for a mistake
	// in the paths, if there was none with one.
	unorderedEvents = 100
)

// lanes keep events in order that no inbox does. They survive reloads, since deliveries
// of an earlier configuration go on.
var lanes = inbox.NewLanes()

// orderBy is the option order_by.
type orderBy struct {
	paths     []string
	ordered   atomic.Bool // some event had a key
	unordered atomic.Int64
}

var escaped = regexp.MustCompile(`\\.`)

// newOrderBy checks the paths. It returns nil if there are none.
func newOrderBy(paths []string) (*orderBy, error) {
	for i, path := range paths {
		plain := escaped.ReplaceAllLiteralString(path, "x")
		switch members := strings.Split(plain, "."); {
		case path == "":
			return nil, fmt.Errorf("order_by has an empty path")
		case strings.ContainsFunc(path, unicode.IsControl):
			return nil, fmt.Errorf("order_by: the path %q has a control character", path)
		case strings.Contains(path, ",") && !strings.Contains(path, "("):
			return nil, fmt.Errorf("order_by: separate paths with spaces, not with commas as in %q", path)
		case strings.HasPrefix(path, "data."):
			return nil, fmt.Errorf("order_by: paths begin inside of data, so write %q instead of %q", strings.TrimPrefix(path, "data."), path)
		case strings.ContainsAny(plain[:1], "{[!@"), slices.Contains(members, "#"):
			return nil, fmt.Errorf("order_by: %q is no path to a single value, such as conversation.id", path)
		case slices.Contains(members, ""):
			return nil, fmt.Errorf("order_by: the path %q has a dot without a name: write \\. for a dot in a name", path)
		case slices.Contains(paths[:i], path):
			return nil, fmt.Errorf("order_by has the path %q twice", path)
		}
	}
	if len(paths) == 0 {
		return nil, nil
	}
	return &orderBy{paths: paths}, nil
}

// key returns what the data of an event has at the first of the paths where there is a
// string or a number, or nothing.
func (o *orderBy) key(data []byte) string {
	for _, path := range o.paths {
		value := gjson.GetBytes(data, path)
		key := ""
		switch value.Type {
		case gjson.String:
			key = value.Str
		case gjson.Number:
			key = value.Raw
		}
		if len(key) > maxOrderKey {
			sum := sha256.Sum256([]byte(key))
			key = "sha256:" + hex.EncodeToString(sum[:])
		}
		if key != "" {
			return key
		}
	}
	return ""
}

// enter gives the event its place among those with the same order key, or nil if it has
// none.
func (h *Handler) enter(state *requestState, r *http.Request) *inbox.Turn {
	if h.orderBy == nil {
		return nil
	}
	state.orderKey = h.orderBy.key(state.body.data)
	if state.orderKey == "" {
		h.reportUnordered()
		return nil
	}
	if !h.orderBy.ordered.Load() {
		h.orderBy.ordered.Store(true)
	}
	arrivedAt, _ := arrivedFrom(r)
	target, scope := targetOf(r.Host, arrivedAt), state.key.scope
	if h.inbox != nil {
		return h.inbox.dispatcher.Enter(target, scope, state.orderKey)
	}
	// With another store it is another delivery, perhaps a part of this one.
	return lanes.Enter(inbox.LaneOf(h.store.backing()+" "+target, scope, state.orderKey))
}

// reportUnordered logs once that no event has an order key.
func (h *Handler) reportUnordered() {
	if !h.orderBy.ordered.Load() && h.orderBy.unordered.Add(1) == unorderedEvents {
		h.logger.Warn("no event so far has one of the members that order_by names, so none is kept in order: check their spelling",
			zap.Strings("order_by", h.orderBy.paths), zap.Int("events", unorderedEvents))
	}
}

// awaitTurn waits for the events with the same order key that arrived earlier.
func (a *attempt) awaitTurn(r *http.Request) error {
	if a.turn.Try(r.Context()) {
		return nil
	}
	cost := a.state.cost()
	if !underWay.hold(cost, a.maxInFlight) {
		return errOverloaded
	}
	defer underWay.unhold(cost)
	err := a.turn.Await(r.Context(), a.waitLeft(a.state), cost, a.maxInFlight/laneShare)
	a.state.now = time.Now()
	a.start = a.state.now
	return err
}
