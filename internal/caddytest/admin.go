package caddytest

import (
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// Reload loads the Caddyfile again, whether it has changed or not.
func (c *Caddy) Reload() {
	c.t.Helper()
	if err := c.TryReload(); err != nil {
		c.t.Fatal(err)
	}
}

// TryReload is [Caddy.Reload] for a configuration that may not load.
func (c *Caddy) TryReload() error {
	out, err := exec.Command(Binary, "reload", "--force", "--config", c.Config, "--address", c.Admin).CombinedOutput()
	c.awaitAdmin()
	if err != nil {
		return fmt.Errorf("reloading: %w: %s", err, out)
	}
	return nil
}

// Load posts a Caddyfile to the admin endpoint, and returns what that answers.
func (c *Caddy) Load(caddyfile string) (status int, text string) {
	c.t.Helper()
	status, text = c.request(http.MethodPost, "/load", "text/caddyfile", caddyfile)
	c.awaitAdmin()
	return status, text
}

// awaitAdmin waits, after a configuration was posted, until one admin endpoint is
// left. Caddy starts one for each configuration that it tries and ends the
// earlier ones some time later; a request to one that ends may get no answer.
func (c *Caddy) awaitAdmin() {
	c.t.Helper()
	WaitFor(c.t, "the earlier admin endpoints to end", func() bool {
		log := c.Log.String()
		return strings.Count(log, `"admin endpoint started"`) == strings.Count(log, `"stopped previous server"`)+1
	})
	http.DefaultClient.CloseIdleConnections()
}

// Metrics returns what Prometheus would get.
func (c *Caddy) Metrics() string {
	c.t.Helper()
	res, err := http.Get("http://" + c.Admin + "/metrics")
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		c.t.Fatalf("the metrics: %s: %v", res.Status, err)
	}
	return string(text)
}

// Metric returns the value of one of our series, which must be there.
func (c *Caddy) Metric(series string) float64 {
	c.t.Helper()
	text := c.Metrics()
	_, rest, found := strings.Cut(text, "\ncaddy_buzzbip_webhook_"+series+" ")
	if !found {
		c.t.Fatalf("there is no %s in the metrics", series)
	}
	number, _, _ := strings.Cut(rest, "\n")
	value, err := strconv.ParseFloat(number, 64)
	if err != nil {
		c.t.Fatal(err)
	}
	return value
}

// Series returns the values of one of our metrics by their labels.
func (c *Caddy) Series(name string) map[string]float64 {
	c.t.Helper()
	found := make(map[string]float64)
	for _, line := range regexp.MustCompile(`(?m)^caddy_buzzbip_webhook_`+name+`(?:\{(.*)\})? (\S+)$`).FindAllStringSubmatch(c.Metrics(), -1) {
		var value float64
		if _, err := fmt.Sscan(line[2], &value); err != nil {
			c.t.Fatal(err)
		}
		found[line[1]] = value
	}
	return found
}

// Ask returns what the admin endpoint answers.
func (c *Caddy) Ask(method, path string) (status int, text string) {
	c.t.Helper()
	return c.request(method, path, "", "")
}

// Change posts JSON, or nothing, to a path of the admin endpoint, which must answer 200.
func (c *Caddy) Change(path, body string) {
	c.t.Helper()
	if status, text := c.request(http.MethodPost, path, "application/json", body); status != http.StatusOK {
		c.t.Fatalf("%s %s: %d %s", path, body, status, text)
	}
}

func (c *Caddy) request(method, path, contentType, body string) (status int, text string) {
	c.t.Helper()
	r, err := http.NewRequest(method, "http://"+c.Admin+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return res.StatusCode, string(answer)
}
