package cli

import (
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestConnectionThatIsRefusedHasAHint(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	res, err := http.Get(url)
	if err == nil {
		res.Body.Close()
		t.Fatal("there is a connection")
	}
	if hint := connectionHint(err); !strings.HasPrefix(hint, "nothing listens there") {
		t.Errorf("the hint for %v is %q", err, hint)
	}
}
