// Package bench measures the parts of Millrace as they are wired in the product,
// on real services. It sends load to loopback addresses alone, in topics and in
// a database of its own, which it removes afterwards.
package bench
