// Package consumer is the engine of a worker: it reads the priority topics as a
// member of a consumer group and runs a turn for every task, one at a time and
// in order within a conversation, side by side across conversations.
//
// Polling never waits for work. Every record goes into the lane of its
// conversation, in memory; a lane with something to do waits for one of the
// slots. A partition's tracker knows which offsets are not done yet, and only
// the lowest of them is ever committed, so that whatever happens to a worker,
// its successor begins at or before the first unfinished task. What had already
// been committed to the store is recognised there and not run again.
//
// All priorities of a conversation meet in one lane because partition n of
// every priority topic belongs to the same worker; [Balancer] sees to that.
//
// When a partition is taken away, its running turns get a moment to commit. A
// turn that needs longer is canceled and runs anew on the partition's next
// owner; it never commits here any more. A worker that the group has given up
// on without its knowing (a zombie) may run a turn beside the new owner: the
// store lets one of the two commit.
package consumer
