// Package embedded runs the services that the pipeline stands on, for a machine
// that has none: a Kafka protocol broker inside this process, Redis and
// PostgreSQL as children of it, or stand-ins where the machine has no program
// for them.
//
// What each service keeps across a restart differs, so each says it in its
// Describe line. Children end with the process that started them, whatever ends
// it: they get a signal from the kernel when their parent dies (Linux).
//
// A service that stops working on its own makes [Services.Run] return an error
// that names it and carries the last lines it wrote. A disk that runs full ends
// Run before the services lose writes: the broker acknowledges a transaction
// whose commit marker it could not write, so stopping early is the only way to
// keep what was acknowledged.
package embedded
