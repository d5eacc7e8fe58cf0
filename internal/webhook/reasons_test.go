package webhook

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestEachReasonHasItsStatus(t *testing.T) {
	var all []Reason
	for _, line := range strings.Split(reasonsInContract, "\n") {
		var reason Reason
		var status int
		if _, err := fmt.Sscan(line, &status, &reason); err != nil {
			t.Fatal(err)
		}
		if reason.Status() != status {
			t.Errorf("%s is answered with %d, want %d", reason, reason.Status(), status)
		}
		if slices.Contains(all, reason) {
			t.Errorf("%s is repeated", reason)
		}
		all = append(all, reason)
	}
	if !slices.Equal(all, Reasons) {
		t.Errorf("the reasons are %v, want %v", Reasons, all)
	}
	if status := Reason("another").Status(); status != 500 {
		t.Errorf("another reason is answered with %d", status)
	}
}

func TestFailuresAreTheResultsAfterWhichTheSenderRetries(t *testing.T) {
	var failures []Result
	for _, result := range Results {
		if result.Failure() {
			failures = append(failures, result)
		}
	}
	if want := []Result{ResultFailed, ResultInFlight, ResultRejected}; !slices.Equal(failures, want) {
		t.Errorf("the failures are %q, want %q", failures, want)
	}
}

const reasonsInContract = `405 method_not_allowed
401 signature_missing
401 signature_malformed
413 body_too_large
408 body_timeout
400 body_incomplete
401 signature_mismatch
400 envelope_invalid
403 event_stale
403 event_from_future
503 in_flight
503 store_unavailable
503 store_full
503 overloaded
502 unhandled`
