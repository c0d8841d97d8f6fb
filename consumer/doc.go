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
// While a dependency that no turn can do without is out ([Config.Dependencies],
// and Kafka), no turn starts. One that only some turns call holds the lanes whose
// next task is of a type that was seen to call it. Either way one probe at a time
// finds out when it is back, and no attempt is counted.
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
// announces nothing; what has run there for a second is marked and waited for all
// the same, what has not may run beside the new owner: the store lets one of the
// two commit.
//
// A turn's context ends when its time is up, its task is cancelled or interrupted,
// or its partition has become another worker's. What returns after that has failed,
// but for what an interrupted turn has collected. A handler that goes on keeps its
// slot and its conversation: it is counted as stuck, and in the end [Engine.Live]
// fails, for nothing but the end of the process stops it.
//
// A cancel is a completion that somebody else has committed, and whoever commits
// first wins; to be told of it early ([Config.Cancels]) only spares the turn. What a
// task says about a busy conversation ([millrace.OnBusy]) is decided in its lane,
// which alone knows.
//
// Pools that serve different priorities share conversations and no lane. Where
// there is another pool, each turn takes a lease on its conversation in Redis, timed
// by Redis; a pool that is alone takes none. Without Redis turns wait for 10 s and
// then go on without: the store decides then as well.
//
// How often a task has failed is kept in Redis from its first failure until it is
// done, so that its attempts go on where they were when its worker dies or its
// partition moves. Stopping, hand-overs and outages are no failures. So is kept
// which workers died while a turn of it had run for more than a second, or for
// less where a worker had died before. A task
// that two died of runs alone in its worker: no other turn starts until it has
// ended. If that worker dies too, the task is given up (killed_workers), and those
// that only shared a process with it are suspects no more. Whatever number of
// workers dies with it among others, a task is not given up for that. A worker that
// is told to stop, or loses its session and lives, counts for nothing; one that
// stood still and passed for dead takes that back when its turns end. All this is
// as good as Redis is: what it forgets begins anew, and a killer goes on until it
// has been seen three times.
package consumer
