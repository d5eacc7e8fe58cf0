package e2e

import "testing"

func TestReportSumsUpWhatWouldBe(t *testing.T) {
	url, c := endpoint(t, "enforce off")
	report := func(args ...string) ran {
		return run(t, "", append([]string{"report", "--address", c.Admin}, args...)...)
	}
	report().says(t, 1, "no request has arrived since")
	for range 3 {
		run(t, "", "send", url, "--id", "evt_1", "--created-at", "2026-06-01T14:32:00Z").says(t, 0, "200 OK")
	}
	runWith(t, []string{"BUZZBIP_SECRET=another"}, "", "send", url).says(t, 0, "200 OK")
	report().says(t, 0, "4 requests since 20", ", 1 would be rejected, 2 duplicates would have been answered",
		"1 would have been delivered", "1   signature_mismatch: forged, or the secret is not that of the webhook")
	report("--json").says(t, 0, `"requests":4`, `"duplicate":2`, `"signature_mismatch":1`)

	_, enforcing := endpoint(t, "")
	run(t, "", "report", "--address", enforcing.Admin).says(t, 1, "no buzzbip_webhook has enforce off")
}
