package buzzbip

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// twoInboxes is a site with two handlers, whose inboxes have these options.
func twoInboxes(b *backend, options, others string) string {
	return "handle /webhooks/buzzbip {\n" + proxied(b, options) + "\n}\nhandle /other {\n" + proxied(b, others+"\nscope other") + "\n}"
}

func TestHandlersWithOneInboxMustGiveItTheSameOptions(t *testing.T) {
	b := newBackend(t, nil)
	file := filepath.Join(t.TempDir(), "inbox.db")
	inbox := func(options string) string { return fmt.Sprintf("inbox sqlite %s {\n%s\n}", file, options) }
	s := start(t, "respond gone 404")
	for _, test := range []struct{ options, others, message string }{
		{"accept always", "", `but accept is "always" in one and "on_failure" in the other`},
		{"retry 5s", "retry 5s 10m", `but retry is "5s 15m0s" in one and "5s 10m0s" in the other`},
		{"dead_after 1h", "", `but dead_after is "1h0m0s" in one and "72h0m0s" in the other`},
		{"dead_on 422", "dead_on 422 4xx", `but dead_on is "[422]" in one and "[4 422]" in the other`},
		{"", "concurrency 2", `but concurrency is "8" in one and "2" in the other`},
		{"rate 5", "", `but rate is "5" in one and "0" in the other`},
		{"max_size 5MiB", "max_size 5MB", `but max_size is "5242880" in one and "5000000" in the other`},
		{"", "keep_delivered 1h", `but keep_delivered is "0s" in one and "1h0m0s" in the other`},
		{"", "keep_dead 1h", `but keep_dead is "720h0m0s" in one and "1h0m0s" in the other`},
	} {
		err := s.tryReload(twoInboxes(b, inbox(test.options), inbox(test.others)))
		if err == nil {
			t.Errorf("%q and %q were accepted", test.options, test.others)
			continue
		}
		for _, want := range []string{"two handlers have the inbox sqlite " + file, test.message, "give both the same options, or one of them another path"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q and %q: the error is %q, want %q in it", test.options, test.others, err, want)
			}
		}
	}
	s.reload(twoInboxes(b, inbox("dead_on 4xx 422\nrate 5"), inbox("rate 5\nconcurrency 8\ndead_on 422 4xx")))
	s.reload(twoInboxes(b, inbox("rate 5"), strings.Replace(inbox(""), "inbox.db", "other.db", 1)))
	// a reload may change the options of both
	s.reload(twoInboxes(b, inbox("rate 6"), inbox("rate 6")))
}
