package statestore

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The rules for migrations that run while workers work. They apply from 004 on:
// before it there was nothing to disturb.
const firstRuled = 4

// harm is a statement that breaks or stops workers.
type harm struct {
	pattern *regexp.Regexp
	// but excuses a statement that also matches it.
	but *regexp.Regexp
	why string
}

func re(pattern string) *regexp.Regexp { return regexp.MustCompile(`(?is)` + pattern) }

var harms = []harm{
	{re(`\bDROP\s+(TABLE|SCHEMA|FUNCTION|TRIGGER|SEQUENCE|VIEW|TYPE)\b`), nil, "workers of the version before may use it"},
	{re(`\bALTER\s+TABLE\b.*\bDROP\s+(COLUMN\b|IF\b|"?\w+"?\s*(,|;|$|CASCADE|RESTRICT))`), re(`\bDROP\s+CONSTRAINT\b`), "workers of the version before may use the column"},
	{re(`\bRENAME\b`), nil, "workers of the version before know the old name only"},
	{re(`\bSET\s+SCHEMA\b`), nil, "workers of the version before know the old name only"},
	{re(`\bSET\s+NOT\s+NULL\b`), nil, "reads the whole table under an exclusive lock, and workers of the version before may write nulls"},
	{re(`\bADD\s+(COLUMN\s+)?(IF\s+NOT\s+EXISTS\s+)?"?\w+"?\s+[^,;]*\bNOT\s+NULL\b`), re(`\bDEFAULT\b`), "workers of the version before do not give the column a value"},
	{re(`\bADD\s+(COLUMN\s+)?[^,;]*\b(GENERATED|(big|small)?serial\d?|random|gen_random_uuid|clock_timestamp|nextval)\b`), nil, "rewrites the whole table under an exclusive lock"},
	{re(`\bALTER\s+(COLUMN\s+)?"?\w+"?\s+(SET\s+DATA\s+)?TYPE\b`), nil, "rewrites the whole table under an exclusive lock"},
	{re(`\bCREATE\s+(UNIQUE\s+)?INDEX\b`), re(`\bCONCURRENTLY\b`), "stops all writes until the index is made; make it CONCURRENTLY"},
	{re(`\bDROP\s+INDEX\b`), re(`\bCONCURRENTLY\b`), "needs the table for itself; drop it CONCURRENTLY"},
	{re(`\bREINDEX\b`), re(`\bCONCURRENTLY\b`), "stops all writes until the index is made"},
	{re(`\bADD\s+(CONSTRAINT\s+"?\w+"?\s+)?(CHECK|FOREIGN\s+KEY)\b`), re(`\bNOT\s+VALID\b`), "reads the whole table under an exclusive lock; add it NOT VALID and validate it in the next migration"},
	{re(`\bADD\s+(CONSTRAINT\s+"?\w+"?\s+)?(UNIQUE|PRIMARY\s+KEY|EXCLUDE)\b`), re(`\bUSING\s+INDEX\b`), "makes an index under an exclusive lock; make it CONCURRENTLY and add it USING INDEX"},
	{re(`\bADD\s+(COLUMN\s+)?"?\w+"?\s+\w+[^,;]*\b(CHECK|REFERENCES|UNIQUE|PRIMARY\s+KEY)\b`), re(`\bADD\s+(CONSTRAINT|CHECK|FOREIGN|UNIQUE|PRIMARY|EXCLUDE)\b`), "reads the whole table under an exclusive lock; add the constraint NOT VALID by itself"},
	{re(`^\s*(LOCK|TRUNCATE|CLUSTER|VACUUM\s+FULL|VACUUM\s*\(.*FULL)\b`), nil, "takes a table away from the workers"},
	{re(`^\s*(UPDATE|DELETE|MERGE|INSERT|COPY)\b`), nil, "changes rows that workers lock, in one transaction of unknown length"},
	{re(`^\s*(BEGIN|COMMIT|ROLLBACK|START\s+TRANSACTION)\b`), nil, "the transaction is the migrator's"},
	{re(`\b(lock_timeout|statement_timeout|deadlock_timeout)\b`), nil, "the limits are the migrator's"},
}

var (
	createdTable  = re(`\bCREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?(millrace\.\w+)`)
	comment       = regexp.MustCompile(`(?m)--.*$`)
	body          = regexp.MustCompile(`(?s)\$\$.*?\$\$`)
	idempotent    = re(`^\s*(CREATE\s+(UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+IF\s+NOT\s+EXISTS|DROP\s+INDEX\s+CONCURRENTLY\s+IF\s+EXISTS|ALTER\s+TABLE\s+\S+\s+VALIDATE\s+CONSTRAINT)\b`)
	notValid      = re(`\bNOT\s+VALID\b`)
	validate      = re(`\bVALIDATE\s+CONSTRAINT\b`)
	concurrently  = re(`\bCONCURRENTLY\b`)
	changedTable  = re(`\b(?:ALTER\s+TABLE(?:\s+IF\s+EXISTS)?(?:\s+ONLY)?|CREATE\s+(?:OR\s+REPLACE\s+)?TRIGGER\b.*\bON)\s+(millrace\.\w+)`)
	affectedTable = re(`\b(?:ON|TABLE|INTO|UPDATE|FROM|TRUNCATE)\s+(millrace\.\w+)`)
)

// judge returns what is wrong with a migration.
func judge(m *Migration) (faults []string) {
	if !strings.Contains(m.sql, "-- millrace:oldest ") {
		faults = append(faults, `does not say "-- millrace:oldest N": the oldest programs that work with it`)
	}
	if m.Oldest == m.Version {
		faults = append(faults, "workers of the version before cannot work with it, so it stops them all")
	}
	text := comment.ReplaceAllString(m.sql, "")
	text = body.ReplaceAllString(text, "''")
	var own, changed []string
	for _, match := range createdTable.FindAllStringSubmatch(text, -1) {
		own = append(own, match[1])
	}
	for statement := range strings.SplitSeq(text, ";") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		if match := changedTable.FindStringSubmatch(statement); match != nil && !slices.Contains(own, match[1]) && !slices.Contains(changed, match[1]) {
			changed = append(changed, match[1])
		}
		if m.noTransaction && !idempotent.MatchString(statement) {
			faults = append(faults, fmt.Sprintf("%q: without a transaction only what can be run again after it has failed", strings.TrimSpace(statement)))
		}
		if match := affectedTable.FindStringSubmatch(statement); match != nil && slices.Contains(own, match[1]) {
			continue // nobody uses it yet
		}
		for _, h := range harms {
			if h.pattern.MatchString(statement) && (h.but == nil || !h.but.MatchString(statement)) {
				faults = append(faults, fmt.Sprintf("%q: %s", strings.TrimSpace(statement), h.why))
			}
		}
	}
	if !m.noTransaction && concurrently.MatchString(text) {
		faults = append(faults, `CONCURRENTLY wants "-- millrace:no-transaction"`)
	}
	if notValid.MatchString(text) && validate.MatchString(text) {
		faults = append(faults, "validates a constraint under the lock that it was added with; do it in the next migration")
	}
	if !m.noTransaction && len(changed) > 1 {
		faults = append(faults, fmt.Sprintf("holds exclusive locks on %v together, which workers lock in an order of their own; one table a migration", changed))
	}
	return faults
}

// TestMigrationsLeaveWorkersAlone refuses migrations that break or stop the
// workers that run meanwhile, unless they say "-- millrace:safe" and why.
func TestMigrationsLeaveWorkersAlone(t *testing.T) {
	all, err := Migrator{}.migrations()
	if err != nil {
		t.Fatal(err)
	}
	for i := range all {
		if all[i].Version < firstRuled || all[i].safe != "" {
			continue
		}
		for _, fault := range judge(&all[i]) {
			t.Errorf("%s: %s", all[i].Name, fault)
		}
	}
}

func TestHarmfulMigrationsAreFound(t *testing.T) {
	const table = "ALTER TABLE millrace.messages "
	for _, sql := range []string{
		table + "DROP COLUMN role",
		table + "DROP role",
		table + "ADD a integer, DROP role",
		table + "RENAME role TO speaker",
		table + "RENAME TO said",
		table + "ALTER role SET NOT NULL",
		table + "ADD COLUMN a integer NOT NULL",
		table + "ADD a uuid NOT NULL DEFAULT gen_random_uuid()",
		table + "ADD COLUMN a bigint GENERATED ALWAYS AS IDENTITY",
		table + "ADD COLUMN a bigserial",
		table + "ADD COLUMN a integer CHECK (a > 0)",
		table + "ADD COLUMN a text REFERENCES millrace.conversations (id)",
		table + "ALTER COLUMN seq TYPE numeric",
		table + "ALTER seq SET DATA TYPE numeric",
		table + "ADD CONSTRAINT c CHECK (seq > 0)",
		table + "ADD CHECK (seq > 0)",
		table + "ADD CONSTRAINT c FOREIGN KEY (conversation_id) REFERENCES millrace.conversations (id)",
		table + "ADD UNIQUE (task_id)",
		table + "ADD CONSTRAINT c CHECK (seq > 0) NOT VALID;\n" + table + "VALIDATE CONSTRAINT c",
		table + "ADD a integer;\nALTER TABLE millrace.steps ADD a integer",
		"CREATE INDEX ON millrace.messages (task_id)",
		"CREATE UNIQUE INDEX i ON millrace.messages (task_id)",
		"CREATE INDEX CONCURRENTLY i ON millrace.messages (task_id)",
		"DROP INDEX millrace.dead_letters_task",
		"LOCK TABLE millrace.messages",
		"TRUNCATE millrace.relays",
		"UPDATE millrace.messages SET role = 'user'",
		"DROP TABLE millrace.relays",
		"DROP TRIGGER take_transaction_id ON millrace.outbox",
		"SET LOCAL lock_timeout = '1h'",
		"COMMIT",
		"-- millrace:no-transaction\nCREATE INDEX CONCURRENTLY i ON millrace.messages (task_id)",
		"-- millrace:no-transaction\n" + table + "ADD a integer",
	} {
		m, err := parseMigration("009_x.sql", "-- millrace:oldest 8\n"+sql+";\n")
		if err != nil {
			t.Fatal(err)
		}
		if len(judge(&m)) == 0 {
			t.Errorf("%q passes", sql)
		}
	}
	for _, sql := range []string{
		table + "ADD COLUMN a integer",
		table + "ADD a integer NOT NULL DEFAULT 0",
		table + "ADD CONSTRAINT c CHECK (seq > 0) NOT VALID",
		table + "ADD a integer,\n    ADD CONSTRAINT c CHECK (a > 0) NOT VALID",
		table + "DROP CONSTRAINT c",
		table + "SET (autovacuum_vacuum_scale_factor = 0.01)",
		"-- millrace:no-transaction\nCREATE INDEX CONCURRENTLY IF NOT EXISTS i ON millrace.messages (task_id)",
		"-- millrace:no-transaction\n" + table + "VALIDATE CONSTRAINT c",
		"CREATE TABLE millrace.x (a integer PRIMARY KEY CHECK (a > 0));\nCREATE INDEX x_a ON millrace.x (a);\nINSERT INTO millrace.x VALUES (1)",
		"CREATE FUNCTION millrace.f() RETURNS void LANGUAGE sql AS $$ DELETE FROM millrace.x; $$",
	} {
		m, err := parseMigration("009_x.sql", "-- millrace:oldest 8\n"+sql+";\n")
		if err != nil {
			t.Fatal(err)
		}
		if faults := judge(&m); len(faults) > 0 {
			t.Errorf("%q is refused: %v", sql, faults)
		}
	}
	for _, header := range []string{"", "-- millrace:oldest 9\n"} {
		m, err := parseMigration("009_x.sql", header+table+"ADD a integer;\n")
		if err != nil {
			t.Fatal(err)
		}
		if len(judge(&m)) == 0 {
			t.Errorf("with the header %q, it passes", header)
		}
	}
}
