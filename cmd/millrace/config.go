package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"millrace/internal/settings"
)

func init() { register(configCommand) }

// What stands between these in a document is generated.
const (
	settingsBegin = "<!-- settings: begin (generated, see make generate) -->\n"
	settingsEnd   = "<!-- settings: end -->\n"
)

type configFlags struct {
	role     string
	asJSON   bool
	check    bool
	markdown bool
	into     string
}

func configCommand(c *cli) *cobra.Command {
	var f configFlags
	command := &cobra.Command{
		Use:   "config",
		Short: "Show every setting with its meaning, default and value",
		Long: `Show every setting with its meaning, default and value. Secrets are masked.
What is wrong is listed below the table, and the exit code is then 2.`,
		Example: `  millrace config
  millrace config --check --role worker   # say what a worker would refuse to start with
  millrace config --json | jq '.[] | select(.set)'`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return c.config(f) },
	}
	flags := command.Flags()
	flags.StringVar(&f.role, "role", string(settings.RoleTool), "judge and fill in defaults for this kind of process: "+roleNames())
	flags.BoolVar(&f.asJSON, "json", false, "print as JSON")
	flags.BoolVar(&f.check, "check", false, "only judge the settings")
	flags.BoolVar(&f.markdown, "markdown", false, "print names, meanings and defaults as a Markdown table")
	flags.StringVar(&f.into, "into", "", "with --markdown: replace the table in this `file`, between its markers")
	command.MarkFlagsMutuallyExclusive("json", "check", "markdown")
	return command
}

func roleNames() string {
	var names []string
	for _, role := range settings.Roles() {
		names = append(names, string(role))
	}
	return strings.Join(names, ", ")
}

func (c *cli) config(f configFlags) error {
	role := settings.Role(f.role)
	if !slices.Contains(settings.Roles(), role) {
		return usage("--role %q: want one of %s", f.role, roleNames())
	}
	if f.into != "" && !f.markdown {
		return usage("--into needs --markdown")
	}
	if f.markdown {
		return c.writeMarkdown(f.into)
	}
	s, invalid := c.settings(role)
	if f.check {
		if invalid == nil {
			_, invalid = fmt.Fprintf(c.out, "the settings are valid for: %s\n", role)
		}
		return invalid
	}
	all := settings.Describe(s, c.environ)
	if f.asJSON {
		encoder := json.NewEncoder(c.out)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		return errors.Join(encoder.Encode(all), invalid)
	}
	_, err := fmt.Fprintln(c.out, configTable(all, width(c.out)))
	return errors.Join(err, invalid)
}

// configTable lays the settings out for a terminal with so many columns, or 0
// for no bound. A dot marks what the environment sets.
func configTable(all []settings.Setting, columns int) string {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.Style().Options.DrawBorder = false
	t.AppendHeader(table.Row{"", "Setting", "Value", "Default", "Meaning"})
	const narrow, borders = 30, 14
	name := 0
	for _, one := range all {
		name = max(name, len(one.Name))
		set := ""
		if one.Set {
			set = "•"
		}
		t.AppendRow(table.Row{set, one.Name, one.Value, one.Default, one.Meaning})
	}
	configs := []table.ColumnConfig{
		{Number: 3, WidthMax: narrow, WidthMaxEnforcer: text.WrapText},
		{Number: 4, WidthMax: narrow, WidthMaxEnforcer: text.WrapText},
	}
	if columns > 0 {
		configs = append(configs, table.ColumnConfig{
			Number: 5, WidthMax: max(columns-name-2*narrow-borders, 20), WidthMaxEnforcer: text.WrapSoft,
		})
	}
	t.SetColumnConfigs(configs)
	return t.Render()
}

func (c *cli) writeMarkdown(into string) error {
	// The document is about all installations, so this one's environment is left
	// out.
	s, err := settings.Load(nil, settings.RoleTool)
	if err != nil {
		return err
	}
	content := markdownTable(settings.Describe(s, nil))
	if into == "" {
		_, err := c.out.Write(content)
		return err
	}
	document, err := os.ReadFile(into)
	if err != nil {
		return fmt.Errorf("write settings into document: %w", err)
	}
	before, rest, begins := bytes.Cut(document, []byte(settingsBegin))
	_, after, ends := bytes.Cut(rest, []byte(settingsEnd))
	if !begins || !ends {
		return fmt.Errorf("write settings into document: %s lacks the line %q with %q after it",
			into, strings.TrimSpace(settingsBegin), strings.TrimSpace(settingsEnd))
	}
	updated := slices.Concat(before, []byte(settingsBegin), content, []byte(settingsEnd), after)
	if bytes.Equal(updated, document) {
		return nil
	}
	if err := os.WriteFile(into, updated, 0o644); err != nil { //nolint:gosec // a document that everybody may read
		return fmt.Errorf("write settings into document: %w", err)
	}
	return nil
}

func markdownTable(all []settings.Setting) []byte {
	var b bytes.Buffer
	b.WriteString("| Setting | Meaning | Default |\n|---|---|---|\n")
	cell := strings.NewReplacer("|", `\|`, "<", "&lt;", ">", "&gt;")
	for _, one := range all {
		name := "`" + one.Name + "`"
		if one.Secret {
			name += ", `…_FILE`"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", name, cell.Replace(one.Meaning), cell.Replace(one.Default))
	}
	return b.Bytes()
}
