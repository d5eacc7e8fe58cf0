package main

import (
	"bytes"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

func TestEventsAreValidAndOfTheirSize(t *testing.T) {
	for _, size := range []int{512, 513, 700, 1 << 10, 4 << 10, 64 << 10, 1 << 20} {
		body := newBody(size)
		if len(body) != size {
			t.Errorf("%d bytes, want %d", len(body), size)
		}
		if _, err := webhook.ParseEvent(body, webhook.Requirements{CreatedAt: true, Data: true}); err != nil {
			t.Errorf("%v in\n%s", err, body)
		}
	}
}

func TestEachEventHasAnIDAndASignatureOfItsOwn(t *testing.T) {
	ids := make(map[string]bool)
	for _, batch := range []uint32{1, 0xabcdef01} {
		e := newEvents(batch, 600, 40)
		if e.fresh() != 40 {
			t.Errorf("%d events are not sent twice, want 40", e.fresh())
		}
		body := bytes.Clone(e.body)
		for i, signature := range e.signatures {
			e.patchID(body, i)
			event, err := webhook.ParseEvent(body, webhook.Requirements{CreatedAt: true, Data: true})
			if err != nil {
				t.Fatal(err)
			}
			if ids[event.ID] {
				t.Errorf("there are two events %s", event.ID)
			}
			ids[event.ID] = true
			if want := caddytest.SignWith(secret, string(body)); string(signature[:]) != want {
				t.Errorf("the signature of %s is %s, want %s", event.ID, signature[:], want)
			}
		}
	}
}

func TestSizesAreWrittenAsTheyAreRead(t *testing.T) {
	for _, size := range []string{"512B", "1500B", "1KiB", "64KiB", "1MiB"} {
		n, err := parseSize(size)
		if err != nil || formatSize(n) != size {
			t.Errorf("%s is read as %d (%v), which is written %s", size, n, err, formatSize(n))
		}
	}
}
