// Package millrace runs AI-agent tasks at scale on Kafka.
//
// A [Task] is a unit of work. Tasks of one conversation run one at a time and
// in order; tasks of different conversations run side by side, on as many
// identical workers as there are partitions. A program provides a [Handler];
// a worker calls it with a [Turn], which carries the task, the conversation's
// state and history, and collects what the turn wants to change. Nothing that
// a turn collects is visible to anybody until all of it commits in one
// PostgreSQL transaction, together with the fact that the task is done.
//
// This package holds the vocabulary that all other packages share and depends
// on the standard library alone. Programs start a worker with package
// millrace/worker; upstream services send tasks over HTTP or straight to
// Kafka in the format of [Task.Record].
package millrace
