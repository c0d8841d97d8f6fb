// Package handler holds the handlers that come with the binary: [Echo], [Agent]
// and [HTTP].
package handler
