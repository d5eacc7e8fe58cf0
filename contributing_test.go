package buzzbip

import (
	"os/exec"
	"strings"
	"testing"
)

// What CONTRIBUTING says of the one tool in the main go.mod.
func TestToolsAreNotPartOfThePlugin(t *testing.T) {
	packages, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(packages), "xcaddy") {
		t.Error("the plugin imports xcaddy")
	}
}
