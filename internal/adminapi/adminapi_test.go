package adminapi

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

var at = time.Date(2026, time.June, 1, 14, 32, 0, 0, time.UTC)

func TestFailureIsDescribedByItsStatusOrCause(t *testing.T) {
	for want, f := range map[string]Failure{
		"with 500 at 2026-06-01T14:32:00Z":      {Time: at, Cause: webhook.CauseStatus5xx, Status: 500},
		"(unreachable) at 2026-06-01T14:32:00Z": {Time: at, Cause: webhook.CauseUnreachable},
	} {
		if got := f.String(); got != want {
			t.Errorf("%+v is %q, want %q", f, got, want)
		}
	}
}

// Clients tell what is false, zero or null from what is unknown, which is absent.
func TestJSONLeavesOutWhatIsUnknown(t *testing.T) {
	forgotten := false
	for want, value := range map[string]any{
		`{"scope":"a","store":"memory","state":"unseen"}`:                                     EventState{Scope: "a", Store: "memory", State: StateUnseen},
		`{"scope":"a","store":"redis"}`:                                                       EventState{Scope: "a", Store: "redis"},
		`{"scope":"a","store":"memory","forgotten":false}`:                                    EventState{Scope: "a", Store: "memory", Forgotten: &forgotten},
		`{"scope":"a","store":"memory","state":"delivered","expires":"2026-06-01T14:32:00Z"}`: EventState{Scope: "a", Store: "memory", State: StateDelivered, Expires: &at},
		`{"scope":"a","store":"memory","state":"not_delivered","last_failure":{"time":"2026-06-01T14:32:00Z","cause":"timeout","duration":1.5}}`: EventState{
			Scope: "a", Store: "memory", State: StateNotDelivered, LastFailure: &Failure{Time: at, Cause: webhook.CauseTimeout, Duration: 1.5}},
		`{"secret":"1","scope":"a","last_match":null}`:             Secret{Secret: "1", Scope: "a"},
		`{"scope":"","store":"redis","delivered":0,"in_flight":1}`: Scope{Store: "redis", InFlight: 1},
		`{"store":"redis","up":false,"evicted":0}`:                 Store{Store: "redis"},
		`{"id":"evt_1","scopes":[]}`:                               Event{ID: "evt_1", Scopes: []EventState{}},
	} {
		got, err := json.Marshal(value)
		if err != nil || string(got) != want {
			t.Errorf("%+v is %s, %v, want %s", value, got, err, want)
		}
	}
}
