package statestore

import (
	"fmt"
	"io/fs"
	"strings"
	"testing"
)

func TestMigrationsAreNumberedWithoutGapsOrDoubles(t *testing.T) {
	files, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for i, file := range files {
		if want := fmt.Sprintf("migrations/%03d_", i+1); !strings.HasPrefix(file, want) {
			t.Errorf("migration %d is %s", i+1, file)
		}
	}
}
