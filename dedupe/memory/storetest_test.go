package memory

import (
	"testing"

	"github.com/buzzbip/caddy-webhook/dedupe"
	"github.com/buzzbip/caddy-webhook/dedupe/storetest"
)

func TestStore(t *testing.T) {
	storetest.Test(t, storetest.Config{Open: func(testing.TB) dedupe.Store { return mustLoad(t, `{}`) }})
}
