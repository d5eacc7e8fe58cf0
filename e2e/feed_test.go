package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// firstEvents returns the first server-sent events of a stream.
func firstEvents(t *testing.T, url string, count int) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var text strings.Builder
	lines := bufio.NewReader(res.Body)
	for range count {
		for line := ""; line != "\n"; {
			if line, err = lines.ReadString('\n'); err != nil {
				t.Fatalf("%v after %s", err, text.String())
			}
			text.WriteString(line)
		}
	}
	return text.String()
}

func TestAdminAPIStreamsTheLatestRequests(t *testing.T) {
	tr := takeTour(t, "")
	name, data, _ := strings.Cut(firstEvents(t, "http://"+tr.Admin+"/buzzbip_webhook/requests", 1), "\ndata: ")
	var latest struct {
		First    bool
		Requests []struct {
			Time                             time.Time
			ID, Type, Result, Reason, Secret string
			Duration                         float64
		}
	}
	if err := json.Unmarshal([]byte(data), &latest); err != nil || name != "event: requests" || !latest.First {
		t.Fatalf("%q, error %v: %s", name, err, data)
	}
	results := make(map[string]float64)
	for _, d := range latest.Requests {
		typ := d.Type
		switch {
		case d.Type == "":
			typ = "unverified"
		case strings.HasPrefix(d.Type, "shop."):
			typ = "other"
		}
		results[fmt.Sprintf("event_type=%q,result=%q", typ, d.Result)]++
		if (d.ID == "") != (d.Type == "") || d.ID != "" && d.Secret == "" || d.Duration <= 0 || time.Since(d.Time) > time.Hour {
			t.Errorf("a delivery is %+v", d)
		}
		if _, known := tourRejections[d.Reason]; !known && d.Reason != "" {
			t.Errorf("a reason is %q", d.Reason)
		}
	}
	if !maps.Equal(results, tourRequests) {
		t.Errorf("the stream has %v, want %v", results, tourRequests)
	}
}

// A sender of many requests of one kind, such as forgeries or one captured event,
// cannot push the others out of the feed.
func TestFloodOfOneKindLeavesTheOthersInTheFeed(t *testing.T) {
	tr := takeTour(t, "")
	latest := func() map[string]int {
		t.Helper()
		_, data, _ := strings.Cut(firstEvents(t, "http://"+tr.Admin+"/buzzbip_webhook/requests", 1), "\ndata: ")
		var feed struct {
			Requests []struct {
				Time             time.Time
				ID, Kind, Result string
			}
		}
		if err := json.Unmarshal([]byte(data), &feed); err != nil {
			t.Fatalf("%v: %s", err, data)
		}
		kinds := make(map[string]int)
		for i, d := range feed.Requests {
			kinds[d.Kind]++
			if d.Kind != d.Result && (d.Kind != "unverified" || d.Result != "rejected" || d.ID != "") {
				t.Errorf("a delivery is %+v", d)
			}
			if i > 0 && d.Time.Sub(feed.Requests[i-1].Time) < -time.Minute {
				t.Errorf("the feed is not in order")
			}
		}
		return kinds
	}
	want := latest()
	if want["delivered"] == 0 || want["failed"] == 0 || want["conflict"] == 0 || want["rejected"] == 0 || want["unverified"] == 0 {
		t.Fatalf("there is nothing to push out: %v", want)
	}
	captured := caddytest.NewEvent()
	tr.sends("/main", caddytest.Secret, captured, http.StatusOK)
	want["delivered"]++
	for range 300 {
		tr.sends("/main", "forged", caddytest.NewEvent(), http.StatusUnauthorized)
		tr.sends("/main", caddytest.Secret, captured, http.StatusOK)
	}
	want["unverified"], want["duplicate"] = 100, 100
	if got := latest(); !maps.Equal(got, want) {
		t.Errorf("after the flood the feed has %v, want %v", got, want)
	}
}
