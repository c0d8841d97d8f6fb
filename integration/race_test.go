//go:build integration && race

package integration

// raceDetector says that the tests run with the race detector; the processes
// that they start then do as well.
const raceDetector = true
