package embedded

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
)

func TestPortTakenInBetweenIsReplaced(t *testing.T) {
	ports := make(map[int]bool)
	port, err := onFreePort("redis", "", 0, func(_ string, port int) error {
		ports[port] = true
		switch len(ports) {
		case 1:
			return fmt.Errorf("listen: %w", syscall.EADDRINUSE)
		case 2:
			return &ChildError{Name: "redis", Log: []string{"Could not create server TCP listening socket 127.0.0.1:1: bind: Address already in use"}}
		}
		return nil
	})
	if err != nil || len(ports) != 3 || !ports[port] {
		t.Errorf("port %d of %v, %v, want the third", port, ports, err)
	}
}

func TestOtherFailuresAreNotTriedAgain(t *testing.T) {
	broken := errors.New("broken")
	tries := 0
	if _, err := onFreePort("redis", "", 0, func(string, int) error { tries++; return broken }); !errors.Is(err, broken) || tries != 1 {
		t.Errorf("%v after %d tries", err, tries)
	}
	tries = 0
	_, named, err := freePort("redis", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", named)
	if _, err := onFreePort("redis", addr, 0, func(string, int) error { tries++; return syscall.EADDRINUSE }); !errors.Is(err, syscall.EADDRINUSE) || tries != 1 {
		t.Errorf("a named port: %v after %d tries", err, tries)
	}
}
