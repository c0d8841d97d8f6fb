// Package demo puts a running pipeline under load and judges what comes out.
//
// The load is conversations, from a file or made up, sent turn by turn through
// the HTTP API: the next turn of a conversation is sent once the one before is
// accepted. The judge looks from outside only: it counts what the results topic
// says and compares the histories in PostgreSQL with what was sent.
//
//   - lost: accepted tasks that lack their result event, their completion, their
//     user message with the text that was sent, or the answer to it. A task that
//     failed for good has no answer, so it is lost too, and says why.
//   - duplicate: result events, user messages and answers beyond the first of a
//     task, and messages of tasks that nobody sent.
//   - reordered: user messages that stand behind one that was sent later, and
//     answers that do not directly follow their question.
//
// Conversation ids carry a prefix of their own in every run, so that a data
// directory with the conversations of earlier runs is no obstacle.
package demo
