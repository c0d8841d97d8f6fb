package embedded

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if run := os.Getenv(helperEnv); run != "" {
		os.Exit(helper(run))
	}
	goleak.VerifyTestMain(m)
}

func openTestDir(t *testing.T) *Dir {
	t.Helper()
	d, err := OpenDir(DirConfig{MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}
