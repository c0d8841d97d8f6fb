//go:build integration

package statestore

import "testing"

func TestFirstFingerprintOfATaskStaysInRedis(t *testing.T) { testFingerprints(t, newRedis(t), nil) }
