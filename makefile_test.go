package buzzbip

import (
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// makes returns what make prints.
func makes(t *testing.T, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("make"); err != nil || runtime.GOOS == "windows" { // which has another one
		t.Skip("there is no make")
	}
	cmd := exec.Command("make", args...)
	cmd.Env = append(os.Environ(), "MAKEFLAGS=") // not those of a make that runs this test
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("make %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// installed are the names of what the Makefile installs, as people know it.
func installed(t *testing.T) (names []string) {
	t.Helper()
	text, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, install := range regexp.MustCompile(`(?m)tools/install\.sh (\S+)(?: (\w+))?`).FindAllStringSubmatch(string(text), -1) {
		if name := install[2]; name != "" {
			names = append(names, name)
		} else {
			names = append(names, install[1])
		}
	}
	if len(names) == 0 {
		t.Fatal("it installs nothing")
	}
	return names
}

func TestMakeAloneShowsItsTargets(t *testing.T) {
	text, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	// not run before that: other targets would run this test
	if alone, help := makes(t, "-n"), makes(t, "-n", "help"); alone != help {
		t.Fatalf("make alone runs\n%s", alone)
	}
	shown := makes(t, "help")
	_, targets, _ := strings.Cut(string(text), ".PHONY: ")
	targets, _, _ = strings.Cut(targets, "\n")
	for _, target := range strings.Fields(targets) {
		if target != "help" && target != "announce" && !strings.Contains(shown, "make "+target+" ") {
			t.Errorf("it does not show %s:\n%s", target, shown)
		}
	}
}

func TestMakeCheckSaysWhatItInstallsAndHowLongItTakes(t *testing.T) {
	first, _, _ := strings.Cut(makes(t, "-n", "check"), "gofmt")
	for name, text := range map[string]string{"make help": makes(t, "help"), "make check": first} {
		text = strings.ToLower(text)
		if !strings.Contains(text, "minutes") {
			t.Errorf("%s does not say how long it takes:\n%s", name, text)
		}
		for _, program := range installed(t) {
			if !strings.Contains(text, program) {
				t.Errorf("%s does not say that it may install %s:\n%s", name, program, text)
			}
		}
	}
}

// With a name that no fuzz test has, Go only warns.
func TestMakeFuzzRunsEveryFuzzTest(t *testing.T) {
	run := make(map[string]string) // packages by fuzz test
	for _, line := range regexp.MustCompile(`-fuzz '\^(\w+)\$' .* (\S+)\n`).FindAllStringSubmatch(makes(t, "-n", "fuzz"), -1) {
		run[line[1]] = filepath.Clean(line[2])
	}
	written := make(map[string]string)
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, name := range regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`).FindAllSubmatch(text, -1) {
			written[string(name[1])] = filepath.Dir(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(written) == 0 || !maps.Equal(run, written) {
		t.Errorf("make fuzz runs %v, want %v", run, written)
	}
}
