// Package proxy lets agents in any language call LLM providers the way package
// llm does: journaled, within the limits of all workers, and counted. It speaks
// the OpenAI and the Anthropic API, so an agent keeps the provider's official SDK
// and changes its settings alone:
//
//   - the base URL: http://127.0.0.1:8090/v1 for OpenAI's SDKs,
//     http://127.0.0.1:8090 for Anthropic's;
//   - max_retries=0: a retry of the SDK would be another step of the turn, the
//     worker retries the turn instead;
//   - the header Millrace-Turn ([Header]) on every call, with the value that the
//     agent was given in the header of the same name of the turn's request.
//
// Any API key will do; the proxy drops it and calls with the account's own.
//
// A call is a step of its turn: its request is the body, its place the order of
// the turn's calls to one path. When the turn is run again, the same call is
// answered with the bytes of the first answer, from the journal. A stream is
// journaled once it is complete and replayed as a stream; one that ends early
// ends the agent's connection early too, and is not journaled.
//
// Provider errors reach the agent in the provider's own format. A refusal (429)
// freezes the account's model for all workers.
//
// The proxy listens on loopback only ([Listen]): whoever reaches it with a live
// token spends the account's money.
package proxy
