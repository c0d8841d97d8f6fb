// Package app wires the parts into processes, and starts and stops them in
// order: what others depend on starts first and stops last.
package app
