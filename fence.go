package millrace

// Fence says how far the records of a partition may have been started: no turn
// of a record at or above Below has begun.
type Fence struct {
	TopicID   [16]byte
	Partition int32
	Below     int64
}
