package testenv

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// uniqueName makes a name from the test's, of lower-case letters, digits and separators, that no other test has, on any machine.
func uniqueName(t testing.TB, separator string, longest int) string {
	suffix := fmt.Sprintf("%s%012x", separator, rand.Uint64()>>16) //nolint:gosec // no secret
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		default:
			return rune(separator[0])
		}
	}, t.Name())
	return name[:min(len(name), longest-len(suffix))] + suffix
}
