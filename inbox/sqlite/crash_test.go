package sqlite

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/buzzbip/caddy-webhook/inbox"
	"github.com/buzzbip/caddy-webhook/inbox/inboxtest"
	"github.com/buzzbip/caddy-webhook/internal/caddytest"
	"github.com/buzzbip/caddy-webhook/internal/database"
)

const crashVariable = "BUZZBIP_TEST_CRASH"

// TestCrashes kills processes that add and deliver events.
func TestCrashes(t *testing.T) {
	if path := os.Getenv(crashVariable); path != "" {
		useUntilKilled(t, path)
		return
	}
	path := newPath(t)
	said := make(map[int64][]string) // by number, what processes said about an event
	greatest := int64(0)
	for round := range 8 {
		kill(t, path, func(word string, number int64) {
			if word == "added" && number <= greatest {
				t.Errorf("number %d is used again", number)
			}
			said[number] = append(said[number], word)
		})
		s := start(t, path)
		consistent(t, s)
		due, err := s.Due(t.Context(), inboxtest.Target, time.Now().Add(time.Hour), 1<<30, func(int64) bool { return false })
		if err != nil {
			t.Fatal(err)
		}
		waiting := 0
		for number, words := range said {
			e, err := s.Load(t.Context(), number)
			gone := errors.Is(err, inbox.ErrNotFound)
			if err != nil && !gone {
				t.Fatal(err)
			}
			switch last := words[len(words)-1]; {
			case last == "added" && e.State != inbox.Waiting,
				last == "accepting" && e.State != inbox.Waiting && e.State != inbox.Accepted,
				last == "accepted" && e.State != inbox.Accepted,
				last == "remembering" && !gone && e.State != inbox.Accepted,
				last == "remembered" && !gone,
				last == "retried" && (e.State != inbox.Waiting || e.Attempts != 0),
				last == "discarding" && !gone && (e.State != inbox.Waiting || e.Attempts != 0),
				last == "discarded" && !gone:
				t.Errorf("round %d: event %d, of which a process said %s, is %q", round, number, words, e.State)
			}
			if !gone && (e.Body != nil) != (e.State == inbox.Waiting) {
				t.Errorf("round %d: event %d is %s, and has a body of %d bytes", round, number, e.State, len(e.Body))
			}
			if e.State == inbox.Waiting {
				waiting++
			}
			greatest = max(greatest, number)
		}
		// nothing waits for an owner that has died; an event may have been added
		// whose process could not say so any more
		if len(due) < waiting || len(due) > waiting+(crashWorkers+crashBatch)*(round+1) {
			t.Errorf("round %d: %d events are due, want %d", round, len(due), waiting)
		}
		stop(t, s)
	}
	t.Logf("%d events", len(said))
}

const (
	crashWorkers = 8
	crashBatch   = 3 * writeStep // events
)

// kill runs useUntilKilled in a process, and kills it.
func kill(t *testing.T, path string, said func(word string, number int64)) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashes$")
	cmd.Env = append(os.Environ(), crashVariable+"="+path)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	first, err := lines.ReadString('\n')
	if err != nil {
		t.Fatalf("the process said nothing: %v", err)
	}
	go func() {
		time.Sleep(time.Duration(rand.Int64N(int64(300 * time.Millisecond))))
		_ = cmd.Process.Kill()
	}()
	all, err := io.ReadAll(io.MultiReader(strings.NewReader(first), lines))
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	for line := range strings.Lines(string(all)) {
		var word string
		var number int64
		if _, err := fmt.Sscan(line, &word, &number); err != nil {
			t.Errorf("the process said %q", line)
			continue
		}
		said(word, number)
	}
}

// useUntilKilled adds and delivers events, and says so.
func useUntilKilled(t *testing.T, path string) {
	s := start(t, path)
	say := func(word string, number int64) { // in one write, which is whole or not at all
		if _, err := fmt.Fprintf(os.Stdout, "%s %d\n", word, number); err != nil {
			os.Exit(1)
		}
	}
	ctx := context.Background()
	var workers sync.WaitGroup
	workers.Go(func() {
		for batch := 0; ; batch++ {
			changeMany(s, fmt.Sprint("process ", os.Getpid(), " batch ", batch), say)
		}
	})
	for worker := range crashWorkers {
		workers.Go(func() {
			for i := 0; ; i++ {
				e := numbered(i, 1+rand.IntN(10_000))
				e.Scope = fmt.Sprint("process ", os.Getpid(), " worker ", worker)
				number, err := s.Add(ctx, e, noLimit)
				if err != nil {
					os.Exit(1)
				}
				say("added", number)
				if i%2 == 0 {
					continue
				}
				for _, step := range []struct {
					before, after string
					run           func() error
				}{
					{"accepting", "accepted", func() error { return s.Accepted(ctx, number, inbox.Attempt{Time: time.Now(), Status: 200}, false) }},
					{"remembering", "remembered", func() error { return s.Remembered(ctx, number) }},
				} {
					say(step.before, number)
					if err := step.run(); err != nil {
						os.Exit(1)
					}
					say(step.after, number)
				}
			}
		})
	}
	workers.Wait()
}

// changeMany adds many events in one transaction, and retries and discards them, which
// takes several.
func changeMany(s *Store, scope string, say func(word string, number int64)) {
	ctx := context.Background()
	var f inbox.Filter
	err := s.state.write(ctx, func(c *database.Conn) error {
		for i := range crashBatch {
			e := numbered(i, 100)
			e.Scope, e.Attempts = scope, 1
			number, err := insert(c, &e)
			if err != nil {
				return err
			}
			f.Number = append(f.Number, number)
		}
		return nil
	})
	steps := []struct {
		word string
		run  func() error
	}{
		{"added", func() error { return err }},
		{"retried", func() error { _, err := s.Retry(ctx, f, time.Now()); return err }},
		{"discarding", func() error { return nil }},
		{"discarded", func() error { _, err := s.Discard(ctx, f, func(inbox.Event) {}); return err }},
	}
	for _, step := range steps {
		if err := step.run(); err != nil {
			os.Exit(1)
		}
		for _, number := range f.Number {
			say(step.word, number)
		}
	}
}

// What the inbox says about events is true also on a disk that is full, or that lets
// nothing be written any more, as after it was mounted read-only.
func TestDiskThatCannotBeWrittenTo(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("caddytest.LimitFiles is for Linux only")
	}
	for _, name := range []string{"full", "read-only"} {
		t.Run(name, func(t *testing.T) {
			if path := os.Getenv(crashVariable); path != "" {
				useUnwritableDisk(t, path, name == "read-only")
				return
			}
			path := newPath(t)
			cmd := exec.Command(os.Args[0], "-test.v", "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$") // what it limits applies to all of a process
			cmd.Env = append(os.Environ(), crashVariable+"="+path)
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
				t.Fatalf("%v\n%s", err, out)
			}
			s := start(t, path) // all is there for the next process
			consistent(t, s)
			if got := s.Stats(); got.Waiting < 2 {
				t.Errorf("%d events wait", got.Waiting)
			}
			stop(t, s)
		})
	}
}

func useUnwritableDisk(t *testing.T, path string, readOnly bool) {
	s := start(t, path)
	kept := []int64{add(t, s, numbered(0, 100))}
	limit := int64(0)
	if !readOnly {
		info, err := os.Stat(path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		limit = info.Size()
	}
	lift := caddytest.LimitFiles(t, limit)
	failed := 0
	for n := range 1000 {
		number, err := s.Add(t.Context(), numbered(n+1, 10_000), noLimit)
		if err == nil {
			kept = append(kept, number)
			continue
		}
		failed++
	}
	if failed == 0 || s.Stats().Err == nil {
		t.Fatalf("%d failed, and the store says %v", failed, s.Stats().Err)
	}
	if err := s.Accepted(t.Context(), kept[0], inbox.Attempt{Time: time.Now()}, false); err == nil {
		t.Error("an acceptance is said to be recorded")
	}
	check := func() {
		t.Helper()
		consistent(t, s)
		events, err := s.List(t.Context(), inbox.Filter{State: []inbox.State{inbox.Waiting}}, 0, 10_000)
		if err != nil {
			t.Fatal(err)
		}
		var numbers []int64
		for _, e := range events {
			numbers = append(numbers, e.Number)
		}
		if !slices.Equal(numbers, kept) || s.Stats().Waiting != len(kept) {
			t.Errorf("%d wait, and %d are counted; want %d", numbers, s.Stats().Waiting, kept)
		}
	}
	check()
	lift()
	for end := time.Now().Add(time.Minute); s.Stats().Err != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("writing does not resume")
		}
	}
	kept = append(kept, add(t, s, numbered(5000, 10_000)))
	check()
	stop(t, s)
}
