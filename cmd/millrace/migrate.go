package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"millrace/internal/app"
	"millrace/internal/settings"
	"millrace/statestore"
)

func init() { register(newMigrate) }

func newMigrate(c *cli) *cobra.Command {
	var check bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the database schema up to date",
		Long: `Runs the migrations that the database lacks, in schema "millrace". Several calls
at once queue behind a lock. Migrations only go forward, and workers of the
version before go on working while and after they run.`,
		Example: `  millrace migrate
  millrace migrate --check   # exit code 1 if something is missing`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
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
				current, wanted, err := app.CheckSchema(cmd.Context(), &s, log)
				if err != nil {
					return err
				}
				if current < wanted {
					return fmt.Errorf("schema version %d, want %d: %w", current, wanted, statestore.ErrSchemaOutdated)
				}
				_, err = fmt.Fprintf(c.out, "schema version %d, up to date\n", current)
				return err
			}
			ran, err := app.Migrate(cmd.Context(), &s, log)
			if err != nil {
				return err
			}
			for _, m := range ran {
				if _, err := fmt.Fprintf(c.out, "ran %s\n", m.Name); err != nil {
					return err
				}
			}
			if len(ran) == 0 {
				_, err = fmt.Fprintln(c.out, "nothing to do, the schema is up to date")
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "run nothing, only tell whether the schema is up to date")
	return cmd
}
