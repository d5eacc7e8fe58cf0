package cli

// variant is a secret, signature or body that was derived from the one given.
type variant struct {
	value []byte
	// description is the mistake that the value undoes, and what to do about it.
	// It is empty for the value as it was given.
	description string
}

// variantSet holds variants in the order in which they were added. Of variants
// with the same value it holds the first.
type variantSet struct {
	variants []variant
	seen     map[string]bool
}

func newVariantSet(first variant) *variantSet {
	return &variantSet{variants: []variant{first}, seen: map[string]bool{string(first.value): true}}
}

func (s *variantSet) add(value []byte, description string) {
	if s.seen[string(value)] {
		return
	}
	s.seen[string(value)] = true
	s.variants = append(s.variants, variant{value, description})
}
