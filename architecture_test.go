package buzzbip

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The layout in docs/ARCHITECTURE.md has every file that a newcomer may look for,
// and none that has moved.
func TestArchitectureNamesTheFilesThatThereAre(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("docs", "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	err = filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			files = append(files, filepath.ToSlash(path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	links := regexp.MustCompile(`https?://[^)\s]+`)
	named := regexp.MustCompile(`[\w./-]+\.(go|html|json)\b`).FindAllString(links.ReplaceAllString(string(text), ""), -1)
	for _, name := range named {
		if !slices.ContainsFunc(files, func(file string) bool { return file == name || path.Base(file) == name }) {
			t.Errorf("there is no %s", name)
		}
	}
	for _, file := range files {
		if dir := path.Dir(file); dir != "." && dir != "internal/cli" || path.Ext(file) != ".go" || strings.HasSuffix(file, "_test.go") {
			continue
		}
		if !slices.Contains(named, path.Base(file)) {
			t.Errorf("it does not name %s", file)
		}
	}
}
