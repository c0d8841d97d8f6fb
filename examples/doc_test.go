// Package examples_test keeps the examples and what documents show of them
// right: every snippet in a document is cut out of an example, and every example
// is run.
package examples_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// atEnd runs after all tests.
var atEnd = func() {}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		atEnd()
		os.Exit(code)
	}))
}
