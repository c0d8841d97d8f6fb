package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestOnlyThePathOfTheModuleIsReplaced(t *testing.T) {
	t.Run("clone", func(t *testing.T) { replaces(t, true) })
	t.Run("unpacked archive", func(t *testing.T) { replaces(t, false) })
}

func replaces(t *testing.T, clone bool) {
	root := t.TempDir()
	files := map[string][2]string{
		"go.mod": {
			"module mill\n\ngo 1.26\n\nrequire example.com/mill v1.0.0\n",
			"module example.org/x/mill\n\ngo 1.26\n\nrequire example.com/mill v1.0.0\n",
		},
		"bench/go.mod": {
			"module mill/bench\n\nrequire mill v0.0.0\n\nreplace mill => ../\n",
			"module example.org/x/mill/bench\n\nrequire example.org/x/mill v0.0.0\n\nreplace example.org/x/mill => ../\n",
		},
		"a.go": {
			"package mill\n\nimport (\n\t\"fmt\"\n\n\tx \"mill/x\"\n\t\"millstone/y\"\n)\n\nvar name = fmt.Sprint(\"mill\", \"mill/x\", x.X, y.Y)\n",
			"package mill\n\nimport (\n\t\"fmt\"\n\n\tx \"example.org/x/mill/x\"\n\t\"millstone/y\"\n)\n\nvar name = fmt.Sprint(\"mill\", \"mill/x\", x.X, y.Y)\n",
		},
		".golangci.yml": {
			"deny:\n  - pkg: mill/\n  - mill/x\nlocal-prefixes:\n  - mill\nmodule-path: mill\nname: mill\n",
			"deny:\n  - pkg: example.org/x/mill/\n  - example.org/x/mill/x\nlocal-prefixes:\n  - example.org/x/mill\nmodule-path: example.org/x/mill\nname: mill\n",
		},
		"README.md": {
			"# mill\n\n`go mod edit -require mill@v0.0.0 -replace mill=../mill`\n\n\timport \"mill/x\"\n\nmill up\n",
			"# mill\n\n`go mod edit -require example.org/x/mill@v0.0.0 -replace example.org/x/mill=../mill`\n\n\timport \"example.org/x/mill/x\"\n\nmill up\n",
		},
		"other.txt": {"mill/x\n", "mill/x\n"},
	}
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content[0]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if clone {
		initClone(t, root)
	}
	for range 2 { // the second time there is nothing to do
		if err := rename(root, "example.org/x/mill"); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range files {
		got, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != content[1] {
			t.Errorf("%s:\n%s\nwant:\n%s", name, got, content[1])
		}
	}
}

func initClone(t *testing.T, root string) {
	t.Helper()
	init := exec.CommandContext(t.Context(), "git", "init", "-q")
	init.Dir = root
	if out, err := init.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestBadPathsAreRefused(t *testing.T) {
	for _, path := range []string{"", "a b", "/a", "a/", "a//b", "a/../b", "-a"} {
		if err := rename(t.TempDir(), path); err == nil {
			t.Errorf("%q: want an error", path)
		}
	}
}
