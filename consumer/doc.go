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
// A higher priority overtakes what waits of a lower one in its conversation, but
// never a task that has journaled a step: what such a task has paid for belongs to
// the conversation's version that it began on. While it backs off, or waits for a
// dependency that is out, its whole conversation waits behind it.
//
// All priorities of a conversation meet in one lane because partition n of
// every priority topic belongs to the same worker; [Balancer] sees to that.
//
// When a partition is taken away, its running turns go on here and commit. They
// are announced in Redis before the group is told that the partition is free,
// and its next owner holds just their conversations until they have ended, or
// their worker has died; all others start at once. The same way a worker that
// is told to stop leaves the group first and finishes its turns then. When Redis
// does not take the announcement, turns get a moment to commit and are canceled.
// A worker that the group has given up on without its knowing (a zombie)
// announces nothing and may run a turn beside the new owner: the store lets one
// of the two commit.
package consumer
