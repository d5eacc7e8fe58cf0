package cli

import (
	"regexp"
	"strings"
)

// The name of the header in logs and programs, and a quoted value or a list of
// such after it, as in JSON, HAR and Python.
var (
	headerName   = regexp.MustCompile(`(?i)x[-_]buzzbip[-_]signature`)
	quotedHeader = regexp.MustCompile(`^["']\s*\]?\s*(?:=>|[:=,])\s*(?:["']value["']\s*:\s*)?(\[\s*(?:["'][^\]]*)?\]|"[^"]*"|'[^']*')`)
	quotedValue  = regexp.MustCompile(`["']([^"']*)["']`)
	beforeValue  = regexp.MustCompile(`^["']?\]?\s*(?:=>|[:=])?\s*\[?`)
)

// headerValues returns the values of the signature header in a text: the text
// itself, or what follows the name of the header, as in curl -v, a log or a program.
func headerValues(text string) []string {
	name := headerName.FindStringIndex(text)
	if name == nil {
		if list := strings.TrimSpace(text); !strings.HasPrefix(list, "[") {
			return []string{text}
		}
		name = []int{0, 0}
		text = `":` + text
	}
	before, after := text[:name[0]], text[name[1]:]
	if quoted := quotedHeader.FindStringSubmatch(strings.ReplaceAll(after, `\`, "")); quoted != nil {
		var values []string
		for _, value := range quotedValue.FindAllStringSubmatch(quoted[1], -1) {
			values = append(values, value[1])
		}
		return values
	}
	value := beforeValue.ReplaceAllString(after, "")
	if i := strings.IndexAny(value, "]\\\r\n"); i >= 0 {
		value = value[:i]
	}
	if i := strings.LastIndexAny(before, `"'`); i >= 0 { // as after curl -H
		value, _, _ = strings.Cut(value, before[i:i+1])
	}
	return []string{strings.TrimSpace(value)}
}
