// Package databasetest damages the files of a database, for the tests of its users.
package databasetest

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

var soak = flag.Bool("soak", false, "damage ten times as many files")

// times returns n, or ten times as much with -soak.
func times(n int) int {
	if *soak {
		return 10 * n
	}
	return n
}

const (
	pageSize   = 4096
	logHeader  = 32
	sectorSize = 512
)

// Files are the database, its log, and the note that it is in use, or nil for one
// that does not exist.
type Files [3][]byte

var suffixes = [len(Files{})]string{"", "-wal", "-running"}

// Read returns the files of the database at a path.
func Read(t testing.TB, path string) (files Files) {
	t.Helper()
	for i, suffix := range suffixes {
		content, err := os.ReadFile(path + suffix)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		files[i] = content
	}
	return files
}

// Write replaces the files of the database at a path, which must not be in use.
func Write(t testing.TB, path string, files Files) {
	t.Helper()
	for i, suffix := range suffixes {
		if err := os.Remove(path + suffix); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if files[i] == nil {
			continue
		}
		if err := os.WriteFile(path+suffix, files[i], 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// ExpectClear fails the test unless the error of a store with a damage says so, and
// what to do.
func ExpectClear(t testing.TB, path, damage string, err error) {
	t.Helper()
	text := err.Error()
	cause := strings.Contains(text, path+" is damaged") || strings.Contains(text, path+" is no SQLite database")
	if !cause || !strings.Contains(text, "restore a backup, or move") {
		t.Errorf("%s: %v", damage, err)
	}
}

// tally counts damages by what a store does with the files.
type tally struct{ refused, accepted int }

func (c *tally) count(refused bool) {
	if refused {
		c.refused++
	} else {
		c.accepted++
	}
}

// report fails the test if fewer than least damages were refused.
func (c *tally) report(t testing.TB, least int) {
	t.Helper()
	t.Logf("%d damages refused, %d without effect or at the end of a log", c.refused, c.accepted)
	if c.refused < least {
		t.Error("too few were refused to prove anything")
	}
}

// DamageFile calls try with copies of a database of which each has one damage, and
// what that is: bits that are flipped, and pages that are zeroed, swapped, or those of
// an old copy; or the file is cut off. There are flips flipped bits in each page. try
// reports whether the store refused the files; at least so many must be refused.
func DamageFile(t testing.TB, good, old Files, flips, least int, try func(what string, files Files) (refused bool)) {
	t.Helper()
	var tried tally
	defer tried.report(t, least)
	random := rand.New(rand.NewPCG(1, 2))
	damaged := func(what string, damage func(file []byte) []byte) {
		files := good
		if files[0] = damage(bytes.Clone(good[0])); !bytes.Equal(files[0], good[0]) {
			tried.count(try(what, files))
		}
	}
	flip := func(at int) {
		damaged(fmt.Sprint("byte ", at), func(file []byte) []byte { file[at] ^= 1 << random.IntN(8); return file })
	}
	size := len(good[0])
	for _, cut := range []int{0, 1, 99, 100, 512, pageSize - 1, pageSize, size / 2, size - pageSize, size - 1} {
		damaged(fmt.Sprint("cut to ", cut), func(file []byte) []byte { return file[:cut] })
	}
	for at := range 100 { // the header of the file
		flip(at)
	}
	pages := size / pageSize
	page := func(file []byte, i int) []byte { return file[i*pageSize : (i+1)*pageSize] }
	for i := range pages {
		for range times(flips) {
			flip(i*pageSize + random.IntN(pageSize))
		}
		damaged(fmt.Sprint("page ", i, " zeroed"), func(file []byte) []byte { clear(page(file, i)); return file })
		damaged(fmt.Sprint("page ", i, " swapped"), func(file []byte) []byte {
			a, b := page(file, i), page(file, (i+1+random.IntN(pages-1))%pages)
			was := bytes.Clone(a)
			copy(a, b)
			copy(b, was)
			return file
		})
		damaged(fmt.Sprint("page ", i, " stale"), func(file []byte) []byte {
			if (i+1)*pageSize <= len(old[0]) {
				copy(page(file, i), page(old[0], i))
			}
			return file
		})
	}
}

// DamageLog calls try with copies of the files of a process that was killed, of which
// each has one damage in the log, what that is, and where: bits that are flipped, or
// the log is cut off, empty or missing. There are flips flipped bits. try reports
// whether the store refused the files; at least so many must be refused.
func DamageLog(t testing.TB, killed Files, flips, least int, try func(what string, at int, files Files) (refused bool)) {
	t.Helper()
	var tried tally
	defer tried.report(t, least)
	log := killed[1]
	damaged := func(what string, at int, log []byte) {
		files := killed
		files[1] = log
		tried.count(try(what, at, files))
	}
	damaged("removed", 0, nil)
	damaged("emptied", 0, []byte{})
	for range times(flips) / 10 {
		size := rand.IntN(len(log))
		damaged(fmt.Sprint("cut to ", size), 0, log[:size])
	}
	flip := func(at int) {
		log := bytes.Clone(log)
		log[at] ^= 1 << rand.IntN(8)
		damaged(fmt.Sprint("byte ", at, " of ", len(log)), at, log)
	}
	for at := range logHeader {
		flip(at)
	}
	for range times(flips) {
		flip(logHeader + rand.IntN(len(log)-logHeader))
	}
}

// LosePower calls try with files as a power loss may leave them that happens while the
// log is written on: sectors since before are missing, or its end is.
func LosePower(before, after Files, try func(what string, files Files)) {
	random := rand.New(rand.NewPCG(1, 2))
	first, log := len(before[1]), after[1]
	lost := func(what string, log []byte) {
		if files := before; !bytes.Equal(log, after[1]) { // it was not written completely
			files[1] = log
			try(what, files)
		}
	}
	zero := func(log []byte, at int) { clear(log[at:min(at+sectorSize, len(log))]) }
	for at := first; at < len(log); at += sectorSize {
		lost(fmt.Sprint("cut to ", at), log[:at])
		log := bytes.Clone(log)
		zero(log, at)
		lost(fmt.Sprint("without the sector at ", at), log)
	}
	for attempt := range times(40) {
		log := bytes.Clone(log)
		for at := first; at < len(log); at += sectorSize {
			if random.IntN(40) < attempt%40 {
				zero(log, at)
			}
		}
		if random.IntN(2) == 0 {
			log = log[:first+random.IntN(len(log)-first)]
		}
		lost(fmt.Sprint("attempt ", attempt), log)
	}
}
