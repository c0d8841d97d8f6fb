// Package settings reads what an installation sets: environment variables with
// the prefix MILLRACE_. Every variable is decoded and checked on its own, so
// that one start names all that is wrong, before anything has begun.
//
// An empty variable counts as unset. A secret X may instead come from the file
// that X_FILE names. A variable that Millrace does not know is an error: a
// misspelt setting would otherwise be a default that nobody chose.
package settings
