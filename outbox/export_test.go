package outbox

// MarkerRecord lets a test play a relay of its own.
var MarkerRecord = markerRecord
