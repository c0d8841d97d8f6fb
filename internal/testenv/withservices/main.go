// Command withservices starts Kafka, Redis and PostgreSQL for the tests once, runs a command with their addresses in its
// environment, removes them, and exits with the command's code. With -check it starts nothing and says whether it could: exit
// code 2 if not. scripts/with-services calls it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"millrace/internal/testenv"
)

func main() {
	check := flag.Bool("check", false, "only say whether the services could be started")
	flag.Parse()
	if *check == (flag.NArg() > 0) {
		fmt.Fprintln(os.Stderr, "usage: with-services -check | with-services COMMAND [ARGUMENT...]")
		os.Exit(2)
	}
	code, err := 0, error(nil)
	if *check {
		code, err = report()
	} else {
		code, err = run(flag.Args())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "with-services:", err)
		code = max(code, 1)
		if errors.Is(err, testenv.ErrUnavailable) {
			code = 2
		}
	}
	os.Exit(code)
}

func report() (int, error) {
	lines, err := testenv.Check(context.Background())
	for _, line := range lines {
		fmt.Println(line)
	}
	return 0, err
}

func run(command []string) (code int, err error) {
	// A terminal sends its interrupt to the command as well; a termination comes to this process alone and is passed on.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)

	began := time.Now()
	env, err := testenv.StartShared()
	defer func() { err = errors.Join(err, testenv.StopShared()) }()
	if err != nil {
		return 1, err
	}
	fmt.Fprintf(os.Stderr, "with-services: Kafka, Redis and PostgreSQL are up after %.1fs\n", time.Since(began).Seconds())

	process := exec.Command(command[0], command[1:]...) //nolint:gosec,noctx // the caller's own command, ended by signals
	process.Env = append(os.Environ(), env...)
	process.Stdin, process.Stdout, process.Stderr = os.Stdin, os.Stdout, os.Stderr
	select {
	case received := <-signals:
		return 1, fmt.Errorf("%v before the command was started", received)
	default:
	}
	if err := process.Start(); err != nil {
		return 1, err
	}
	ended := make(chan error, 1)
	go func() { ended <- process.Wait() }()
	for {
		select {
		case received := <-signals:
			if received == syscall.SIGTERM {
				_ = process.Process.Signal(received)
			}
		case err := <-ended:
			if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
				if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
					return 128 + int(status.Signal()), nil
				}
				return exit.ExitCode(), nil
			}
			return 0, err
		}
	}
}
