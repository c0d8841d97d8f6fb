package statestore

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func TestProgramWorksWithWhatTheSchemaAllows(t *testing.T) {
	tests := []struct {
		name                    string
		version, oldest, wanted int32
		err                     error
		says                    string
	}{
		{"no schema", 0, 0, 4, ErrSchemaOutdated, "has version 0, this program needs 4"},
		{"behind", 3, 1, 4, ErrSchemaOutdated, "has version 3, this program needs 4: the database is behind this program; run `millrace migrate`"},
		{"the same", 4, 4, 4, nil, ""},
		{"ahead by what it can work with", 9, 4, 4, nil, ""},
		{"ahead by more", 9, 5, 4, ErrSchemaTooNew, "has version 9 and is for programs of version 5 or later, this one is of 4"},
	}
	for _, test := range tests {
		s := Schema{Version: test.version, Oldest: test.oldest, Wanted: test.wanted}
		err := s.Check()
		if !errors.Is(err, test.err) || (err != nil && !strings.Contains(err.Error(), test.says)) {
			t.Errorf("%s: %v, want %v with %q", test.name, err, test.err, test.says)
		}
	}
}

func TestMigrationFileSaysHowItRuns(t *testing.T) {
	m, err := parseMigration("007_x.sql", "-- millrace:oldest 5\n-- millrace:no-transaction\n-- millrace:safe because\nSELECT 1;\n")
	if err != nil || m.Version != 7 || m.Oldest != 5 || !m.noTransaction || m.safe != "because" {
		t.Errorf("%+v, %v", m, err)
	}
	if m, err := parseMigration("007_x.sql", "SELECT 1;"); err != nil || m.Oldest != 7 || m.noTransaction {
		t.Errorf("one that says nothing: %+v, %v; want that programs before it do not work with it", m, err)
	}
	for _, wrong := range [][2]string{
		{"7_x.sql", "SELECT 1;"},
		{"007_x.sql", "-- millrace:oldest 8"},
		{"007_x.sql", "-- millrace:oldest 0"},
		{"007_x.sql", "-- millrace:olddest 1"},
		{"007_x.sql", "-- millrace:no-transaction at all"},
		{"007_x.sql", "-- millrace:safe"},
	} {
		if m, err := parseMigration(wrong[0], wrong[1]); err == nil {
			t.Errorf("%q is taken as %+v", wrong, m)
		}
	}
	for _, names := range [][]string{{"002_x.sql"}, {"001_x.sql", "001_y.sql"}, {"001_x.sql", "003_x.sql"}} {
		files := fstest.MapFS{}
		for _, name := range names {
			files[name] = &fstest.MapFile{Data: []byte("SELECT 1;")}
		}
		if all, err := (Migrator{Files: files}).migrations(); err == nil {
			t.Errorf("%v are taken as %+v", names, all)
		}
	}
}

func TestStatementsEndWithTheirLine(t *testing.T) {
	m := Migration{sql: "-- why\nCREATE INDEX CONCURRENTLY IF NOT EXISTS a\n    ON b (c);\n\n-- more; of it\nSELECT 1;\nSELECT 2"}
	want := []string{"CREATE INDEX CONCURRENTLY IF NOT EXISTS a\nON b (c);\n", "SELECT 1;\n", "SELECT 2\n"}
	if got := m.statements(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
