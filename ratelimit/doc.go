// Package ratelimit keeps any number of processes together under the limits of
// LLM providers: requests, input tokens, output tokens and tokens per minute,
// and concurrent requests.
//
// # What is limited
//
// A [Limit] holds for a scope: an account (a provider's API key, by name), or a
// model, a tenant or a priority within it. Each dimension of each limit that
// applies to a request is a bucket. One Lua script decides on a request in all
// its buckets at once, by the clock of Redis: it charges all of them, or none
// and says when to ask again. A caller that is refused sleeps until then; it
// holds no connection and asks nothing meanwhile. All keys of a decision carry
// the account as hash tag and so lie in one slot of a Redis cluster.
//
// # The cap and its bound
//
// A bucket of a rate is a ledger of charges in cells of 100 ms. A charge is
// entered in the cell of the time at which it was granted, and a request is
// granted only if the sum of all live cells and its own charge is at most the
// limit L. A cell [c, c+100 ms) is live until its end is W = 60.5 s past, so
// the oldest cell counts as a whole.
//
// Bound: for any 60 seconds [a, a+60 s), the charges granted in it sum up to at
// most L. Proof: let g be the time of the last grant in it. A charge granted at
// h, with a ≤ h ≤ g, lies in a cell that ends after h. At g that end is less
// than g − h < 60 s < W past, so the cell is live. Hence the sum that the
// script compared with L at g covers every charge of the interval up to and
// including g's own, and there are none after g.
//
// The provider counts arrivals, not grants. Let each request arrive between 0
// and 500 ms after its grant: what arrives within 60 s was then granted within
// 60.5 s, and the proof holds for these as well, since W = 60.5 s. The same
// 500 ms absorb a step of the clock when a replica of Redis takes over. A clock
// that goes back keeps charges longer, never shorter.
//
// The bound is stated on what is charged. A request is charged its estimate
// when it is granted, and [Grant.Settle] replaces the estimate by what was used,
// in the cell of the grant. A request that used more than its estimate can take
// the sum over L; nothing is granted then until the excess has aged out. Callers
// that need the bound on actual use reserve the most that a request can use.
//
// The price of the oldest cell and the guard is 0.6 s of 60.6: up to 99 % of a
// limit can be used in steady state.
//
// # Smoothing
//
// On top of the cap, the generic cell rate algorithm (ITU-T I.371) paces the
// charges of a bucket at L per minute with a tolerance ([Limit.Burst], 10 s of
// the rate by default), so that an idle minute is not spent in one instant. A
// charge larger than the tolerance passes when the pace owes nothing.
//
// # Concurrency
//
// A concurrent request is a member of a sorted set until its grant ends, or
// until its lease does: a holder that was killed returns its place when the
// lease ends ([Config.Lease]). A request refused for concurrency is asked for
// again when a grant of the same process ends, and every 100 ms otherwise.
//
// # Order
//
// Requests of one process that need the same buckets wait in one queue: by
// priority, then by arrival. Once a request has been refused, it is not
// overtaken by a later one of its own or a lower priority in its queue, those
// excepted that were being asked for at the same moment. Processes are not
// ordered among each other.
//
// # When Redis fails
//
// The limiter never opens. If Redis cannot be reached, [Limiter.Acquire] fails
// with [ErrUnavailable] after bounded retries. If Redis has lost its data, which
// shows in a missing generation key, nobody knows what was spent: every rate
// counts as fully spent for one window, and every concurrency as fully used for
// one lease. [Limiter.StartUnspent] says for a new installation that nothing
// was spent. Redis must not evict the limiter's keys (maxmemory-policy
// noeviction), and a replica or a snapshot that lags by more than the guard
// forgets the grants that it lags by.
//
// # When the provider refuses
//
// [Limiter.Freeze] stops all grants of an account's model, for all processes,
// until the provider's retry-after and a random addition to it have passed.
package ratelimit
