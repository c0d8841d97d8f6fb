// Package sim simulates LLM providers: the OpenAI chat completions and the
// Anthropic messages API, with limits, latency and faults, for tests,
// measurements and demonstrations that need no account anywhere.
//
//	POST /v1/chat/completions   OpenAI, streaming too
//	POST /v1/messages           Anthropic, streaming too
//	GET  /v1/models
//	GET  /ledger                calls as NDJSON; ?after=SEQ continues
//	GET  /ledger/summary        counts and peaks since the start or the last reset
//	POST /reset                 forgets calls and what was spent
//
// Answers follow from the seed and the request alone. An answer begins with an
// echo of the last user message, so that it can be matched to its question:
// see [Echo]. Tokens are counted as bytes of text over four.
//
// Limits are judged when a request arrives, on what the admitted requests of
// the 60 seconds before used, the request itself included. A refused request
// uses nothing.
//
// The header [FaultHeader] asks for a fault in one call.
package sim
