package embedded

// Service is one embedded service.
type Service interface {
	// Name is a word: kafka, redis or postgres.
	Name() string
	// Describe says in a line what runs, where, and what of it lasts.
	Describe() string
	// Done is closed when the service has stopped working on its own.
	Done() <-chan struct{}
	// Err says why, once Done is closed.
	Err() error
	// Close stops the service and waits for it. It may be called again.
	Close() error
}
