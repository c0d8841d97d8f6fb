// Package ingest takes tasks in over HTTP, classifies them onto priority topics
// and answers what has become of them.
//
// # What an answer means
//
// A task is accepted, and answered 202, only after Kafka has acknowledged its
// record with acks=all. Any other answer means that the task is not known to be
// stored. A 503 of type kafka-unavailable leaves it open: the acknowledgement
// did not arrive in time, so the record may be in the log. Sending the task
// again under the same Idempotency-Key gives it the same id, and a task is done
// once per id, so that repeating is safe. Another task under the key of an
// earlier one would be lost as its repeat, so [Config.Fingerprints] has it
// refused; without them, or while they do not answer, it is taken for a repeat.
//
// A stop loses nothing that was accepted: [Server.Run] refuses new tasks once
// its context ends, lets open requests come to their answer and flushes the
// producer.
//
// # Order
//
// Tasks of one conversation and priority reach the log in the order in which
// their requests were answered, and within a batch in the order of its lines. A
// line that was refused for a passing reason (429, 503) takes the later lines of
// its conversation with it, so that sending the refused lines again in their
// order keeps it.
//
// # Errors
//
// Every error is a problem document (RFC 9457) with a stable type, listed by
// [ProblemTypes]. It says what was wrong, where, and what to do about it.
package ingest
