// Command modulepath gives the module another path: in go.mod files, in the
// imports of Go files, in the imports that documents show, and in the linter's
// settings. It changes nothing else that happens to have the same name.
package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: modulepath ROOT NEW")
		os.Exit(2)
	}
	if err := rename(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "modulepath:", err)
		os.Exit(1)
	}
}

// modulePath is what the go command takes, less some rarities.
var modulePath = regexp.MustCompile(`^[a-z0-9][A-Za-z0-9.~_-]*(/[A-Za-z0-9~_-][A-Za-z0-9.~_-]*)*$`)

func rename(root, to string) error {
	if !modulePath.MatchString(to) {
		return fmt.Errorf("%q is no module path: want one such as example.com/team/millrace", to)
	}
	goMod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return err
	}
	found := regexp.MustCompile(`(?m)^module (\S+)$`).FindSubmatch(goMod)
	if found == nil {
		return errors.New("go.mod names no module")
	}
	from := string(found[1])
	if from == to {
		return nil
	}
	names, err := files(root)
	if err != nil {
		return fmt.Errorf("list files: %w", err)
	}
	var errs []error
	for _, name := range names {
		if err := rewriteFile(filepath.Join(root, name), from, to); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// files returns the files that belong to the project: those that git knows or
// would take, and in an unpacked archive all but what folders with a dot hold.
func files(root string) ([]string, error) {
	list := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = root
	if out, err := list.Output(); err == nil {
		return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"), nil
	}
	var names []string
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !entry.IsDir():
			names = append(names, name)
		case len(name) > 1 && entry.Name()[0] == '.':
			return fs.SkipDir
		}
		return nil
	})
	return names, err
}

func rewriteFile(path, from, to string) error {
	var rewrite func(content []byte, from, to string) ([]byte, error)
	switch name := filepath.Base(path); {
	case name == "go.mod":
		rewrite = rewriteGoMod
	case name == ".golangci.yml":
		rewrite = rewriteLinter
	case filepath.Ext(name) == ".go":
		rewrite = rewriteGo
	case filepath.Ext(name) == ".md":
		rewrite = rewriteDocument
	default:
		return nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	updated, err := rewrite(content, from, to)
	if err != nil || bytes.Equal(content, updated) {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, updated, info.Mode())
}

// rewriteGo replaces imports, and nothing but imports.
func rewriteGo(content []byte, from, to string) ([]byte, error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, "", content, parser.ImportsOnly)
	if err != nil {
		return nil, err
	}
	imports := slices.Clone(file.Imports)
	slices.SortFunc(imports, func(a, b *ast.ImportSpec) int { return cmp.Compare(b.Pos(), a.Pos()) })
	updated := slices.Clone(content)
	for _, one := range imports { // the last first, so that offsets stay right
		path, err := strconv.Unquote(one.Path.Value)
		if err != nil {
			return nil, err
		}
		if path, ok := within(path, from, to); ok {
			start, end := set.Position(one.Path.Pos()).Offset, set.Position(one.Path.End()).Offset
			updated = slices.Concat(updated[:start], []byte(strconv.Quote(path)), updated[end:])
		}
	}
	if bytes.Equal(updated, content) {
		return content, nil
	}
	return format.Source(updated)
}

// within returns path with the module's part replaced, if it is the module or
// lies in it.
func within(path, from, to string) (string, bool) {
	rest, ok := strings.CutPrefix(path, from)
	if !ok || rest != "" && rest[0] != '/' {
		return "", false
	}
	return to + rest, true
}

// rewriteGoMod replaces the path where it is a word of its own or begins one.
func rewriteGoMod(content []byte, from, to string) ([]byte, error) {
	word := regexp.MustCompile(`(?m)(^|\s)` + regexp.QuoteMeta(from) + `(/\S*)?(\s|$)`)
	return word.ReplaceAll(content, []byte("${1}"+to+"${2}${3}")), nil
}

// rewriteLinter replaces the path in lists and as a value.
func rewriteLinter(content []byte, from, to string) ([]byte, error) {
	item := regexp.MustCompile(`(?m)^(\s*- (?:pkg: )?|\s*module-path: )` + regexp.QuoteMeta(from) + `(/\S*)?$`)
	return item.ReplaceAll(content, []byte("${1}"+to+"${2}")), nil
}

// rewriteDocument replaces the path in Go imports, and in the commands that
// name the module.
func rewriteDocument(content []byte, from, to string) ([]byte, error) {
	quoted := regexp.QuoteMeta(from)
	imports := regexp.MustCompile(`(?m)^(\s*(?:import )?(?:[a-z0-9_.]+ )?")` + quoted + `((?:/[^"]*)?"\s*)$`)
	content = imports.ReplaceAll(content, []byte("${1}"+to+"${2}"))
	commands := regexp.MustCompile(`((?:-require|-replace|go get|go install|go run) )` + quoted + `([@=/ ])`)
	return commands.ReplaceAll(content, []byte("${1}"+to+"${2}")), nil
}
