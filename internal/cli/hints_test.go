package cli

import (
	"net/http"
	"strings"
	"testing"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

func TestConnectionThatIsRefusedHasAHint(t *testing.T) {
	res, err := http.Get("http://" + caddytest.FreeAddress(t))
	if err == nil {
		res.Body.Close()
		t.Fatal("there is a connection")
	}
	if hint := connectionHint(err); !strings.HasPrefix(hint, "nothing listens there") {
		t.Errorf("the hint for %v is %q", err, hint)
	}
}
