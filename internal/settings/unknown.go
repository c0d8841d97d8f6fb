package settings

import (
	"maps"
	"slices"
	"strings"
)

// testPrefix starts the variables that the project's tests are steered by; they
// are no settings, and no mistake.
const testPrefix = "TEST_"

// unknown reports every variable that is no setting, with the setting that was
// probably meant.
func (l *loader) unknown() {
	for _, name := range slices.Sorted(maps.Keys(l.env)) {
		if slices.Contains(l.known, name) || strings.HasPrefix(name, testPrefix) {
			continue
		}
		if nearest := nearest(name, l.known); nearest != "" {
			l.problem(name, "", "unknown setting: did you mean %s%s?", Prefix, nearest)
			continue
		}
		l.problem(name, "", "unknown setting: millrace config lists those there are")
	}
}

// nearest returns the candidate with the fewest edits from name, or nothing
// when all are further away than a slip would take one.
func nearest(name string, candidates []string) string {
	best, bound := "", min(3, len(name)/3)+1
	for _, c := range candidates {
		if d := distance(name, c); d < bound {
			best, bound = c, d
		}
	}
	return best
}

// distance is the number of letters to insert, delete, replace or swap with
// their neighbour to make b of a (optimal string alignment).
func distance(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
