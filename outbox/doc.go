// Package outbox carries events from PostgreSQL to Kafka.
//
// An event is a row in millrace.outbox, written by the transaction whose effect
// it announces; the [Relay] publishes rows and then deletes them. What that
// gives, and where it ends:
//
//   - No event without its transaction, none lost: the row commits with the
//     effect and goes only after Kafka has committed its record.
//   - Order within a key is commit order, because whoever appends holds that
//     key's lock: the conversation's row for the events of a conversation, an
//     advisory lock for all other keys of turns and in [Append]. What others
//     append under the id of a conversation has no order against that
//     conversation's own events.
//   - Published once for readers with isolation level read_committed. Every
//     batch is one Kafka transaction that holds, next to the events, a marker
//     with the ids of its rows. A relay that takes a shard over first fences the
//     previous owner by its transactional id, then reads the marker, then the
//     rows: a row that the marker lists was published and is only deleted.
//     Readers with read_uncommitted may see records of aborted transactions. A
//     database that goes back in time, as a replica that takes over without the
//     last commits does, may bring rows back that have been published.
//   - In at-least-once mode there are no Kafka transactions: what a relay had
//     published and not yet deleted when it died is published again.
//   - Event ids are stable, so that a reader of any kind can tell a repeat. An
//     [Inbox] tells it for a reader whose effects are in a database of its own.
package outbox
