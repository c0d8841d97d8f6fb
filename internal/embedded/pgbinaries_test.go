package embedded

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// fakePostgres makes a folder of programs that tell a version and do no more.
func fakePostgres(t *testing.T, root, major, version string) string {
	t.Helper()
	dir := filepath.Join(root, major, "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"initdb", "postgres"} {
		script := "#!/bin/sh\necho '" + name + " (PostgreSQL) " + version + " (Debian " + version + "-1)'\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestPostgresIsChosen(t *testing.T) {
	root := t.TempDir()
	fakePostgres(t, root, "9.6", "9.6.24")
	fakePostgres(t, root, "13", "13.21")
	old := fakePostgres(t, root, "15", "15.14")
	newest := fakePostgres(t, root, "17", "17.6")
	elsewhere := fakePostgres(t, t.TempDir(), "16", "16.10")
	links := t.TempDir()
	for _, name := range []string{"initdb", "postgres"} {
		if err := os.Symlink(filepath.Join(elsewhere, name), filepath.Join(links, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", links+":"+os.Getenv("PATH"))
	debian := filepath.Join(root, "*", "bin")

	tests := map[string]struct {
		search pgSearch
		want   int
		dir    string
		err    string
	}{
		"the newest of Debian's":     {search: pgSearch{debian: debian}, dir: newest},
		"the one that made the data": {search: pgSearch{debian: debian}, want: 15, dir: old},
		"PATH's, where it really is": {search: pgSearch{debian: "/nowhere/*"}, dir: elsewhere},
		"PATH's for its data":        {search: pgSearch{debian: debian}, want: 16, dir: elsewhere},
		"the operator's choice":      {search: pgSearch{debian: debian, binDir: old}, dir: old},
		"a choice that does not fit": {search: pgSearch{debian: debian, binDir: old}, want: 17, err: "made by PostgreSQL 17, and there is no PostgreSQL 17"},
		"none for the data":          {search: pgSearch{debian: debian}, want: 18, err: "17 /bin"},
		"too old only":               {search: pgSearch{debian: filepath.Join(root, "1*", "bin"), binDir: filepath.Join(root, "13", "bin")}, err: "at least 14 is needed"},
		"nothing there":              {search: pgSearch{binDir: t.TempDir()}, err: "has no initdb"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := test.search.find(t.Context(), test.want)
			if test.err != "" {
				if test.err = strings.ReplaceAll(test.err, "17 /bin", newest+" is version 17.6"); err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("got %v, want %q in the error", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.dir != test.dir {
				t.Errorf("chose %s, want %s", got.dir, test.dir)
			}
		})
	}
}

func TestSearchThatIsCutShortBlamesNoProgram(t *testing.T) {
	root := t.TempDir()
	fakePostgres(t, root, "15", "15.14")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := pgSearch{debian: filepath.Join(root, "*", "bin"), cacheDir: t.TempDir()}.find(ctx, 0)
	if err != context.Canceled { //nolint:errorlint // no more words than that
		t.Errorf("got %v", err)
	}
}

func TestForeignDataVersionIsRead(t *testing.T) {
	data := t.TempDir()
	if major, err := dataVersion(data); major != 0 || err != nil {
		t.Errorf("an empty directory: %d, %v", major, err)
	}
	name := filepath.Join(data, "PG_VERSION")
	if err := os.WriteFile(name, []byte("15\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if major, err := dataVersion(data); major != 15 || err != nil {
		t.Errorf("got %d, %v, want 15", major, err)
	}
	if err := os.WriteFile(name, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := dataVersion(data); err == nil {
		t.Error("garbage was taken for a version")
	}
}

func TestStalePostmasterFileIsRemoved(t *testing.T) {
	data := t.TempDir()
	name := filepath.Join(data, "postmaster.pid")
	for what, content := range map[string]string{
		"another process": strconv.Itoa(os.Getpid()) + "\n" + data + "\n", "no process": "999999999\n", "garbage": "x\n", "empty": "",
	} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := settlePostmaster(t.Context(), data); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := os.Stat(name); err == nil {
			t.Errorf("%s: the file is still there", what)
		}
	}
}
