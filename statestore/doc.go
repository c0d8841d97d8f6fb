// Package statestore keeps conversations: hot in Redis, durable in PostgreSQL.
//
// PostgreSQL is the truth. A finished turn commits there in one transaction:
// its completion, the conversation's new state and version, the messages it
// appended and the events it emitted, or none of them. Many turns share one
// transaction (group commit); the outcome of each is its own, so a turn that
// lost a race does not fail its neighbours.
//
// Redis holds a copy of each conversation that was in use of late, written
// after the commit. It is never believed when it matters: a turn commits only
// if the version it ran on is the one in PostgreSQL. A Redis that is empty,
// late or wrong therefore costs a second run of the turn, never a wrong effect.
package statestore
