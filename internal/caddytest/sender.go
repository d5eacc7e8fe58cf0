package caddytest

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"
)

// Answer is what a sender gets; status 0 means that it got none.
type Answer struct {
	Status     int
	Result     string
	RetryAfter string
	Body       string
}

// Post sends a signed event, as BuzzBip does, with its limit of 10 seconds.
func Post(ctx context.Context, url, body string) Answer { return PostWith(ctx, url, Secret, body) }

// PostWith is [Post] under another secret.
func PostWith(ctx context.Context, url, secret, body string) Answer {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return Answer{}
	}
	r.Header.Set("X-BuzzBip-Signature", SignWith(secret, body))
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return Answer{}
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return Answer{}
	}
	return Answer{res.StatusCode, res.Header.Get("X-BuzzBip-Result"), res.Header.Get("Retry-After"), string(text)}
}
