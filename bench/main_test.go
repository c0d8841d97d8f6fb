package main

import (
	"testing"

	"millrace/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
