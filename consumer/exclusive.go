package consumer

// exclusive is a mutex for what is held while a service is waited for. Unlike
// sync.Mutex, it lets the fake time of testing/synctest go on while goroutines
// wait for it.
type exclusive chan struct{}

func newExclusive() exclusive { return make(exclusive, 1) }

func (x exclusive) lock() { x <- struct{}{} }

func (x exclusive) unlock() { <-x }
