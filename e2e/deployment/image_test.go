package deployment

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/buzzbip/caddy-webhook/internal/caddytest"
)

// readDockerfile parses it as Docker does, and fails for what its linter warns of.
func readDockerfile() (stages []instructions.Stage, version string, err error) {
	text, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		return nil, "", err
	}
	tree, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, "", err
	}
	for _, w := range tree.Warnings {
		err = errors.Join(err, errors.New(w.Short))
	}
	warn := func(rule, _, _, message string, _ []parser.Range) {
		err = errors.Join(err, fmt.Errorf("Dockerfile: %s: %s", rule, message))
	}
	stages, args, parseErr := instructions.Parse(tree.AST, linter.New(&linter.Config{Warn: warn}))
	if err = errors.Join(err, parseErr); err != nil {
		return nil, "", err
	}
	for _, arg := range args {
		for _, a := range arg.Args {
			if a.Key == "CADDY_VERSION" && a.Value != nil {
				version = *a.Value
			}
		}
	}
	if len(stages) != 2 || version == "" {
		return nil, "", fmt.Errorf("the Dockerfile has %d stages and CADDY_VERSION %q", len(stages), version)
	}
	return stages, version, nil
}

// buildAsTheDockerfileDoes runs the commands of its first stage in a directory
// that has what .dockerignore lets through, and returns the binary that the second
// stage copies. Their tools are those of this repository, not of the image.
func buildAsTheDockerfileDoes(dir string) (binary string, err error) {
	stages, version, err := readDockerfile()
	if err != nil {
		return "", err
	}
	context := filepath.Join(dir, "context")
	if err := copyContext(root, context); err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(bin, "xcaddy"), []byte("#!/bin/sh\nexec go tool xcaddy \"$@\"\n"), 0o700); err != nil {
		return "", err
	}
	// what the image of the first stage sets
	env := append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "CADDY_VERSION=v"+version, "XCADDY_SETCAP=1")
	workdir := ""
	for _, command := range stages[0].Commands {
		switch command := command.(type) {
		case *instructions.EnvCommand:
			for _, kv := range command.Env {
				env = append(env, kv.Key+"="+kv.Value)
			}
		case *instructions.WorkdirCommand:
			workdir = command.Path
		case *instructions.RunCommand:
			run := exec.Command("sh", "-c", strings.Join(command.CmdLine, " "))
			run.Dir, run.Env = context, env
			if out, err := run.CombinedOutput(); err != nil {
				return "", fmt.Errorf("%s: %w\n%s", command.CmdLine, err, out)
			}
		}
	}
	for _, command := range stages[1].Commands {
		if command, ok := command.(*instructions.CopyCommand); ok && command.From == stages[0].Name && len(command.SourcePaths) == 1 {
			if name, err := filepath.Rel(workdir, command.SourcePaths[0]); err == nil && command.DestPath == "/usr/bin/caddy" {
				binary = filepath.Join(context, name)
			}
		}
	}
	if _, err := os.Stat(binary); err != nil {
		return "", fmt.Errorf("the second stage copies no binary that the first builds: %w", err)
	}
	return binary, nil
}

// copyContext copies what Docker would be given of a checkout.
func copyContext(checkout, to string) error {
	file, err := os.Open(filepath.Join(checkout, ".dockerignore"))
	if err != nil {
		return err
	}
	defer file.Close()
	patterns, err := ignorefile.ReadAll(file)
	if err != nil {
		return err
	}
	ignored, err := patternmatcher.New(patterns)
	if err != nil {
		return err
	}
	return filepath.WalkDir(checkout, func(from string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(checkout, from)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return nil
		}
		if skip, err := ignored.MatchesOrParentMatches(name); skip || err != nil {
			return err
		}
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		target := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
			return err
		}
		return os.WriteFile(target, text, 0o600)
	})
}

func TestContextOfTheImageHasNoSecrets(t *testing.T) {
	checkout, context := t.TempDir(), t.TempDir()
	copyFile(t, filepath.Join(root, ".dockerignore"), filepath.Join(checkout, ".dockerignore"), 0o600)
	for _, name := range []string{"verify.go", ".git/config", ".env", "examples/compose/secrets/buzzbip", "examples/kubernetes/secrets/current"} {
		copyFile(t, os.DevNull, filepath.Join(checkout, name), 0o600)
	}
	if err := copyContext(checkout, context); err != nil {
		t.Fatal(err)
	}
	var names []string
	err := filepath.WalkDir(context, func(name string, entry fs.DirEntry, err error) error {
		if !entry.IsDir() {
			names = append(names, filepath.Base(name))
		}
		return err
	})
	if err != nil || !slices.Equal(names, []string{"verify.go"}) {
		t.Errorf("what gets into the context of the image is %q (%v), want verify.go alone", names, err)
	}
}

// The version is in several files, none of which can read it from another.
func TestTheVersionsOfCaddyAgree(t *testing.T) {
	_, version, err := readDockerfile()
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "CADDY_VERSION ?= v" + version + "\n"; !strings.Contains(string(makefile), want) {
		t.Errorf("the Makefile does not have %q, as the Dockerfile has", want)
	}
	for _, file := range []string{"examples/compose/compose.yaml", "examples/kubernetes/kustomization.yaml", "docs/DEPLOYMENT.md"} {
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		named := regexp.MustCompile(`\bv?2\.\d+\.\d+\b`).FindAllString(string(text), -1)
		if len(named) == 0 {
			t.Errorf("%s names no version", file)
		}
		for _, n := range named {
			if strings.TrimPrefix(n, "v") != version {
				t.Errorf("%s names Caddy %s, the Dockerfile %s", file, n, version)
			}
		}
	}
	out, err := exec.Command(caddytest.Binary, "version").Output()
	if err != nil || !strings.HasPrefix(string(out), "v"+version+" ") {
		t.Errorf("the binary is of version %q (%v), want %s", out, err, version)
	}
}

// imageUser is the user of the image.
func imageUser(t *testing.T) int64 {
	t.Helper()
	stages, _, err := readDockerfile()
	if err != nil {
		t.Fatal(err)
	}
	name := ""
	for _, command := range stages[1].Commands {
		if command, ok := command.(*instructions.UserCommand); ok {
			name = command.User
		}
	}
	user, err := strconv.ParseInt(strings.Split(name, ":")[0], 10, 64)
	if err != nil || user == 0 {
		t.Fatalf("the user of the image is %q, which Kubernetes cannot tell from root", name)
	}
	return user
}

func TestTheImageIsNotRoots(t *testing.T) { imageUser(t) }

func TestTheBinaryOfTheImageNeedsNoCapability(t *testing.T) {
	if n, err := syscall.Getxattr(caddytest.Binary, "security.capability", nil); n > 0 || !errors.Is(err, syscall.ENODATA) {
		t.Errorf("the binary has a file capability (%d bytes, %v), and would not start where capabilities are dropped", n, err)
	}
}

// The probe of the image asks for something that is there in any configuration.
func TestTheHealthcheckOfTheImageIsAnswered(t *testing.T) {
	stages, _, err := readDockerfile()
	if err != nil {
		t.Fatal(err)
	}
	var url string
	for _, command := range stages[1].Commands {
		if command, ok := command.(*instructions.HealthCheckCommand); ok {
			test := command.Health.Test
			url = test[len(test)-1]
		}
	}
	c := caddytest.Start(t, "", "", "http://"+caddytest.FreeAddress(t)+" {\n\trespond \"a site without the plugin\"\n}")
	url = caddytest.Replace(t, url, "127.0.0.1:2019", c.Admin)
	if status := get(url); status != 200 {
		t.Errorf("%s is answered %d", url, status)
	}
}
