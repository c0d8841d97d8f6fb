// Package llm calls LLM providers on behalf of turns. Every call goes the same
// way: the journal first, so that an answer that an earlier run of the task has
// paid for is not paid for again; then the limiter, so that all workers together
// stay within the provider's limits; then the provider, through its official Go
// SDK with the SDK's retries off; and then the usage, measured, to limiter, turn,
// metrics and trace.
//
// A provider's refusal (429) freezes the account's model for all workers and
// makes the task wait for the time that the provider asks for. What a retry can
// cure is returned as it is, what none can as [millrace.Permanent].
//
// Package llm/proxy offers the same way to agents in other languages, package
// llm/sim plays a provider.
package llm
