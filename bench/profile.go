package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// writeProfiles sends the events of a group once more, and writes a CPU profile
// of each scenario of Caddy into the directory that -profile names.
func (e *environment) writeProfiles(ctx context.Context, group group, gateways map[string]*gateway) error {
	if e.profiles == "" {
		return nil
	}
	if err := os.MkdirAll(e.profiles, 0o750); err != nil {
		return err
	}
	seconds := e.profileSeconds
	events := newEvents(e.nextBatch(), group.size, 2*seconds*eventsPerSecond(group.size))
	for _, s := range group.scenarios {
		g := gateways[s.gateway]
		if g.admin == "" {
			continue
		}
		name := cellName(s.name, group.protocol, group.size)
		progress("profile: %s", name)
		file := filepath.Join(e.profiles, strings.NewReplacer("/", "", " ", "-").Replace(name)+".pprof")
		written := make(chan error, 1)
		go func() { written <- g.writeProfile(file, seconds) }()
		l := newLoad(g.address[group.protocol], group.protocol, e.connections, events, s.kind, s.want)
		err := l.prepare()
		if err == nil {
			_, err = l.run(ctx, time.Duration(seconds+1)*time.Second, 0)
		}
		l.close()
		if err == nil {
			err = <-written
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// writeProfile writes a CPU profile of some seconds to a file.
func (g *gateway) writeProfile(file string, seconds int) error {
	client := &http.Client{Timeout: time.Duration(seconds)*time.Second + requestTimeout}
	defer client.CloseIdleConnections()
	res, err := client.Get(fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", g.admin, seconds))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("profile: %s", res.Status)
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, res.Body)
	if closed := out.Close(); err == nil {
		err = closed
	}
	return err
}
