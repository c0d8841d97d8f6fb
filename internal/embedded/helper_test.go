package embedded

import (
	"context"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// helperEnv makes the test binary a small program for tests about processes.
const helperEnv = "MILLRACE_EMBEDDED_HELPER"

func helper(run string) int {
	switch run {
	case "sleep": // prints its pid and stays
		fmt.Println("pid", os.Getpid())
		<-time.After(time.Minute)
	case "parent": // starts a child that stays, says its pid, and stays itself
		c, err := startChild(childConfig{
			name: "child", path: os.Args[0], env: []string{helperEnv + "=sleep"},
			stop: syscall.SIGTERM, stopWithin: time.Second,
		})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(c.cmd.Process.Pid)
		<-c.done
	case "services": // starts all services, says the server's process and stays
		s, err := Start(context.Background(), Config{Dir: DirConfig{Path: os.Getenv("HELPER_DIR")}, NoDownload: true})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(s.Postgres.server.cmd.Process.Pid)
		_ = s.Run(context.Background())
	case "die":
		fmt.Println("first words")
		fmt.Fprintln(os.Stderr, "could not write block: No space left on device")
		return 3
	case "hold": // holds the data directory that it is given until its input ends
		d, err := OpenDir(DirConfig{Path: os.Getenv("HELPER_DIR"), MinFree: -1})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(os.Getpid())
		_, _ = io.Copy(io.Discard, os.Stdin)
		if err := d.Close(); err != nil {
			return 1
		}
	}
	return 0
}
