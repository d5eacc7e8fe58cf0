package buzzbip

import (
	"net/http"
	"net/url"
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

	// header is the sender's, unless the next handlers can change that: then fields
	// and response are, and the header of the response before them
	header           http.Header
	fields, response headerFields
}

// headerFields are a header, without the map and slices that most events never need.
type headerFields []headerField

type headerField struct{ name, value string }

var arrivals = sync.Pool{New: func() any { return new(arrival) }}

func newArrival(r *http.Request, state *requestState) *arrival {
	a := arrivals.Get().(*arrival)
	a.body, a.orderKey, a.secret, a.at = state.body, state.orderKey, state.key.label, state.arrived
	a.host, a.proto, a.tls = r.Host, r.Proto, r.TLS != nil
	a.url, a.remote = arrivedFrom(r)
	a.target = targetOf(r.Host, a.url)
	a.header = r.Header
	return a
}

// detach is called if the next handlers get the headers of the request and of the
// response themselves.
func (a *arrival) detach(response http.Header) {
	a.fields = a.fields.add(a.header)
	a.header = nil
	a.response = a.response.add(response)
}

// recycle is called when nothing can use a any more.
func (a *arrival) recycle() {
	clear(a.fields)
	clear(a.response)
	*a = arrival{fields: a.fields[:0], response: a.response[:0]}
	arrivals.Put(a)
}

// repeated returns the headers that a redelivery repeats.
func (a *arrival) repeated() http.Header {
	header := a.header.Clone()
	if header == nil {
		header = a.fields.header()
	}
	for _, name := range notKept {
		delete(header, name)
	}
	return header
}

func (fields headerFields) add(header http.Header) headerFields {
	for name, values := range header {
		for _, value := range values {
			fields = append(fields, headerField{name, value})
		}
	}
	return fields
}

func (fields headerFields) header() http.Header {
	header := make(http.Header)
	for _, f := range fields {
		header[f.name] = append(header[f.name], f.value)
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
