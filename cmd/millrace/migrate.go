package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"millrace/internal/app"
	"millrace/internal/settings"
	"millrace/statestore"
)

func init() { register(newMigrate) }

func newMigrate(c *cli) *cobra.Command {
	var check, asJSON bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the database schema up to date",
		Long: `Runs the migrations that the database lacks, in schema "millrace". Migrations only
go forward. Of several calls at once one works and the others wait for it; one
that is killed leaves its migration undone, to be run by the next call.

Run it before the programs that bring the migrations: workers and relays refuse
to start on a database that is behind. Workers of the version before go on working while
and after it runs, and may be started again, as long as --check of their version
says so; a migration that they cannot work with is one of the release notes.

A migration never makes the workers queue up behind a long transaction: it gives
up after half a second, tries again for ten minutes, and says who is in its way.

With --check it runs nothing and writes nothing; a role that may use the schema and
read millrace.schema_version is enough. Exit codes: 0 this version can work with
the database, which is up to date, or ahead in ways that it works with; 1 the
database is behind, or ahead in ways that this version does not know, or does not
answer; 2 wrong settings or a wrong call.`,
		Example: `  millrace migrate
  millrace migrate --check   # exit code 1 if something is missing
  millrace migrate --check --json | jq -r '.pending[]'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON && !check {
				return usage("--json goes with --check")
			}
			s, err := c.settings(settings.RoleTool)
			if err != nil {
				return err
			}
			log, flush, err := c.logger(&s, nil)
			if err != nil {
				return err
			}
			defer flush()
			if check {
				schema, err := app.Schema(cmd.Context(), &s, log)
				if err != nil {
					return err
				}
				return errors.Join(c.printSchema(&schema, asJSON), schema.Check())
			}
			ran, err := app.Migrate(cmd.Context(), &s, log)
			for _, m := range ran {
				if _, printErr := fmt.Fprintf(c.out, "ran %s\n", m.Name); printErr != nil {
					return errors.Join(err, printErr)
				}
			}
			if err == nil && len(ran) == 0 {
				_, err = fmt.Fprintln(c.out, "nothing to do, the database has all migrations of this program")
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "run nothing, only tell how the database stands to this program")
	cmd.Flags().BoolVar(&asJSON, "json", false, "with --check: print as JSON")
	return cmd
}

func (c *cli) printSchema(s *statestore.Schema, asJSON bool) error {
	state := "up to date"
	switch {
	case s.Version < s.Wanted:
		state = "behind"
	case s.Version > s.Wanted:
		state = "ahead"
	}
	pending := make([]string, len(s.Pending))
	for i, m := range s.Pending {
		pending[i] = m.Name
	}
	if asJSON {
		return json.NewEncoder(c.out).Encode(map[string]any{
			"state": state, "version": s.Version, "program": s.Wanted, "oldest_program": s.Oldest,
			"works": s.Check() == nil, "pending": pending,
		})
	}
	if _, err := fmt.Fprintf(c.out, "%s: the schema has version %d, this program is of %d\n", state, s.Version, s.Wanted); err != nil {
		return err
	}
	for _, name := range pending {
		if _, err := fmt.Fprintf(c.out, "pending: %s\n", name); err != nil {
			return err
		}
	}
	return nil
}
