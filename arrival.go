package buzzbip

import (
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// arrival is what the inbox keeps of a request, as it was before the next handlers,
// which may change it: another buzzbip_webhook uses the same state.
type arrival struct {
	body     *content
	orderKey string
	secret   string // the label of the one that matched
	at       time.Time

	target string // as the dispatcher names it
	host   string
	proto  string
	tls    bool
	url    *url.URL
	remote string

	// fields are the headers, without the maps and slices that most events never need.
	fields []headerField

	responseHeader http.Header // of copyResponseHeader; here to be used again
}

type headerField struct{ name, value string }

var arrivals = sync.Pool{New: func() any { return new(arrival) }}

func newArrival(r *http.Request, state *requestState) *arrival {
	a := arrivals.Get().(*arrival)
	a.body, a.orderKey, a.secret, a.at = state.body, state.orderKey, state.key.label, state.arrived
	a.host, a.proto, a.tls = r.Host, r.Proto, r.TLS != nil
	a.url, a.remote = arrivedFrom(r)
	a.target = targetOf(r.Host, a.url)
	for name, values := range r.Header {
		for _, value := range values {
			a.fields = append(a.fields, headerField{name, value})
		}
	}
	return a
}

// recycle is called when nothing can use a any more.
func (a *arrival) recycle() {
	clear(a.fields)
	clear(a.responseHeader)
	*a = arrival{fields: a.fields[:0], responseHeader: a.responseHeader}
	arrivals.Put(a)
}

// copyResponseHeader returns a copy of the header of the response, until recycle.
func (a *arrival) copyResponseHeader(header http.Header) http.Header {
	if a.responseHeader == nil {
		a.responseHeader = make(http.Header)
	}
	for name, values := range header {
		a.responseHeader[name] = slices.Clone(values)
	}
	return a.responseHeader
}

// header returns the headers that a redelivery repeats.
func (a *arrival) header() http.Header {
	header := make(http.Header)
	for _, f := range a.fields {
		if !slices.Contains(notKept, f.name) {
			header[f.name] = append(header[f.name], f.value)
		}
	}
	return header
}

// arrivedFrom returns the URL and the sender's address that r arrived with.
func arrivedFrom(r *http.Request) (*url.URL, string) {
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		return original.URL, original.RemoteAddr
	}
	return r.URL, r.RemoteAddr
}

// targetOf returns what an event that arrived at a URL is delivered to, as the
// dispatcher names it.
func targetOf(host string, u *url.URL) string { return host + u.Path }

// notKept are headers of a connection or of one delivery.
var notKept = []string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade", "Expect", deliveryHeader,
}
