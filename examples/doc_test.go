// Package examples_test keeps the examples and what documents show of them
// right: every snippet in a document is cut out of an example, and every example
// is run.
package examples_test

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
