package buzzbip

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/buzzbip/caddy-webhook/internal/webhook"
)

// patterns selects types of event. Without patterns it selects all.
type patterns []string

// newPatterns checks patterns: each is a full type, or a prefix and `.*`. What
// is surely a mistake is an error: events whose type no pattern selects are
// acknowledged and dropped.
func newPatterns(texts []string) (patterns, error) {
	for _, text := range texts {
		if remedy := patternMistake(text); remedy != "" {
			return nil, fmt.Errorf("%q is no pattern for event types: %s", text, remedy)
		}
	}
	return texts, nil
}

// patternMistake says what to do about a pattern that is not one, or nothing.
func patternMistake(text string) (remedy string) {
	if strings.ContainsAny(text, ",;|") {
		return "separate patterns by spaces; in JSON and in expressions, write one string for each"
	}
	if strings.ContainsAny(text, webhook.Quotes) {
		return "write it without quotes"
	}
	lower := strings.ToLower(text)
	if lower != text && slices.ContainsFunc(webhook.DocumentedTypes, patterns{lower}.match) {
		return "types are in lower case, so write " + lower
	}
	prefix, wildcard := strings.CutSuffix(text, ".*")
	segments := strings.Split(prefix, ".")
	valid := wildcard || len(segments) > 1
	for _, segment := range segments {
		valid = valid && segment != "" && !strings.ContainsFunc(segment, func(r rune) bool {
			return r != '_' && r != '-' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
		})
	}
	if !valid {
		return "write a full type such as message.received, or a prefix such as message.*"
	}
	return ""
}

func (p patterns) match(typ string) bool {
	return len(p) == 0 || slices.ContainsFunc(p, func(pattern string) bool {
		if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
			return strings.HasPrefix(typ, prefix)
		}
		return typ == pattern
	})
}

// undocumented returns the patterns that select no documented type.
func (p patterns) undocumented() (unknown []string) {
	for _, pattern := range p {
		if !slices.ContainsFunc(webhook.DocumentedTypes, patterns{pattern}.match) {
			unknown = append(unknown, pattern)
		}
	}
	return unknown
}
