package buzzbip_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	buzzbip "github.com/buzzbip/caddy-webhook"
)

// A test of a backend plays BuzzBip: it signs the exact bytes that it sends.
func ExampleSign() {
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println(len(r.Header.Get(buzzbip.SignatureHeader)), "hex digits")
	}))
	defer endpoint.Close()

	body := `{"id":"evt_7f3a9b2c","type":"message.received","createdAt":"2026-06-01T14:32:00Z","data":{}}`
	r, err := http.NewRequest(http.MethodPost, endpoint.URL, strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	r.Header.Set(buzzbip.SignatureHeader, buzzbip.Sign([]byte("the signing secret"), []byte(body)))
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		panic(err)
	}
	res.Body.Close()
	fmt.Println(res.Status)
	// Output:
	// 64 hex digits
	// 200 OK
}
