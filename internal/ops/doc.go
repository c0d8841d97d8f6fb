// Package ops is what operators and orchestrators see of a process: liveness,
// readiness and metrics over HTTP, and a server that stops without cutting
// requests off.
package ops
