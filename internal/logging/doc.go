// Package logging makes the process's logger. Lines go through a bounded
// buffer to the sink, so that a slow or blocked sink never holds up the code
// that logs. When the buffer is full the oldest lines make room, one by one;
// what was dropped is counted, and said in the log once the sink takes lines
// again.
package logging
